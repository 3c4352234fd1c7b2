"""What the tests of tuners ask of runs and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import colour_rows as rows
import torch
import transformers

from vlmtrain.collate import Collator
from vlmtrain.runs import RunResult
from vlmtrain.training import begin

__all__ = ["begun", "logits", "plain"]


def begun(method: str, data: Path, out: Path, **options: Any) -> Any:
    options = {key: value for key, value in options.items() if key != "progress"}
    job = begin(method, data=[data], out=out, progress=False, options=options)
    assert not isinstance(job, RunResult)
    return job


def logits(model: Any, loaded: Any) -> torch.Tensor:
    batch = Collator(loaded.processor, loaded.family)(rows.colours(4))
    with torch.no_grad():
        return model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits


def plain(base: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(base)
