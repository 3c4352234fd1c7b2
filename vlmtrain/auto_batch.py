"""``auto_batch``: a run that does not fit into memory begins again with half the batch and twice the accumulation.

That is what TRL's post on DPO of vision-language models does by hand (https://huggingface.co/blog/dpo_vlm). An
optimizer step has as many rows as before, so learning rate and schedule keep their meaning. A run begins again from
the start: the order of rows depends on the batch, and going on with another one would be a run nobody could repeat;
this way the result is bit for bit that of a run started with the batch that was found. Everything a failed attempt
held is freed before the next.

transformers' ``auto_find_batch_size`` (5.23, with accelerate's ``find_executable_batch_size``) takes a tenth off the
batch and leaves the accumulation, so that steps get smaller and more; goes on with the weights that the failed attempt
left; and never sees the reference pass before training.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlmdata.errors import ConfigError
from vlmtrain import distributed
from vlmtrain.config import Config
from vlmtrain.runs import RunResult

__all__ = ["attempts", "is_out_of_memory", "least_batch", "settled", "smaller"]

Batch = tuple[int, int]
# What torch raises as a plain RuntimeError on a CPU or through a library of the GPU.
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def attempts(begin: Callable[[Batch | None], Any], finish: Callable[[Any], RunResult]) -> RunResult:
    """Run a job; with ``auto_batch`` again and again with a smaller batch while memory does not suffice.

    Args:
        begin: prepares a job, or gives the result of one that is finished; told the batch and accumulation to take,
            None for those of the configuration.
        finish: makes the trainer, trains and writes the result.

    Raises:
        ConfigError: not even one row fits, or a run that is resumed no longer does.
    """
    batch: Batch | None = None
    while True:
        job = begin(batch)
        if isinstance(job, RunResult) or not job.config.training.auto_batch:
            return job if isinstance(job, RunResult) else finish(job)
        config, say, resumed = job.config, job.reporter.say, job.checkpoint is not None
        result, step = _attempt(finish, job)
        if result is not None:
            return result
        del job
        _free()
        now = (config.training.batch_size, config.training.accumulate)
        if resumed:
            raise ConfigError(
                f"out of memory with batch_size {now[0]}, which this run has had so far: free memory and --resume "
                "again, or start anew with --overwrite"
            )
        batch = smaller(*now, least=least_batch(config))
        if batch is None:
            raise ConfigError(
                f"out of memory with batch_size {now[0]}, and there is no smaller one: lower max_image_tokens or "
                "max_length, set gradient_checkpointing=true or quantize; vlmtrain plan shows what each of them saves"
            )
        lost = f" at step {step}" if step else ""
        changed = "" if batch[0] * batch[1] == now[0] * now[1] else f" ({batch[0] * batch[1]} rows a step, not "
        changed += f"{now[0] * now[1]})" if changed else ""
        say(f"memory out of memory{lost} with batch {now[0]} x {now[1]}: again with {batch[0]} x {batch[1]}{changed}")


def _attempt(finish: Callable[[Any], RunResult], job: Any) -> tuple[RunResult | None, int]:
    """The result, or None and the step at which memory ran out."""
    try:
        return finish(job), 0
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        trainer = job.reporter.trainer
        step = trainer.state.global_step if trainer is not None else 0
        # The frames of the failed step hold its tensors.
        traceback.clear_frames(error.__traceback__)
        return None, step


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def smaller(batch: int, accumulate: int, least: int = 1) -> Batch | None:
    """About half the batch at the same number of rows for each optimizer step.

    Where the rows of a step cannot be shared out evenly, the next smaller batch with which they can is taken; where
    there is none, half the batch and a few more rows a step.

    Args:
        batch: rows of a forward.
        accumulate: forwards of a step.
        least: the smallest batch that means anything.

    Returns:
        Batch and accumulation; None when it cannot be smaller.
    """
    rows = batch * accumulate
    for half in range(batch // 2, least - 1, -1):
        if rows % half == 0:
            return half, rows // half
    half = max(least, batch // 2)
    return (half, -(-rows // half)) if half < batch else None


def settled(config: Config, batch: Batch | None, out: Path | None) -> tuple[Config, Batch | None]:
    """The configuration with the batch that is to be tried, and the one that was asked for where that is another.

    Args:
        config: of the run.
        batch: to try; None is that of the configuration, or that which an interrupted run had found.
        out: folder of the run that is to be resumed; None starts a new one.

    Raises:
        ConfigError: more than one process, which cannot all know that one of them has no memory.
    """
    if not config.training.auto_batch:
        return config, None
    if distributed.world() > 1:
        raise ConfigError("auto_batch is for a single process: find the batch with one, then start all of them")
    asked = (config.training.batch_size, config.training.accumulate)
    found = batch or (_found(out, asked) if out is not None else None)
    if found is None or found == asked:
        return config, None
    training = dataclasses.replace(config.training, batch_size=found[0], accumulate=found[1])
    return dataclasses.replace(config, training=training), asked


def _found(out: Path, asked: Batch) -> Batch | None:
    """What an earlier attempt at the same batch ended with."""
    for file in (out / "vlmtrain.json", out / "checkpoints" / "run.json"):
        if file.is_file():
            run = json.loads(file.read_text(encoding="utf-8"))
            if run.get("asked_batch") == list(asked):
                return run["config"]["batch_size"], run["config"]["accumulate"]
    return None


def least_batch(config: Config) -> int:
    """The smallest batch that means anything: KTO's KL term is an average over two rows or more."""
    return 2 if config.unpaired is not None and config.unpaired.loss_type == "kto" else 1


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
