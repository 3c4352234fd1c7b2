"""LoRA's product added where the base's is computed, instead of in three passes over the result.

peft computes ``result + B(A(x)) * scale`` (``peft.tuners.lora.layer.Linear``), whose product, scaling and sum write a
tensor of the size of the layer's result each, forward and backward, though the rank is small. Here the scale is applied
to the ``[N, r]`` in between, and both products end in the same tensor. The numbers are the same but for rounding: in
16 bits one rounding where there were three.

Whatever is not plain LoRA on a plain linear layer goes through peft's own forward, call by call.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from vlmtrain.job import Job

__all__ = ["fuse", "fuse_products"]


class _Product(torch.autograd.Function):
    """``x W' + b + s x A' B'`` of ``x`` ``[N, in]``, where W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        scaled = (x @ down.T).mul_(scale)
        result = torch.nn.functional.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, down, up, scaled)
        ctx.scale = scale
        return result.addmm_(scaled, up.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, down, up, scaled = ctx.saved_tensors
        of_scaled = (grad @ up).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ weight).addmm_(of_scaled, down)
        return of_x, None, None, of_scaled.T @ x, grad.T @ scaled, None


def fuse(net: Any) -> int:
    """Let plain LoRA layers of a model compute their result at once; returns how many there are.

    Args:
        net: a model with a peft adapter in it; names of its modules and weights stay.
    """
    layers = [layer for layer in net.modules() if type(layer) is Linear and type(layer.base_layer) is torch.nn.Linear]
    plain = [layer for layer in layers if not layer.lora_variant]
    for layer in plain:
        layer.forward = types.MethodType(_forward, layer)
    return len(plain)


def fuse_products(trainer: Any, job: Job) -> None:
    """Do so for a trainer that is prepared, if it is wanted; a word of why, where it cannot be.

    Args:
        trainer: behind ``TrainerSeam``.
        job: what it was made from.
    """
    settings = job.config.training
    adapter = getattr(trainer.model, "peft_config", {}).get("default")
    if not settings.fused_lora or (adapter is None and "fused_lora" not in job.config.asked):
        return
    reason = None
    types_differ = job.device == "cpu" and job.loaded.model.dtype != torch.float32
    if adapter is None or adapter.peft_type != "LORA":
        # Other tuners have no product of that kind: no news, unless it was asked for.
        reason = "there is no LoRA" if "fused_lora" in job.config.asked else None
    elif types_differ:
        reason = "base and adapter differ in type, without autocast"
    elif trainer.is_sharded:
        reason = "processes hold the weights in parts"
    elif settings.compile:
        reason = "what is compiled is fused anyway"
    elif any(getattr(module, "p", 0.0) for name, module in trainer.model.named_modules() if ".lora_dropout." in name):
        reason = "with lora_dropout it sees less than the base"
    elif not fuse(trainer.model):
        reason = "none is plain LoRA on a plain linear layer"
    if reason:
        job.reporter.say(f"LoRA's product is peft's own: {reason}")


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    weights = None if args or kwargs else _weights(layer, x)
    if weights is None:
        plain: torch.Tensor = Linear.forward(layer, x, *args, **kwargs)
        return plain
    kind, down, up, scale = weights
    base = layer.base_layer
    bias = None if base.bias is None else base.bias.to(kind)
    with torch.autocast(x.device.type, enabled=False):
        rows = x.to(kind).reshape(-1, x.shape[-1])
        result: torch.Tensor = _Product.apply(rows, base.weight.to(kind), bias, down.to(kind), up.to(kind), scale)
    return result.view(*x.shape[:-1], result.shape[-1])


def _weights(layer: Any, x: torch.Tensor) -> tuple[torch.dtype, torch.Tensor, torch.Tensor, float] | None:
    """Type of the products, the adapter's two matrices, its scale; None where this is not the plain case."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or active[0] not in layer.lora_A:
        return None
    (name,) = active
    down, up, base = layer.lora_A[name], layer.lora_B[name], layer.base_layer
    dropout = layer.lora_dropout[name]
    if name in layer.lora_variant or layer.fan_in_fan_out or up.bias is not None or base.weight.requires_grad:
        return None
    if (base.bias is not None and base.bias.requires_grad) or any(map(_is_watched, (base, down, up))):
        return None
    if dropout.training and getattr(dropout, "p", 0.0) > 0:
        return None
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
    elif {base.weight.dtype, down.weight.dtype, up.weight.dtype} == {x.dtype}:
        kind = x.dtype
    else:
        return None
    return kind, down.weight, up.weight, layer.scaling[name]


def _is_watched(module: torch.nn.Module) -> bool:
    """Whether somebody has hooks on a module, or has given it another forward."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
