"""For the tests of what is kept below the first trained block: how they train, and what its blocks see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from labelled_rows import QUICK

from vlmtrain import classify

# 24 rows to train on, 12 to evaluate on: 2 steps and an evaluation a pass.
LAST: dict[str, Any] = {**QUICK, "augment": "none", "lora_last_layers": 1, "parts": "vision", "epochs": 3}
ROWS, HELD = 24, 12
# A picture of the tiny ViT: 16 patches and the class token, 32 numbers each.
SIZE = 17 * 32 * 4


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures of each call of a run's first block, from now on."""
    seen: list[int] = []
    made = classify.make_trainer

    def watched(job: Any) -> Any:
        lists = (m for m in job.loaded.model.modules() if isinstance(m, torch.nn.ModuleList))
        next(lists)[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        return made(job)

    monkeypatch.setattr(classify, "make_trainer", watched)
    return seen
