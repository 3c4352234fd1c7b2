"""Bytes that tensors hold, while code runs on the meta device: every storage that lives, and the most there were.

A model on the meta device has shapes and no numbers. Its forward and backward allocate and free exactly what the real
ones would, so the peak is read off, not guessed. Whatever decides by a value (token ids, masks, grids of patches,
pixels) stays real and small; where it meets a tensor without numbers, it loses its own.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["Ledger"]

_INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._unsafe_index_put.default,
}
_MADE = {
    torch.ops.aten.arange.default,
    torch.ops.aten.arange.start,
    torch.ops.aten.arange.start_step,
    torch.ops.aten.full.default,
    torch.ops.aten.ones.default,
    torch.ops.aten.zeros.default,
}
_WHOLE = (torch.bool, torch.int32, torch.int64)


class Ledger(TorchDispatchMode):
    """Keeps the books while it is entered.

    Attributes:
        held: bytes by label, now.
        peak: bytes by label at the moment when their sum was largest.
        most: the largest bytes of each label, whenever that was.
    """

    def __init__(self) -> None:
        """Nothing is held yet."""
        super().__init__()
        self.held: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._label = "activations"
        self._total = self._most = 0
        self._labels: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, on the meta device where one of its tensors is there, and book what it makes."""
        args, kwargs = _on_one_device(func, args, kwargs or {})
        result = func(*args, **kwargs)
        for value in result if isinstance(result, list | tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.book(value)
        return result

    @contextlib.contextmanager
    def label(self, name: str) -> Iterator[None]:
        """What is made inside is booked under that name."""
        before, self._label = self._label, name
        try:
            yield
        finally:
            self._label = before

    def book(self, tensor: torch.Tensor, label: str | None = None) -> None:
        """Count a tensor's storage once; with a label, move it there."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._labels:
            if label is not None and self._labels[key][0] != label:
                old, size = self._labels[key]
                self._labels[key] = (label, size)
                self.held[old] -= size
                self._hold(label, size)
            return
        size = storage.nbytes()
        name = label or self._label
        self._labels[key] = (name, size)
        weakref.finalize(storage, self._free, key)
        self._hold(name, size)
        self._total += size
        if self._total > self._most:
            self._most, self.peak = self._total, self.held.copy()

    def _hold(self, label: str, size: int) -> None:
        self.held[label] += size
        self.most[label] = max(self.most[label], self.held[label])

    def _free(self, key: int) -> None:
        label, size = self._labels.pop(key)
        self.held[label] -= size
        self._total -= size


def _on_one_device(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Real tensors join those on the meta device; masks used as an index become positions first."""
    if func is torch.ops.aten._to_copy.default and args[0].device.type != "meta":
        # Values stay known wherever they are sent.
        return args, {**kwargs, "device": args[0].device}
    if func in _MADE and torch.device(kwargs.get("device") or "cpu").type == "meta" and _whole(args, kwargs):
        # Masks and positions: their values decide.
        return args, {**kwargs, "device": torch.device("cpu")}
    devices = set(_devices((*args, *kwargs.values())))
    if "meta" not in devices or len(devices) == 1:
        return args, kwargs
    if func in _INDEXED:
        args = (args[0], _positions(args[1]), *args[2:])
    moved: tuple[Any, Any] = tree_map_only(torch.Tensor, _to_meta, (args, kwargs))
    return moved


def _whole(args: Any, kwargs: Any) -> bool:
    """Whether a tensor that is made holds whole numbers or truth values; a range of whole numbers does."""
    kind = kwargs.get("dtype")
    return kind in _WHOLE if kind is not None else bool(args) and all(type(value) is int for value in args)


def _devices(values: Any) -> Iterator[str]:
    """Of all tensors among arguments; operations take them bare or in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.device.type
        elif isinstance(value, list | tuple):
            yield from _devices(value)


def _positions(indices: Any) -> list[torch.Tensor | None]:
    found: list[torch.Tensor | None] = []
    for index in indices:
        if index is not None and index.device.type != "meta" and index.dtype in (torch.bool, torch.uint8):
            found += index.nonzero().unbind(1)
        else:
            found.append(index)
    return found


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    # A number without dimensions stands beside tensors of any device, and its value may be needed.
    return tensor if tensor.device.type == "meta" or not tensor.dim() else tensor.to("meta")
