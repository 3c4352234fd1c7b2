"""What optimizers keep of every trained parameter, and what a step takes for a moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["optimizer_bytes"]

# bitsandbytes keeps states of smaller tensors in 32 bits.
_LEAST_8BIT = 4096
# Optimizer -> (states per parameter, in 8 bits).
_STATES = {
    "adamw": (2, False),
    "adamw_fused": (2, False),
    "adamw_8bit": (2, True),
    "paged_adamw": (2, False),
    "paged_adamw_8bit": (2, True),
    "lion": (1, False),
    "lion_8bit": (1, True),
    "sgd": (0, False),
}


def optimizer_bytes(optimizer: str, trained: Sequence[Any], *, cpu: bool) -> tuple[int, int]:
    """Bytes of the states, and of the temporary tensors of a step.

    AdamW keeps both averages in the parameter's own type; bitsandbytes in 8 bits with a float for every 256 of them,
    or in 32. Adafactor keeps a row and a column of each matrix. On a CPU AdamW makes temporary
    tensors for one parameter at a time; fused, as it always is on a GPU, none.

    Args:
        optimizer: key of ``vlmtrain.keys.OPTIMIZERS``.
        trained: parameters, on any device.
        cpu: whether the step runs there.
    """
    largest = max((p.numel() * p.element_size() for p in trained), default=0)
    if optimizer == "adafactor":
        return sum(_factored(p) for p in trained), 2 * largest
    number, eight = _STATES[optimizer]
    states = 0
    for parameter in trained:
        count = parameter.numel()
        if eight and count >= _LEAST_8BIT:
            states += number * (count + 4 * -(-count // 256))
        elif optimizer in ("adamw", "adamw_fused"):
            states += number * count * parameter.element_size()
        else:
            states += number * count * 4
    return states, 2 * largest if optimizer == "adamw" and cpu else 0


def _factored(parameter: Any) -> int:
    if parameter.dim() < 2:
        return 4 * int(parameter.numel())
    rows, columns = parameter.shape[-2:]
    return 4 * int(parameter.numel() // (rows * columns)) * int(rows + columns)
