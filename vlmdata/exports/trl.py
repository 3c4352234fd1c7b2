"""TRL: Parquet with the columns its trainers read, images inside, and a module that loads it.

Format: https://huggingface.co/docs/trl/dataset_formats

- ``--form messages`` (default): ``messages`` and ``images``, for ``SFTTrainer``.
- ``--form prompt-completion``: ``prompt``, ``completion`` and ``images``: the last turn is the completion, so that
  ``SFTTrainer`` takes the loss on it only. ``prompt`` + ``completion`` are the messages.
- preferences: ``prompt``, ``chosen``, ``rejected`` and ``images``, for ``DPOTrainer``.

Content parts are exactly ``{type, text}`` and images have the ``Image`` feature; the trainers drop the other columns of
the shards, which are all there. Images are copied as the bytes they are. Every row is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlmdata.target import Exported, Target

__all__ = ["TARGET"]

_LOAD = '''\
"""Loads the rows that lie beside this file, for {trainer}."""

from pathlib import Path

from datasets import load_dataset

FOLDER = Path(__file__).resolve().parent


def load(**options):
    """The dataset; images are decoded when they are used. Options go to load_dataset (streaming=True ...)."""
    return load_dataset("parquet", data_files=str(FOLDER / "data-*.parquet"), split="train", **options)
'''


def _trainer(exported: Exported) -> str:
    return "DPOTrainer" if exported.kind == "preference" else "SFTTrainer"


def _files(exported: Exported) -> Mapping[str, str]:
    return {"load.py": _LOAD.format(trainer=f"trl.{_trainer(exported)}")}


def _usage(exported: Exported) -> str:
    trainer = _trainer(exported)
    config = "DPOConfig" if trainer == "DPOTrainer" else "SFTConfig"
    return f"""\
In this folder:

    from load import load
    from trl import {config}, {trainer}

    trainer = {trainer}(model="Qwen/Qwen2-VL-2B-Instruct", train_dataset=load(), args={config}(max_length=None))"""


TARGET = Target(
    container="parquet",
    kinds=frozenset({"messages", "preference"}),
    summary="Parquet with the trainers' columns, images inside, load.py",
    url="https://huggingface.co/docs/trl/dataset_formats",
    usage=_usage,
    files=_files,
    forms=("messages", "prompt-completion"),
)
