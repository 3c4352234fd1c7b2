"""Unsloth: chat rows whose image parts bring their path, images as files, and a module that loads them.

Format: https://unsloth.ai/docs/basics/vision-fine-tuning

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "images/3f/3f....jpg"},
                                               {"type": "text", "text": "Who?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A bird."}]}], "vlmdata": "{...}"}

Preferences are what TRL's DPO trainer reads, which Unsloth trains with: ``prompt``, ``chosen``, ``rejected`` and
``images``, with ``{"type": "image"}`` in the prompt for each. ``load.py`` completes the paths and gives the rows to the
trainer; it leaves ``vlmdata`` out. Every order of parts and turns is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.target import EXTRA, Exported, Row, Target, extras, plain_row

__all__ = ["TARGET"]

_MESSAGES = '''\
"""Loads the rows that lie beside this file, for unsloth.trainer.UnslothVisionDataCollator."""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def load():
    """The rows as a list, with images as paths; the collator opens them."""
    rows = []
    with (FOLDER / "data.jsonl").open(encoding="utf-8") as file:
        for line in file:
            messages = json.loads(line)["messages"]
            for message in messages:
                for part in message["content"]:
                    if part["type"] == "image":
                        part["image"] = str(FOLDER / part["image"])
            rows.append({"messages": messages})
    return rows
'''

_PREFERENCES = '''\
"""Loads the rows that lie beside this file, for trl.DPOTrainer."""

import json
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value

FOLDER = Path(__file__).resolve().parent
TURNS = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
FEATURES = Features({"prompt": TURNS, "chosen": TURNS, "rejected": TURNS, "images": List(Image())})


def rows():
    """One row after the other, with images as paths."""
    with (FOLDER / "data.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            made = {"images": [str(FOLDER / path) for path in row["images"]]}
            for name in ("prompt", "chosen", "rejected"):
                made[name] = [
                    {
                        "role": turn["role"],
                        "content": [{"type": p["type"], "text": p.get("text")} for p in turn["content"]],
                    }
                    for turn in row[name]
                ]
            yield made


def load():
    """The rows as a dataset whose images are opened when they are used."""
    return Dataset.from_list(list(rows()), features=FEATURES)
'''


def _row(row: Row, images: Sequence[str], escape: bool) -> dict[str, Any]:
    plain = plain_row(row, images)
    if "prompt" in row:
        return {**{name: plain[name] for name in ("prompt", "chosen", "rejected", "images")}, EXTRA: extras(row)}
    paths = iter(images)
    for turn in plain["messages"]:
        for part in turn["content"]:
            if part["type"] == "image":
                part["image"] = next(paths)
    return {"messages": plain["messages"], EXTRA: extras(row)}


def _files(exported: Exported) -> Mapping[str, str]:
    return {"load.py": _PREFERENCES if exported.kind == "preference" else _MESSAGES}


def _usage(exported: Exported) -> str:
    if exported.kind == "preference":
        return """\
In this folder, with a model and processor of `FastVisionModel`:

    from load import load

    trainer = DPOTrainer(
        model=model, train_dataset=load(), processing_class=processor, args=DPOConfig(max_length=None)
    )"""
    return """\
In this folder, with a model and processor of `FastVisionModel`:

    from load import load

    trainer = SFTTrainer(
        model=model, train_dataset=load(), processing_class=processor.tokenizer,
        data_collator=UnslothVisionDataCollator(model, processor),
        args=SFTConfig(remove_unused_columns=False, dataset_text_field="",
                       dataset_kwargs={"skip_prepare_dataset": True}, max_length=8192),
    )"""


TARGET = Target(
    container="jsonl",
    kinds=frozenset({"messages", "preference"}),
    summary="JSON Lines with images in their parts, image files, load.py",
    url="https://unsloth.ai/docs/basics/vision-fine-tuning",
    usage=_usage,
    row=_row,
    files=_files,
    extra=True,
)
