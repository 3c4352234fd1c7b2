"""``vlmtrain sft``."""

from __future__ import annotations

from typing import Any

import click

from vlmtrain.commands.training import run_training, training_options

__all__ = ["sft"]


@click.command()
@training_options
def sft(**flags: Any) -> None:
    """Supervised fine-tuning on conversations.

    \b
    Examples:
      vlmtrain sft --data shards/plates --model Qwen/Qwen2-VL-2B-Instruct --out runs/plates
      vlmtrain sft --data shards/shapes --model vlmtrain:tiny --out runs/a --set warmup=0.1
    """  # noqa: D301
    from vlmtrain.sft import train

    run_training(train, flags)
