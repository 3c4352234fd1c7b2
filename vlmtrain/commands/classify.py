"""``vlmtrain classify``."""

from __future__ import annotations

from typing import Any

import click

from vlmtrain.commands.training import run_training, training_options

__all__ = ["classify"]


@click.command()
@training_options
def classify(**flags: Any) -> None:
    """Image classification: LoRA and a new head on labelled pictures.

    \b
    Examples:
      vlmtrain classify --data shards/food/train --eval-data shards/food/test \\
        --model google/vit-base-patch16-224-in21k --out runs/food
      vlmtrain classify --recipe vit-food101 --data shards/food --out runs/food
      vlmtrain classify --data shards/pets --model facebook/dinov2-base \\
        --out runs/pets --eval-fraction 0.1 --set head_only=true
    """  # noqa: D301
    from vlmtrain.classify import train

    run_training(train, flags)


_OTHER = {
    "data": "Converted dataset with labels; may be repeated.",
    "model": "A model folder or a hub id.",
    "adapter": "Run to train further; keeps its head.",
    "batch_size": "Pictures per device. [32]",
    "learning_rate": "Peak learning rate. [1e-3]",
    "lora_alpha": "Scale is alpha / r. [16]",
    "parts": "What is trained besides the head: vision[:attention,mlp]. [vision:attention]",
}
_IDLE = ("quantize", "max_image_tokens")
classify.params = [option for option in classify.params if option.name not in _IDLE]
for option in classify.params:
    if isinstance(option, click.Option):
        option.help = _OTHER.get(str(option.name), option.help)
