"""``vlmtrain sft``."""

from __future__ import annotations

from typing import Any

import click

from vlmtrain.commands.training import cache_option, run_training, training_options

__all__ = ["sft"]


@click.command()
@training_options
@cache_option
@click.option("--train-on", help="Tokens with a loss: assistant, completion, all. [assistant]")
@click.option("--group-by-image", is_flag=True, default=None, help="Rows on one image share a batch, and its tokens.")
def sft(**flags: Any) -> None:
    """Supervised fine-tuning on conversations.

    \b
    Examples:
      vlmtrain sft --data shards/plates --model Qwen/Qwen2-VL-2B-Instruct --out runs/plates
      vlmtrain sft --data shards/chats --model vlmtrain:tiny --out runs/a --train-on completion
      vlmtrain sft --data shards/shapes --model vlmtrain:tiny --out runs/a --set weight_by=quality
    """  # noqa: D301
    from vlmtrain.sft import train

    run_training(train, flags)
