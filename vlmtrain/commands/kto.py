"""``vlmtrain kto``."""

from __future__ import annotations

from typing import Any

import click

from vlmtrain.commands.training import cache_option, reference_option, run_training, training_options

__all__ = ["kto"]


@click.command()
@training_options
@cache_option
@reference_option
def kto(**flags: Any) -> None:
    """Train on good and bad answers that need not come in pairs (KTO).

    Preference data gives a good and a bad answer a row. Messages give one, good or bad as the entry label_by of
    the row's meta says.

    \b
    Examples:
      vlmtrain kto --data shards/rlaif --model Qwen/Qwen2-VL-2B-Instruct --out runs/kto
      vlmtrain kto --data shards/thumbs --adapter runs/sft --out runs/kto --set label_by=liked
    """  # noqa: D301
    from vlmtrain.kto import train

    run_training(train, flags)
