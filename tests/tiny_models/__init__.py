"""A small random model of every family, with processor, made offline: ``make("llava", folder)``.

One file per family with a function ``make(**options)`` that gives (model, processor); the file name is the family's.
``head_gain`` scales the frozen random LM head: at 1 its logits are too flat for a LoRA to bring the loss down.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

__all__ = ["make"]


def make(
    family: str, folder: Path, *, seed: int = 0, head_gain: float = 1.0, chat_template: bool = True, **kwargs
) -> Path:
    """Write a model folder of that family; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model, processor = importlib.import_module(f"tiny_models.{family}").make(**kwargs)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        with torch.no_grad():
            head.weight.mul_(head_gain)
    if not chat_template:
        processor.chat_template = None
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
