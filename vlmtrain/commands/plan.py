"""``vlmtrain plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["plan"]


@click.command()
@click.option("--method", help="sft, dpo, kto or classify. [the recipe's, or sft]")
@click.option("--model", help="Packaged name, vlmtrain:tiny, a model folder or a hub id.")
@click.option("--params", metavar="N", help="Number of parameters, like 8e9 or 8B, if that is all you know.")
@click.option("--recipe", help="Recipe to start from; see vlmtrain recipes.")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Converted dataset; may be repeated.")
@click.option("--dtype", help="Base in auto, float32, bfloat16, float16. [auto]")
@click.option("--quantize", help="Base in fewer bits: none, 8bit, 4bit. [none]")
@click.option("--tuner", help="lora, dora, loha, lokr, adalora, or full fine-tuning. [lora]")
@click.option("--lora-r", type=int, help="Rank. [16]")
@click.option("--parts", help="What is trained: PART[,PART]:KIND[,KIND]. [language:attention,mlp]")
@click.option("--target-modules", help="Module names instead of parts; all-linear is every linear layer.")
@click.option("--batch-size", type=int, help="Rows (dpo: pairs) per device. [4]")
@click.option("--checkpointing/--no-checkpointing", "gradient_checkpointing", default=None, help="Recompute. [GPU: on]")
@click.option("--max-image-tokens", type=int, help="Most tokens one image may take.")
@click.option("--length", type=int, help="Tokens of a row, images too. [its images and 512]")
@click.option("--answer", type=int, help="How many of them are learned. [128]")
@click.option("--images", type=int, help="Images of a row. [1]")
@click.option("--image-size", metavar="WxH", help="Pixels of an image. [640x480]")
@click.option("--reference", help="precompute, live, or copy: a second model, which is never needed. [precompute]")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", help="What it is to run on. [cuda]")
@click.option("--rule-of-thumb", is_flag=True, help="Parameters times bytes alone, as the blog posts count.")
@click.option("--quick", is_flag=True, help="No advice about cards and knobs.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any other key; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON.")
def plan(as_json: bool, quick: bool, image_size: str | None, **flags: Any) -> None:
    """Memory by item and tokens of images, before anything is loaded or downloaded.

    \b
    Examples:
      vlmtrain plan --model idefics2-8b --method dpo --target-modules all-linear
      vlmtrain plan --recipe qwen2vl-ocr --data shards/plates
      vlmtrain plan --params 8e9 --method dpo --tuner full --dtype float32 \\
        --reference copy --rule-of-thumb
    """  # noqa: D301
    import json

    from rich.console import Console

    from vlmtrain.plan import plan as make

    errors = Console(stderr=True)
    with errors.status("building the model without its weights", spinner="dots") as status:
        found = make(
            **flags,
            image_size=_size(image_size),
            advice=not quick,
            step=lambda what: status.update(f"rehearsing {what}"),
        )
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    from vlmtrain.planning.show import show

    show(found, Console(width=min(100, Console().width)))


def _size(text: str | None) -> tuple[int, int] | None:
    from vlmdata.errors import ConfigError

    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and 0 < int(width) <= 20000 and 0 < int(height) <= 20000):
        raise ConfigError(f"--image-size is {text!r}, expected WIDTHxHEIGHT in pixels like 640x480, at most 20000")
    return int(width), int(height)
