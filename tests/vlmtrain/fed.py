"""For the tests of what feeds a trainer: small data for every method, trainers, and what they end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import colour_rows as rows
import torch

from vlmtrain import dpo, kto, sft
from vlmtrain import family as families
from vlmtrain.runs import RunResult
from vlmtrain.training import begin

MAKE: dict[str, Any] = {"sft": sft.make_trainer, "dpo": dpo.make_trainer, "kto": kto.make_trainer}
QUICK: dict[str, Any] = {"batch_size": 2, "learning_rate": 1e-2, "logging_steps": 50, "seed": 1}
FAMILIES = [name for name in families.names() if families.load(name).task == "text"]


def write(folder: Path) -> dict[str, Path]:
    """Eleven rows for each method; those of SFT have weights."""
    weighed = [{**row, "meta": json.dumps({"quality": 1 + n % 3})} for n, row in enumerate(rows.colours(11))]
    pairs = rows.write(folder / "pairs", rows.pairs(11))
    return {"sft": rows.write(folder / "weighed", weighed), "dpo": pairs, "kto": pairs}


def made(method: str, data: Path, base: Path, out: Path, **options: Any) -> tuple[Any, Any]:
    """A trainer and its job."""
    options = {"model": str(base), **QUICK, **options}
    job = begin(method, data=[data], out=out, progress=False, options=options)
    assert not isinstance(job, RunResult)
    return MAKE[method](job), job


def outcome(trainer: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    """What was trained, and the losses that were logged."""
    trained = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return trained, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
