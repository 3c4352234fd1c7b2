"""How a device would run what is called on the meta device: attention kernel, mixed precision, packed weights.

The meta device knows none of them: its attention would build the whole matrix of scores, it has no autocast, and
bitsandbytes has no weights there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Emulation", "backward"]

# What torch.autocast runs in the lower precision, and what it runs in float32, of that which these models call.
# https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
_LOWER = {
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.scaled_dot_product_attention,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
}
_FLOAT32 = {
    functional.layer_norm,
    functional.group_norm,
    functional.softmax,
    functional.log_softmax,
    functional.cross_entropy,
    functional.nll_loss,
    torch.softmax,
    torch.log_softmax,
    torch.exp,
    torch.log,
    torch.pow,
    torch.rsqrt,
    torch.sum,
    torch.cumsum,
    torch.Tensor.softmax,
    torch.Tensor.exp,
    torch.Tensor.log,
    torch.Tensor.pow,
    torch.Tensor.rsqrt,
    torch.Tensor.sum,
    torch.Tensor.cumsum,
}


class Emulation(TorchFunctionMode):
    """Entered around a forward and backward on the meta device."""

    def __init__(self, autocast: torch.dtype | None = None, packed: dict[int, torch.dtype] | None = None) -> None:
        """Say what the device does.

        Args:
            autocast: the lower precision of mixed precision; None is off.
            packed: ``id`` of each weight that is held in fewer bits -> type it is unpacked to for a product.
        """
        super().__init__()
        self.autocast, self.packed = autocast, packed or {}
        # As autocast: a trained weight is cast once in a forward, and its copy kept until the end of that.
        self._casts: dict[int, torch.Tensor] | None = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace what would differ."""
        kwargs = kwargs or {}
        if func is functional.linear and len(args) > 1 and id(args[1]) in self.packed:
            kind = self.packed[id(args[1])]
            x = args[0].to(self.autocast or kind)
            out = _Unpacked.apply(x, args[1], x.dtype)
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return out if bias is None else out + bias.to(out.dtype)
        if self.autocast is not None and func in _LOWER:
            args, kwargs = self._cast(args, self.autocast), self._cast(kwargs, self.autocast)
        elif self.autocast is not None and func in _FLOAT32:
            args, kwargs = self._cast(args, torch.float32), self._cast(kwargs, torch.float32)
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Entered, and torch answers questions about autocast on the meta device instead of refusing them."""
        enabled, kind = torch.is_autocast_enabled, torch.get_autocast_dtype
        places: Any = torch
        places.is_autocast_enabled = lambda *devices: self._on_meta(devices, enabled)
        places.get_autocast_dtype = lambda device: self.autocast if device == "meta" else kind(device)
        try:
            with self:
                yield
        finally:
            places.is_autocast_enabled, places.get_autocast_dtype = enabled, kind

    def forward_is_done(self) -> None:
        """Forget the copies of weights that autocast keeps during a forward."""
        self._casts = None

    def _cast(self, values: Any, kind: torch.dtype) -> Any:
        """Floating tensors in another precision; pixels have numbers and are on no meta device."""
        if isinstance(values, dict):
            return {name: self._cast_one(value, kind) for name, value in values.items()}
        return tuple(self._cast_one(value, kind) for value in values)

    def _cast_one(self, value: Any, kind: torch.dtype) -> Any:
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()) or value.dtype == kind:
            return value
        # What is cast without a graph is no use to a forward that has one.
        if self._casts is None or not torch.is_grad_enabled() or not (value.requires_grad and value.is_leaf):
            return value.to(kind)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(kind)
        return self._casts[id(value)]

    def _on_meta(self, devices: Any, otherwise: Any) -> bool:
        return self.autocast is not None if devices in ((), ("meta",)) else bool(otherwise(*devices))


def backward(loss: torch.Tensor) -> None:
    """``loss.backward()`` with the emulation on; inside the method itself torch switches it off."""
    engine: Any = torch.autograd.Variable._execution_engine
    start = torch.ones_like(loss)
    engine.run_backward((loss,), (start,), False, False, (), allow_unreachable=True, accumulate_grad=True)


class _Unpacked(torch.autograd.Function):
    """A product with a weight that is unpacked each time, forward and backward, and never trained."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        ctx.weight, ctx.kind = weight, kind
        return torch.matmul(x, torch.empty(weight.shape, dtype=kind, device=weight.device).t())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        weight = torch.empty(ctx.weight.shape, dtype=ctx.kind, device=ctx.weight.device)
        return torch.matmul(grads[0].to(ctx.kind), weight), None, None


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """A kernel that keeps queries, keys, values, output and one number per row, as flash and efficient ones do."""
    if attn_mask is not None:
        # Kernels take a mask of numbers, so torch makes one of a mask of truth values.
        same = attn_mask.dtype == query.dtype
        attn_mask = attn_mask if same else torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal and attn_mask is None, attn_mask=attn_mask, scale=scale
    )[0]
    return out
