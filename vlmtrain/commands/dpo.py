"""``vlmtrain dpo``."""

from __future__ import annotations

from typing import Any

import click

from vlmtrain.commands.training import cache_option, reference_option, run_training, training_options

__all__ = ["dpo"]


@click.command()
@training_options
@cache_option
@reference_option
@click.option("--group-by-image", is_flag=True, default=None, help="Pairs on one image share a batch, and its tokens.")
def dpo(**flags: Any) -> None:
    """Preference training (DPO) on chosen and rejected answers.

    \b
    Examples:
      vlmtrain dpo --data shards/rlaif --model llava-hf/llava-1.5-7b-hf --out runs/dpo
      vlmtrain dpo --data shards/rlaif --adapter runs/sft --out runs/dpo --set beta=0.2
      vlmtrain dpo --data shards/rlaif --adapter runs/sft --out runs/dpo \\
        --group-by-image --batch-size 8
      vlmtrain dpo --data shards/rlaif --model vlmtrain:tiny --out runs/mpo \\
        --set loss_type=sigmoid,bco_pair,sft --set loss_weights=0.8,0.2,1
      vlmtrain dpo --data shards/rlaif --model vlmtrain:tiny --out runs/mdpo \\
        --set image_weight=1 --set anchor_weight=1
    """  # noqa: D301
    from vlmtrain.dpo import train

    run_training(train, flags)
