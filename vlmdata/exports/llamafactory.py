"""LLaMA-Factory: ShareGPT rows with ``<image>`` marks, images as files, ``dataset_info.json`` and a train config.

Format: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md

    {"messages": [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "A bird."}],
     "images": ["images/3f/3f....jpg"], "vlmdata": "{...}"}

Preferences have ``messages`` (the prompt), ``chosen`` and ``rejected`` (one turn each) and ``ranking``. The tool joins
image paths to ``media_dir``, replaces the marks in place, counts them against the images, and reads the columns that
``dataset_info.json`` names: ``vlmdata`` is none of them. It passes over rows in which user (or tool) and assistant do
not take turns, with a warning only; here they are refused. Also refused: answers of several turns, and texts that
hold one of its marks (for images, video, audio, and its inner ones), unless they are escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.target import EXTRA, Exported, RefusedRow, Row, Target, Texts, extras, strict_turns

__all__ = ["MARKS", "TARGET"]

MARKS = ("<image>", "<video>", "<audio>", "{{image}}", "{{video}}", "{{audio}}")


def _row(row: Row, images: Sequence[str], escape: bool) -> dict[str, Any]:
    texts = Texts(MARKS, escape=escape)
    column = "messages" if "messages" in row else "prompt"
    strict_turns(row[column])
    turns = zip(row[column], texts.turns(row, column), strict=True)
    made: dict[str, Any] = {"messages": [{"role": turn["role"], "content": value} for turn, value in turns]}
    if column == "prompt":
        for name in ("chosen", "rejected"):
            if len(row[name]) != 1:
                raise RefusedRow("answer_turns", f"{name} has {len(row[name])} turns")
            made[name] = {"role": "assistant", "content": texts.turns(row, name)[0]}
    return {**made, "images": list(images), EXTRA: extras(row, texts.notes())}


def _files(exported: Exported) -> Mapping[str, str]:
    preference = exported.kind == "preference"
    columns = {"messages": "messages", "images": "images"}
    columns |= {"chosen": "chosen", "rejected": "rejected"} if preference else {}
    entry: dict[str, Any] = {"file_name": exported.files[0].name, "formatting": "sharegpt"}
    entry |= {"ranking": True} if preference else {}
    entry["columns"] = columns
    entry["tags"] = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "system_tag": "system",
    }
    beta = "pref_beta: 0.1\n" if preference else ""
    config = f"""\
model_name_or_path: Qwen/Qwen2-VL-2B-Instruct
template: qwen2_vl
trust_remote_code: false

stage: {"dpo" if preference else "sft"}
do_train: true
finetuning_type: lora
lora_target: all
{beta}
dataset_dir: .
media_dir: .
dataset: {exported.name}
cutoff_len: 8192

output_dir: output
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: {"5.0e-6" if preference else "1.0e-4"}
num_train_epochs: 1.0
bf16: true
logging_steps: 10
"""
    info = json.dumps({exported.name: entry}, indent=2, ensure_ascii=False) + "\n"
    return {"dataset_info.json": info, "train.yaml": config}


def _usage(exported: Exported) -> str:
    return f"""\
`dataset_info.json` describes the dataset as `{exported.name}`. In this folder:

    llamafactory-cli train train.yaml

Elsewhere give this folder as both `dataset_dir` and `media_dir`."""


TARGET = Target(
    container="jsonl",
    kinds=frozenset({"messages", "preference"}),
    summary="JSON Lines with <image> marks, image files, dataset_info.json, train.yaml",
    url="https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md",
    usage=_usage,
    row=_row,
    files=_files,
    marks=MARKS,
    extra=True,
)
