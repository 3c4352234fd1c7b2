"""Floating point operations that a training step needs, whoever does it; and how many a device can do.

Counted are multiplications and additions of matrix products. Of one step:

- language model, for each token: 2 x weights forward; the same again backward, through weights that are not trained;
  in DPO the same once more for the reference. Tokens that rows have in common (a pair's picture and prompt) count once.
- attention, for each pair of tokens that see each other: 4 x width x layers forward, twice that backward.
- LM head, for each token of an answer: 2 x hidden x words, as often as the language model.
- LoRA: 6 x its weights for each token.
- tower and projector, once for each picture: 2 x weights for each patch, and attention; no backward, they are frozen.

What is recomputed (gradient checkpointing) or computed twice is not needed, so it does not count: this is model FLOP
utilisation, where the same needs done in less time give a higher share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_shapes import Shape

__all__ = ["matmul_rate", "needed"]


def needed(net: Any, shape: Shape, method: str, prompts: Sequence[int], answers: Sequence[int]) -> float:
    """Operations of one step.

    Args:
        net: the transformers model with its LoRA.
        shape: of the model; every row shows one picture.
        method: ``sft`` or ``dpo``.
        prompts: tokens of each row before its answer, the picture's too; of DPO the chosen rows, then the rejected.
        answers: tokens of each row's answer.
    """
    text = net.config.get_text_config()
    layers = text.num_hidden_layers
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    linear = _size(net, lambda name: ".layers." in name and "lora_" not in name, language=True)
    adapter = _size(net, lambda name: "lora_" in name)
    tokens, seen, pictures = _tokens(method, prompts, answers)
    reference = 1 if method == "dpo" else 0
    operations: float = 2.0 * linear * tokens * (2 + reference)
    operations += 4.0 * width * layers * seen * (3 + reference)
    operations += 2.0 * text.hidden_size * text.vocab_size * sum(answers) * (2 + reference)
    operations += 6.0 * adapter * tokens
    operations += pictures * _tower(net, shape)
    return operations


def _tokens(method: str, prompts: Sequence[int], answers: Sequence[int]) -> tuple[int, int, int]:
    """Tokens, pairs of them that see each other, pictures."""
    if method == "sft":
        lengths = [begin + rest for begin, rest in zip(prompts, answers, strict=True)]
        return sum(lengths), sum(_triangle(length) for length in lengths), len(lengths)
    pairs = len(prompts) // 2
    seen = sum(_triangle(begin) for begin in prompts[:pairs])
    seen += sum(begin * rest + _triangle(rest) for begin, rest in zip(prompts, answers, strict=True))
    return sum(prompts[:pairs]) + sum(answers), seen, pairs


def _tower(net: Any, shape: Shape) -> float:
    """Operations of one picture."""
    vision = net.config.vision_config
    patches = ((getattr(vision, "image_size", None) or shape.side) // vision.patch_size) ** 2
    layers = getattr(vision, "num_hidden_layers", None) or vision.depth
    whole = getattr(vision, "fullatt_block_indexes", None)
    seen = layers * patches**2
    if whole is not None:
        # The others look through windows.
        window = (vision.window_size // vision.patch_size) ** 2
        seen = len(whole) * patches**2 + (layers - len(whole)) * patches * min(window, patches)
    eyes = _size(net, lambda name: "position_embedding" not in name and not _projects(name), language=False)
    projector = _size(net, _projects, language=False)
    tiles: float = shape.tiles * (2.0 * eyes * patches + 4.0 * vision.hidden_size * seen)
    tiles += 2.0 * projector * shape.image_tokens
    return tiles


def _projects(name: str) -> bool:
    return any(part in name for part in ("merger", "connector", "multi_modal_projector"))


def _size(net: Any, wanted: Any, *, language: bool | None = None) -> int:
    """Weights of the matrices that are wanted, of the language model or of what is not."""
    found = 0
    for name, weight in net.named_parameters():
        in_text = any(part in name for part in ("language_model.", "text_model.", "lm_head"))
        if weight.ndim > 1 and (language is None or language == in_text) and wanted(name):
            found += weight.numel()
    return found


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def matmul_rate(device: str, dtype: str, size: int) -> float:
    """Operations a second of dense square products, the best of five turns of ten.

    Args:
        device: cuda or cpu.
        dtype: of the numbers, as torch calls it.
        size: rows and columns.
    """
    import torch

    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best = 0.0
    for _ in range(5):
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 10 * 2.0 * size**3 / (time.perf_counter() - began))
    return best
