"""One side's training steps for ``benchmarks.gpu``: a real run of its trainer, looked at from a callback."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.counting import count
from benchmarks.gpu_flops import needed
from benchmarks.gpu_setting import WORKS, Setting
from benchmarks.trainers import gpu_path, ours, same_weights, theirs

__all__ = ["forget_peak", "now", "peak", "train"]

LORA = {"r": 16, "lora_alpha": 32}


def train(setting: Setting, folder: Path) -> dict[str, Any]:
    """Train with a learning rate of 0, so that the loss of every step can be compared.

    The last step is not timed: its operations are counted.

    Args:
        setting: what to do.
        folder: of model and data, see ``benchmarks.gpu_work.make``.

    Returns:
        Of the timed steps, in order: ``seconds`` from a batch on the device to the end of the optimizer's step,
        ``whole_seconds`` with the making of batches, ``losses``, ``gradients`` (their norms). Of one step: ``tokens``
        of its rows, ``lm_tokens`` and ``tower_images`` that were run, operations ``needed`` and ``done`` (those
        torch knows of: kernels of Triton are left out; None with ``not_counted`` why). ``peak_bytes``; with the
        reference asked beforehand ``reference_seconds`` of it for the rows of one step, else 0.
    """
    import tempfile

    from vlmtrain.model import quiet
    from vlmtrain.trl_seam import compact_lm_head

    with tempfile.TemporaryDirectory(dir=folder) as out:
        asked: list[float] = []
        with _reference_timed(setting, asked):
            trainer = (_theirs if setting.side == "trl" else _ours)(setting, folder, Path(out))
        same_weights(trainer.model)
        clock = _clock(setting.device)
        trainer.add_callback(clock)
        figures: dict[str, Any] = {}
        _count_last(trainer, setting, figures)
        forget_peak(setting.device)
        # TRL's way on GPUs; on a CPU it would project every token.
        with quiet(), gpu_path() if setting.side == "trl" else compact_lm_head():
            trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    timed = slice(setting.warm, setting.warm + setting.steps)
    return {
        "seconds": clock.steps[timed],
        "whole_seconds": clock.wholes[timed],
        "losses": [entry["loss"] for entry in history][timed],
        "gradients": [entry["grad_norm"] for entry in history][timed],
        "peak_bytes": peak(setting.device),
        "reference_seconds": asked[-1] / setting.all_steps if asked else 0.0,
        **figures,
    }


def _ours(setting: Setting, folder: Path, out: Path) -> Any:
    from torch.utils.data import SequentialSampler

    method, data, checkpointing = WORKS[setting.work]
    options: dict[str, Any] = {
        "batch_size": setting.batch,
        "lora_r": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "gradient_checkpointing": checkpointing,
        "learning_rate": 0.0,
        "max_steps": setting.all_steps,
    }
    if method == "dpo":
        before = setting.side == "vlmtrain-once"
        options |= {"reference": "precompute" if before else "live", "reference_cache": False}
    sets = ["logging_steps=1", "save_steps=100000", *setting.sets]
    trainer = ours(method, folder / "model", folder / data, out, options=options, sets=sets)

    class InOrder(SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            """The same order in every epoch."""

    trainer.sampler = InOrder(trainer.train_dataset)
    return trainer


def _theirs(setting: Setting, folder: Path, out: Path) -> Any:
    method, data, checkpointing = WORKS[setting.work]
    arguments = {
        "per_device_train_batch_size": setting.batch,
        "max_steps": setting.all_steps,
        "learning_rate": 0.0,
        "use_cpu": setting.device == "cpu",
        "bf16": setting.device != "cpu" and setting.dtype == "bfloat16",
        "gradient_checkpointing": checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    family = setting.shape.config["model_type"]
    trainer = theirs(method, folder / "model", folder / data, out, family, arguments=arguments, lora=LORA)
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


@contextlib.contextmanager
def _reference_timed(setting: Setting, seconds: list[float]) -> Any:
    """Time asking the reference beforehand, the second time it is done: the first compiles and warms up."""
    if setting.side != "vlmtrain-once":
        yield
        return
    dpo: Any = importlib.import_module("vlmtrain.dpo")
    plain: Callable[..., Any] = dpo.precompute

    def timed(trainer: Any, job: Any) -> Any:
        plain(trainer, job)
        (job.folder.checkpoints / "reference.json").unlink()
        began = time.perf_counter()
        found = plain(trainer, job)
        seconds.append(time.perf_counter() - began)
        return found

    dpo.precompute = timed
    try:
        yield
    finally:
        dpo.precompute = plain


def _clock(device: str) -> Any:
    """A callback with ``steps`` and ``wholes``, the seconds of each step without and with the making of its batch."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[float] = []
            self.wholes: list[float] = []
            self.ended = self.began = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.ended = now(device)

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = now(device)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended = now(device)
            self.steps.append(ended - self.began)
            self.wholes.append(ended - self.ended)
            self.ended = ended

    return Clock()


def _count_last(trainer: Any, setting: Setting, figures: dict[str, Any]) -> None:
    """Count what the last step does."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counts, plain = count(trainer.model), trainer.training_step

    def step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step < setting.all_steps - 1:
            return plain(model, inputs, *args, **kwargs)
        prompts, answers = _lengths(inputs)
        net = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
        figures["tokens"] = sum(prompts) + sum(answers)
        figures["needed"] = needed(net, setting.shape, WORKS[setting.work][0], prompts, answers)
        counts.update(dict.fromkeys(counts, 0))
        figures["done"] = None
        try:
            with FlopCounterMode(display=False) as operations:
                loss = plain(model, dict(inputs), *args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # The timed steps are done; a kernel that torch cannot look into must not take them along.
            figures["not_counted"] = f"{type(error).__name__}: {error}"
            counts.update(dict.fromkeys(counts, 0))
            loss = plain(model, inputs, *args, **kwargs)
        else:
            # What asked the reference beforehand did that elsewhere.
            if setting.side != "vlmtrain-once":
                figures["done"] = operations.get_total_flops()
        figures.update(counts)
        return loss

    trainer.training_step = step


def _lengths(inputs: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens of each row before its answer, and of its answer."""
    answer = inputs["completion_mask"] if "completion_mask" in inputs else inputs["labels"] != -100
    answers = answer.sum(1).tolist()
    lengths = inputs["attention_mask"].sum(1).tolist()
    return [whole - own for whole, own in zip(lengths, answers, strict=True)], answers


def now(device: str) -> float:
    """Seconds, when all that was begun on the device is done."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: str) -> None:
    """Let :func:`peak` begin anew."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> int:
    """Most bytes that tensors took; without a GPU the most that the process took."""
    import resource

    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
