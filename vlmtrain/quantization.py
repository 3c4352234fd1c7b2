"""Bases in 8 or 4 bits, through bitsandbytes.

Papers: LLM.int8 https://arxiv.org/abs/2208.07339, QLoRA https://arxiv.org/abs/2305.14314.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError, DependencyError
from vlmtrain.family import PARTS

if TYPE_CHECKING:
    from vlmtrain.family import Family

__all__ = ["QUANTIZE", "check_bits", "keep_layout", "keep_scales", "quantized"]

QUANTIZE = ("none", "8bit", "4bit")


def check_bits(quantize: str, parts: tuple[str, ...]) -> None:
    """Refuse what cannot be loaded.

    Raises:
        ConfigError: unknown bits or parts.
        DependencyError: bits without bitsandbytes.
    """
    if quantize not in QUANTIZE:
        raise ConfigError(f"no quantization {quantize!r}; valid: {', '.join(QUANTIZE)}")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(f"quantize_parts is {', '.join(parts) or 'empty'}; valid: {', '.join(PARTS)}")
    if quantize != "none":
        try:
            import bitsandbytes  # noqa: F401

            # It tells of every layer that 8-bit products are made in 16 bits.
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        except ImportError:
            raise DependencyError("bitsandbytes", "quant", f"--quantize {quantize}") from None


def quantized(quantize: str, parts: tuple[str, ...], family: Family, config: Any, device: str) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` that load a base in fewer bits.

    The LM head, its tied embedding and a classifier head always keep their type. So do vision tower and projector
    unless they are asked for: they are a few percent of the weights, and rounding them costs the model its eyes
    (https://unsloth.ai/blog/dynamic-4bit shows Qwen2-VL-2B naming things that are not there).

    Args:
        quantize: ``8bit``, ``4bit`` or ``none``, which gives nothing.
        parts: parts of the model to quantize.
        family: of the model.
        config: the model's configuration; its modules are named from an empty model.
        device: where the model goes.
    """
    if quantize == "none":
        return {}
    import torch
    import transformers

    skip = _kept(parts, family, config)
    if quantize == "8bit":
        bits = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    else:
        half = torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported(False) else torch.float16
        bits = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32 if device == "cpu" else half,
            llm_int8_skip_modules=skip,
        )
    return {"quantization_config": bits, "device_map": {"": device}}


def keep_layout(model: Any) -> None:
    """Leave 4-bit weights in the layout whose products have a gradient.

    upstream bug: on CPUs with AVX512-BF16, bitsandbytes 0.50 packs them anew at the first forward in evaluation mode;
    what is computed in training from then on passes no gradient through them, and nothing is said.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def keep_scales(model: Any) -> None:
    """Leave 8-bit weights on a CPU the scales they were rounded by.

    upstream bug: DoRA asks for whole weights in every forward, and on a CPU peft 0.21 then puts a copy of the rounded
    ones in their place, without scales (``peft.utils.integrations.dequantize_module_weight``). bitsandbytes takes what
    it finds there for weights it has not seen yet, and the forward after the next one fails.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt" and module.weight.device.type == "cpu":
            module.register_forward_pre_hook(_with_scales)


def _with_scales(module: Any, inputs: Any) -> None:
    if module.weight.CB is not None and module.weight.SCB is None:
        module.weight.SCB = module.state.SCB


def _kept(parts: tuple[str, ...], family: Family, config: Any) -> list[str]:
    """Full names of the linear layers that keep their type; transformers takes them as regular expressions."""
    import re

    import torch
    import transformers

    from vlmtrain.parts import parts_of

    with torch.device("meta"):
        empty = getattr(transformers, family.auto_class).from_config(config)
    names = [name for name, _ in empty.named_modules()]
    heads = [empty.get_output_embeddings()]
    kept = [name for name, module in empty.named_modules() if any(module is head for head in heads if head is not None)]
    kept += [family.head] if family.head else []
    linear = [name for name, module in empty.named_modules() if isinstance(module, torch.nn.Linear)]
    kept += [name for name, part in parts_of(linear, family, names).items() if part not in parts]
    return [f"^{re.escape(name)}$" for name in dict.fromkeys(kept)]
