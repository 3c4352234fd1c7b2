"""First weights that must be remembered: PiSSA and OLoRA take theirs out of the base, LoftQ makes up for 4 bits.

Papers: PiSSA https://arxiv.org/abs/2404.02948, OLoRA https://arxiv.org/abs/2406.01775, LoftQ
https://arxiv.org/abs/2310.08659.

What such a run learned is B A - B0 A0 on top of the base as it is published. PiSSA and OLoRA runs are therefore saved
as plain LoRA of twice the rank, [A; A0] and [B, -B0], as peft documents it; that adapter needs no changed base.

LoftQ here starts from the base that bitsandbytes has quantized (one iteration of the paper's algorithm, as peft's
``replace_lora_weights_loftq`` does): B0 A0 is the best approximation of rank r of what the rounding took away. The
saved adapter belongs on the same 4-bit base; on the unquantized one, B0 A0 is taken off first, and for that the first
weights lie beside the adapter.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from vlmdata.errors import ConfigError

__all__ = ["LOFTQ", "adapter_weights", "as_plain_lora", "start_from_loftq", "take_off"]

LOFTQ = "loftq.safetensors"
_HALVES = ("lora_A", "lora_B")


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the LoRA matrices of a ``PeftModel``, on the CPU, by the names they are saved under."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    return {key: value.detach().to("cpu", copy=True) for key, value in state.items() if any(h in key for h in _HALVES)}


def as_plain_lora(
    state: dict[str, torch.Tensor], config: Any, initial: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], Any]:
    """What a run with a mutated base learned, as LoRA of twice the rank on the untouched base.

    Args:
        state: the trained adapter, (r, in) for A and (out, r) for B; other weights pass.
        config: its ``LoraConfig``; it is not changed.
        initial: the same matrices before the first step.

    Returns:
        The adapter with (2 r, in) and (out, 2 r), and its configuration.
    """
    plain = {}
    for key, value in state.items():
        if key not in initial:
            plain[key] = value
            continue
        first = initial[key].to(value)
        plain[key] = torch.cat([value, first], dim=0) if "lora_A" in key else torch.cat([value, -first], dim=1)
    config = copy.deepcopy(config)
    config.init_lora_weights = True
    # The scale is alpha / r, or alpha / sqrt(r), and stays what it was.
    config.lora_alpha = config.lora_alpha * (2**0.5 if config.use_rslora else 2)
    config.r *= 2
    return plain, config


def start_from_loftq(model: Any, full: Any) -> None:
    """Set A and B of a fresh adapter to what quantization took away.

    Args:
        model: a ``PeftModel`` on a 4-bit base.
        full: the same base unquantized, on any device.

    Raises:
        ConfigError: no layer with an adapter is quantized.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    found = 0
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
            continue
        base = layer.get_base_layer()
        if type(base).__name__ != "Linear4bit":
            continue
        weight = full.get_submodule(name).weight
        rounded = dequantize_module_weight(base).detach().float()
        lost = weight.detach().to(rounded) - rounded
        u, s, v = torch.linalg.svd(lost, full_matrices=False)
        a, b, rank = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.r["default"]
        root = s[:rank].sqrt()
        with torch.no_grad():
            b.copy_(u[:, :rank] * root)
            a.copy_(root[:, None] * v[:rank] / layer.scaling["default"])
        found += 1
    if not found:
        raise ConfigError("init loftq: none of the layers that are trained is quantized; see parts and quantize_parts")


def take_off(model: Any, folder: Path) -> None:
    """Take LoftQ's first weights off an unquantized base, so that only what was learned is added to it.

    Args:
        model: a ``PeftModel`` with the adapter of ``folder``.
        folder: of an adapter; without ``loftq.safetensors`` nothing happens.
    """
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    if not (folder / LOFTQ).is_file():
        return
    first = load_file(folder / LOFTQ)
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
            continue
        base, key = layer.get_base_layer(), f"base_model.model.{name}"
        if f"{key}.lora_A.weight" not in first or type(base).__name__ == "Linear4bit":
            continue
        delta = first[f"{key}.lora_B.weight"].float() @ first[f"{key}.lora_A.weight"].float()
        with torch.no_grad():
            base.weight -= (layer.scaling["default"] * delta).to(base.weight)
