"""Dropout that is no module: switched off where a policy is compared with its reference."""

from __future__ import annotations

from typing import Any

__all__ = ["drops", "no_dropout"]


def drops(module: Any) -> str | None:
    """What a module by itself drops at random in training, in a few words; None where it drops nothing."""
    kind = type(module).__name__
    for name, value in vars(module).items():
        rate = "drop" in name or (name == "p" and "Drop" in kind)
        if rate and isinstance(value, float) and value > 0:
            return f"{kind} drops {value:.0%} of its values at random"
    return None


def no_dropout(model: Any) -> None:
    """Set every module's own dropout rates to 0.

    upstream bug: the ``disable_dropout`` of TRL's preference trainers finds ``torch.nn.Dropout`` alone; OPT, for one,
    keeps its rate as a number (0.1 by default), and the first loss of DPO is then not that of equal models.

    Args:
        model: changed in place; its configuration stays as it is.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)
