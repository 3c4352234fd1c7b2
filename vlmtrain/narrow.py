"""Pixels in 16 bits from the worker on, where the tower would make them so before it looks at them.

Half the bytes to hand over, to pin and to copy to the device; the numbers are rounded a little earlier, by the same
rule, so that every loss is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vlmtrain.family import Family
    from vlmtrain.job import Job

__all__ = ["Narrow", "narrowed", "pixel_dtype", "worker_dtype"]

_HALVES = (torch.bfloat16, torch.float16)


class Narrow:
    """A collator whose pixels come in another precision."""

    def __init__(self, collate: Callable[[Sequence[Any]], Mapping[str, Any]], dtype: torch.dtype) -> None:
        """Wrap ``collate``."""
        self.collate, self.dtype = collate, dtype

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The batch of these rows."""
        return narrowed(self.collate(rows), self.dtype)


def narrowed(batch: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A batch with its pixels, all keys that end with ``pixel_values``, in ``dtype``; the rest as it is."""

    def cast(key: str, value: Any) -> Any:
        pixels = key.endswith("pixel_values") and isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if pixels else value

    return {key: cast(key, value) for key, value in batch.items()}


def pixel_dtype(net: Any, family: Family) -> torch.dtype | str:
    """The precision in which a tower first looks at pixels, where that is 16 bits; else why they stay as they are.

    Args:
        net: the transformers model, adapters on it or not.
        family: of the model.
    """
    if not family.casts_pixels:
        return f"{family.name} looks at them as they come"
    kinds = set()
    for name, parameter in net.named_parameters():
        if not name.startswith(family.towers) or not parameter.is_floating_point():
            continue
        # An adapter's own weights are never what pixels are brought to.
        if not (parameter.requires_grad and "lora_" in name):
            kinds.add(parameter.dtype)
    found = {*kinds, net.dtype, getattr(net.base_model, "dtype", net.dtype)}
    if len(found) > 1:
        return "not all weights of the vision tower have one precision"
    (only,) = found
    return only if only in _HALVES else f"the vision tower's weights are {str(only).removeprefix('torch.')}"


def worker_dtype(trainer: Any, job: Job) -> torch.dtype | None:
    """The precision in which workers hand pixels over; None as the processor makes them, which a 16-bit run is told.

    Args:
        trainer: behind ``TrainerSeam``.
        job: what it was made from.
    """
    found = pixel_dtype(trainer.net, job.loaded.family)
    if isinstance(found, torch.dtype):
        return found
    if job.loaded.model.dtype in _HALVES:
        job.reporter.say(f"pixels come from the workers in 32 bits: {found}")
    return None
