"""What the processes of ``benchmarks.gpu`` do: make models and data, measure the device, train, ask."""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu_setting import Setting

__all__ = ["PRELOAD", "ask", "make", "work"]

# Taken before a process is forked, where there is no GPU that would forbid it.
PRELOAD = ["vlmtrain.dpo", "vlmtrain.sft", "vlmtrain.questions", "vlmeval.models.local", "datasets", "trl", "peft"]
PROMPT, QUESTION = 28, 9
SQUARE = {"cuda": 8192, "cpu": 1024}


def work(setting: Setting, result: Path, log: Path) -> None:
    """Do it, in a process of its own.

    Args:
        setting: what.
        result: a JSON file for the figures, or ``{"error": ...}``.
        log: takes all that is printed.
    """
    sheet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(sheet, sys.stdout.fileno())
    os.dup2(sheet, sys.stderr.fileno())
    try:
        found = _do(setting)
    except Exception as error:
        traceback.print_exc()
        found = {"error": _named(error)}
    result.write_text(json.dumps(found), encoding="utf-8")


def _do(setting: Setting) -> dict[str, Any]:
    folder = Path(setting.folder)
    if setting.work == "rate":
        return {**_machine(setting), **_rate(setting)}
    if setting.work == "make":
        return make(setting, folder)
    if setting.work == "ask":
        return ask(setting, folder)
    from benchmarks.gpu_train import train

    return train(setting, folder)


def _rate(setting: Setting) -> dict[str, Any]:
    """Of large products; what the machine is stands even where they cannot be measured."""
    from benchmarks import gpu_flops

    try:
        return {"rate": gpu_flops.matmul_rate(setting.device, setting.dtype, SQUARE[setting.device])}
    except Exception as error:
        traceback.print_exc()
        return {"error": _named(error)}


def _named(error: Exception) -> str:
    import torch

    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {first}"
    return f"{type(error).__name__}: {first}"


def _machine(setting: Setting) -> dict[str, Any]:
    import platform
    from importlib import metadata

    import torch

    cuda = setting.device == "cuda"
    return {
        "device_name": torch.cuda.get_device_name(0) if cuda else platform.processor() or platform.machine(),
        "device_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
        },
    }


def make(setting: Setting, folder: Path) -> dict[str, Any]:
    """Write ``model``, ``pairs``, ``rows`` and ``pictures`` into a folder; the same on every machine, but the weights.

    Returns:
        ``parameters`` of the model, and ``make_seconds``.
    """
    from benchmarks.ask import write_images
    from benchmarks.gpu_models import make_model, sentence
    from benchmarks.rows import PLACE, shown, text, write_shard

    began = time.perf_counter()
    shape, draws = setting.shape, random.Random(0)
    parameters = make_model(shape, folder / "model", device=setting.device, dtype=setting.dtype)
    pairs, rows = [], []

    def said() -> list[dict[str, Any]]:
        spread = shape.answer // 4
        words = sentence(draws, draws.randint(shape.answer - spread, shape.answer + spread))
        return [{"role": "assistant", "content": [text(words)]}]

    for number in range(2 * setting.pairs * setting.all_steps):
        seen = {**shown(number, shape.side), "id": str(number)}
        asked = [{"role": "user", "content": [PLACE, text(sentence(draws, PROMPT))]}]
        if number < setting.pairs * setting.all_steps:
            pairs.append({**seen, "prompt": asked, "chosen": said(), "rejected": said()})
        rows.append({**seen, "messages": asked + said()})
    write_shard(folder / "pairs", "preference", pairs)
    write_shard(folder / "rows", "messages", rows)
    (folder / "pictures").mkdir()
    # One more, to warm up with.
    write_images(folder / "pictures", setting.pictures + 1, shape.side)
    return {"parameters": parameters, "make_seconds": time.perf_counter() - began}


def ask(setting: Setting, folder: Path) -> dict[str, Any]:
    """One side's answers to yes/no questions.

    Returns:
        ``seconds`` from the first question to the last answer, ``asked`` of them, ``words``, ``yes`` and ``gaps`` as
        :mod:`benchmarks.ask` has them, ``peak_bytes``, ``lm_tokens``, ``tower_images``.
    """
    from benchmarks.ask import OTHERS, ours, theirs
    from benchmarks.counting import count
    from benchmarks.gpu_models import sentence
    from benchmarks.gpu_train import forget_peak, now, peak

    draws = random.Random(0)
    asked = [
        (f"{picture}.png", sentence(draws, QUESTION))
        for picture in range(setting.pictures + 1)
        for _ in range(setting.questions)
    ]
    place: dict[str, Any] = {"device": setting.device}
    if setting.side == "generate":
        nested = "idefics" in setting.shape.config["model_type"]
        size = OTHERS["batched"]
        model, answer = theirs(
            folder / "model", folder / "pictures", setting.new_tokens, size=size, nested=nested, **place
        )
    else:
        way = "logits" if setting.side == "vlmeval" else "generate"
        model, answer = ours(folder / "model", folder / "pictures", setting.new_tokens, way=way, **place)
    warm, timed = asked[-setting.questions :], asked[: -setting.questions]
    answer(warm)
    counts = count(model)
    forget_peak(setting.device)
    began = now(setting.device)
    answers = answer(timed)
    seconds = now(setting.device) - began
    return {"seconds": seconds, "asked": len(timed), "peak_bytes": peak(setting.device), **counts, **answers}
