"""``vlmtrain``: shards to adapters, adapters to models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vlmdata.command import ErrorGroup

__all__ = ["dpo", "main", "merge", "recipes", "sft"]

_FOLDER = click.Path(path_type=Path)


@click.group(cls=ErrorGroup)
@click.version_option(package_name="vlm-toolkit")
def main() -> None:
    """Fine-tune vision-language models with LoRA."""


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags sft and dpo share; each stands for the configuration key of its name."""
    parts = "PART[,PART]:KIND[,KIND] of vision, projector, language : attention, mlp"
    options = [
        click.option("--data", multiple=True, type=_FOLDER, required=True, help="Converted dataset; may be repeated."),
        click.option("--model", help="vlmtrain:tiny, a model folder or a hub id."),
        click.option("--adapter", help="Run to train further (dpo: also the reference)."),
        click.option("--out", required=True, type=_FOLDER, help="Run folder to write."),
        click.option("--epochs", type=float, help="Passes over the data. [1]"),
        click.option("--max-steps", type=int, help="Stop after so many optimizer steps."),
        click.option("--batch-size", type=int, help="Rows (dpo: pairs) per device. [4]"),
        click.option("--accumulate", type=int, help="Batches per optimizer step. [1]"),
        click.option("--learning-rate", type=float, help="Peak learning rate. [sft 2e-4, dpo 2e-5]"),
        click.option("--lora-r", type=int, help="Rank. [16]"),
        click.option("--lora-alpha", type=float, help="Scale is alpha / r. [32]"),
        click.option("--lora-dropout", type=float, help="Dropout before the adapter. [0]"),
        click.option("--parts", help=f"What is trained: {parts}. [language:attention,mlp]"),
        click.option("--quantize", help="Base in fewer bits: none, 8bit, 4bit. [none]"),
        click.option("--dtype", help="Base in auto, float32, bfloat16, float16. [auto]"),
        click.option("--max-image-tokens", type=int, help="Most tokens one image may take."),
        click.option("--seed", type=int, help="Of weights, dropout and row order. [0]"),
        click.option("--eval-data", multiple=True, type=_FOLDER, help="Converted dataset to evaluate on."),
        click.option("--eval-fraction", type=float, help="Share of the data held out for evaluation."),
        click.option("--recipe", help="Recipe to start from; see vlmtrain recipes."),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any other key; may be repeated."),
        click.option("--resume", is_flag=True, help="Go on with a run that was stopped."),
        click.option("--overwrite", is_flag=True, help="Replace a run that is there."),
        click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with a model."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_training_options
def sft(**flags: Any) -> None:
    """Supervised fine-tuning on conversations.

    \b
    Examples:
      vlmtrain sft --data shards/plates --model Qwen/Qwen2-VL-2B-Instruct --out runs/plates
      vlmtrain sft --data shards/shapes --model vlmtrain:tiny --out runs/a --set warmup=0.1
    """  # noqa: D301
    from vlmtrain.sft import train

    _train(train, flags)


@main.command()
@_training_options
def dpo(**flags: Any) -> None:
    """Preference training (DPO) on chosen and rejected answers.

    \b
    Examples:
      vlmtrain dpo --data shards/rlaif --model llava-hf/llava-1.5-7b-hf --out runs/dpo
      vlmtrain dpo --data shards/rlaif --adapter runs/sft --out runs/dpo --set beta=0.2
    """  # noqa: D301
    from vlmtrain.dpo import train

    _train(train, flags)


@main.command()
@click.argument("run", type=_FOLDER)
@click.option("--out", required=True, type=_FOLDER, help="Model folder to write.")
@click.option("--model", help="Base, where the adapter does not name it.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model.")
def merge(run: Path, **options: Any) -> None:
    """Merge the adapter RUN into its base: a plain model folder.

    \b
    Example:
      vlmtrain merge runs/plates --out models/plates --dtype bfloat16
    """  # noqa: D301
    from vlmtrain.merge import merge as run_merge

    click.echo(f"{run_merge(run, **options)}: merged model, loads without peft")


@main.command()
@click.argument("words", nargs=-1, metavar="[show] [NAME]")
def recipes(words: tuple[str, ...]) -> None:
    """List the packaged recipes, or show one.

    \b
    Examples:
      vlmtrain recipes
      vlmtrain recipes show qwen2vl-ocr
      vlmtrain sft --recipe qwen2vl-ocr --data shards/plates --out runs/plates
    """  # noqa: D301
    from vlmdata.errors import ConfigError
    from vlmtrain.config import load_recipe, recipe_names, recipe_text

    names = words[1:] if words[:1] == ("show",) else words
    if len(names) > 1 or (words and not names):
        raise ConfigError(f"expected one recipe to show: {', '.join(recipe_names())}")
    if names:
        click.echo(recipe_text(names[0]), nl=False)
        return
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        recipe = load_recipe(name)
        click.echo(f"{name:<{width}}  {recipe.method}  {recipe.summary}")


def _train(train: Callable[..., Any], flags: dict[str, Any]) -> None:
    result = train(**flags)
    figures = result.metrics
    loss = figures["final"].get("loss", figures["loss"])
    more = "".join(f", {key.replace('_', ' ')} {value:.3f}" for key, value in figures["eval"].items() if "loss" in key)
    seconds = f"{figures['train_seconds']:,.0f} s, peak {figures['peak_memory_bytes'] / 2**30:.1f} GiB"
    click.echo(f"{result.out}: {figures['steps']} steps in {seconds}, loss {loss:.3f}{more}")


if __name__ == "__main__":
    main()
