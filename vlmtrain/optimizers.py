"""Optimizers that need bitsandbytes, and what stands in for them where it is not installed."""

from __future__ import annotations

import dataclasses

from vlmdata.errors import DependencyError
from vlmtrain.config import Config
from vlmtrain.keys import BITSANDBYTES

__all__ = ["available"]

# They are AdamW with a smaller or a paged state; Lion has no twin in torch.
_TWINS = {"adamw_8bit": "adamw", "paged_adamw": "adamw", "paged_adamw_8bit": "adamw"}


def available(config: Config) -> tuple[Config, str]:
    """A configuration whose optimizer is installed, and one line where it is another than the recipe's.

    A recipe asks for 8-bit states to save memory; without bitsandbytes it is followed with whole ones. Who names the
    optimizer himself gets that one, or none.

    Raises:
        DependencyError: an optimizer of bitsandbytes, which is not there, was asked for or has no twin.
    """
    wanted = config.training.optimizer
    if wanted not in BITSANDBYTES:
        return config, ""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        missing = DependencyError("bitsandbytes", "quant", f"optimizer {wanted}")
        if "optimizer" in config.asked or wanted not in _TWINS:
            raise missing from None
        twin = _TWINS[wanted]
        training = dataclasses.replace(config.training, optimizer=twin)
        says = f"optimizer {wanted} needs bitsandbytes, which is not installed: {twin} instead"
        return dataclasses.replace(config, training=training), says
    return config, ""
