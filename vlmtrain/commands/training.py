"""What the training commands share: their flags, and the line that says how it went."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vlmdata.command import PLACE

__all__ = ["cache_option", "reference_option", "run_training", "training_options"]

_FOLDER = click.Path(path_type=Path)
if "LOCAL_RANK" in os.environ:
    # Each process would tell in three lines that some weights may get no gradient; torch reads this when it is loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags all methods share; each stands for the configuration key of its name."""
    parts = "PART[,PART]:KIND[,KIND] of vision, projector, language : attention, mlp"
    options = [
        click.option("--data", multiple=True, type=PLACE, required=True, help="Converted dataset; may be repeated."),
        click.option("--model", help="vlmtrain:tiny, a model folder or a hub id."),
        click.option("--adapter", help="Run to train further (dpo: also the reference)."),
        click.option("--out", required=True, type=_FOLDER, help="Run folder to write."),
        click.option("--epochs", type=float, help="Passes over the data. [1]"),
        click.option("--max-steps", type=int, help="Stop after so many optimizer steps."),
        click.option("--batch-size", type=int, help="Rows (dpo: pairs) per device. [4]"),
        click.option("--accumulate", type=int, help="Batches per optimizer step. [1]"),
        click.option("--auto-batch", is_flag=True, default=None, help="Halve the batch while it is too large."),
        click.option("--learning-rate", type=float, help="Peak learning rate. [sft 2e-4, dpo 2e-5]"),
        click.option("--lora-r", type=int, help="Rank. [16]"),
        click.option("--lora-alpha", type=float, help="Scale is alpha / r. [32]"),
        click.option("--lora-dropout", type=float, help="Dropout before the adapter. [0]"),
        click.option("--parts", help=f"What is trained: {parts}. [language:attention,mlp]"),
        click.option("--quantize", help="Base in fewer bits: none, 8bit, 4bit. [none]"),
        click.option("--dtype", help="Base in auto, float32, bfloat16, float16. [auto]"),
        click.option("--max-image-tokens", type=int, help="Most tokens one image may take."),
        click.option("--seed", type=int, help="Of weights, dropout and row order. [0]"),
        click.option("--eval-data", multiple=True, type=PLACE, help="Converted dataset to evaluate on."),
        click.option("--eval-fraction", type=float, help="Share of the data held out for evaluation."),
        click.option("--push-to-hub", metavar="ORG/NAME", help="Upload the finished run there."),
        click.option("--recipe", help="Recipe to start from; see vlmtrain recipes."),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any other key; may be repeated."),
        click.option("--resume", is_flag=True, help="Go on with a run that was stopped."),
        click.option("--overwrite", is_flag=True, help="Replace a run that is there."),
        click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with a model."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def cache_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flag of methods whose models read text, for what a frozen tower gives."""
    said = "Keep what a frozen tower gives, over all epochs: off, ram, disk. [off]"
    return click.option("--cache-vision", help=said)(command)


def reference_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flag of methods with a reference, for what it says of rows before training."""
    said = "Keep what the reference says of each row for other runs. [on]"
    return click.option("--reference-cache/--no-reference-cache", default=None, help=said)(command)


def run_training(train: Callable[..., Any], flags: dict[str, Any]) -> None:
    """Train, and print one line; one of several processes speaks for all."""
    from vlmdata.errors import VlmError
    from vlmtrain.distributed import is_first, speaks

    try:
        result = train(**flags)
    except VlmError as error:
        if speaks(str(error)):
            raise
        sys.exit(2)
    if not is_first():
        return
    figures = result.metrics
    loss = figures["final"].get("loss", figures["loss"])
    watched = ("eval_loss", f"eval_{figures['eval_metric']}")
    shown = {key: value for key, value in figures["eval"].items() if key in watched}
    more = "".join(f", {key.replace('_', ' ')} {value:.3f}" for key, value in shown.items())
    seconds = f"{figures['train_seconds']:,.0f} s, peak {figures['peak_memory_bytes'] / 2**30:.1f} GiB"
    click.echo(f"{result.out}: {figures['steps']} steps in {seconds}, loss {loss:.3f}{more}")
