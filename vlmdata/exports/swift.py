"""ms-swift: standard rows with ``<image>`` marks, images as files, and a script that trains.

Format: https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html

    {"messages": [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "A bird."}],
     "images": ["images/3f/3f....jpg"], "label": 3, "vlmdata": "{...}"}

Preferences put the chosen answer into ``messages`` and the other one into ``rejected_response``. ``label`` is the
tool's own field and there for labelled data only. Fields it does not know, as ``vlmdata``, are removed by the tool.
It wants user (or tool) and assistant to take turns, one turn as the rejected answer, and another text in it than in
the chosen one; other rows are refused. So are texts that hold one of its marks, unless they are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.target import EXTRA, Exported, RefusedRow, Row, Target, Texts, extras, strict_turns

__all__ = ["MARKS", "TARGET"]

MARKS = ("<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>")


def _row(row: Row, images: Sequence[str], escape: bool) -> dict[str, Any]:
    texts = Texts(MARKS, escape=escape)
    columns = ["messages"] if "messages" in row else ["prompt", "chosen"]
    turns = [turn for column in columns for turn in row[column]]
    if "rejected" in row:
        for name in ("chosen", "rejected"):
            if len(row[name]) != 1:
                raise RefusedRow("answer_turns", f"{name} has {len(row[name])} turns")
    strict_turns(turns)
    values = [value for column in columns for value in texts.turns(row, column)]
    made: dict[str, Any] = {
        "messages": [{"role": turn["role"], "content": value} for turn, value in zip(turns, values, strict=True)]
    }
    if "rejected" in row:
        (made["rejected_response"],) = texts.turns(row, "rejected")
        if made["rejected_response"] == values[-1]:
            raise RefusedRow("same_answers", "the answers differ in their parts only")
    made["images"] = list(images)
    if row.get("label") is not None:
        made["label"] = row["label"]
    return {**made, EXTRA: extras(row, texts.notes())}


def _files(exported: Exported) -> Mapping[str, str]:
    what = "rlhf --rlhf_type dpo" if exported.kind == "preference" else "sft"
    script = f"""\
#!/bin/sh
# Image paths start from this folder.
cd "$(dirname "$0")" || exit 1
ROOT_IMAGE_DIR="$PWD" swift {what} \\
    --model Qwen/Qwen2-VL-2B-Instruct --use_hf true \\
    --dataset {exported.files[0].name} \\
    --torch_dtype bfloat16 \\
    --output_dir output "$@"
"""
    return {"train.sh": script}


def _usage(exported: Exported) -> str:
    return """\
In this folder, with more options of `swift` behind it if you like (LoRA is its default):

    sh train.sh

Image paths are relative: start `swift` in this folder, or set `ROOT_IMAGE_DIR` to it."""


TARGET = Target(
    container="jsonl",
    kinds=frozenset({"messages", "preference"}),
    summary="JSON Lines with <image> marks, image files, train.sh",
    url="https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html",
    usage=_usage,
    row=_row,
    files=_files,
    marks=MARKS,
    extra=True,
)
