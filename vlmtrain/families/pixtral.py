"""Pixtral: a tower for any resolution in LLaVA's frame; one token per patch, one after each row of patches.

Paper:   https://arxiv.org/abs/2410.07073
Weights: https://huggingface.co/mistral-community/pixtral-12b

Its ``model_type`` is LLaVA's; the tower's tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vlmtrain.budgets import first_that_fits
from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{{- eos_token -}}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '[INST]' -}}"
    "{%- if loop.index0 == 1 and messages[0]['role'] == 'system' -%}"
    "{{- messages[0]['content'][0]['text'] + '\\n\\n' -}}"
    "{%- endif -%}"
    "{%- for part in message['content'] -%}{{- '[IMG]' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}"
    "{{- '[/INST]' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def _count_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """After ``get_resize_output_image_size`` of transformers, which also makes images no pixel thin.

    Raises:
        ValueError: an image that would become one.
    """
    patch, longest = processor.patch_size * processor.spatial_merge_size, processor.image_processor.size["longest_edge"]
    counts = []
    for size in sizes:
        ratio = max(1.0, *(side / longest for side in size))
        width, height = (math.floor(side / ratio) for side in size) if ratio > 1 else size
        if not min(width, height):
            raise ValueError(f"nothing is left of it when its longest edge becomes {longest} pixels")
        counts.append((math.ceil(width / patch) + 1) * math.ceil(height / patch))
    return counts


def _set_budget(processor: Any, tokens: int, count: Callable[[int, int], int]) -> None:
    """The longest edge of an image is so many patches that a square of them still fits."""
    images, patch = processor.image_processor, processor.patch_size * processor.spatial_merge_size
    size = images.size
    longest = size["longest_edge"]

    def most(edge: int) -> int:
        images.size = type(size)(longest_edge=edge)
        return count(edge, edge)

    edges = [longest, *range((math.ceil(longest / patch) - 1) * patch, 0, -patch)]
    try:
        longest = first_that_fits(((edge, most(edge)) for edge in edges), tokens)
    finally:
        images.size = type(size)(longest_edge=longest)


FAMILY = Family(
    name="pixtral",
    model_types=("llava",),
    vision_types=("pixtral",),
    url="https://arxiv.org/abs/2410.07073",
    summary="Pixtral: any resolution, one image token per 16 x 16 pixels, Mistral",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_tower\..*\.attention\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?vision_tower\..*\.feed_forward\.(gate_proj|up_proj|down_proj)",
        },
        "projector": {"mlp": r"(.*\.)?multi_modal_projector\.(linear_1|linear_2)"},
        "language": {
            "attention": r"(.*\.)?language_model\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?language_model\..*\.mlp\.(gate_proj|up_proj|down_proj)",
        },
    },
    towers=("model.vision_tower.", "model.multi_modal_projector."),
    casts_pixels=True,
    folds=True,
    chat_template=_TEMPLATE,
    set_budget=_set_budget,
    count_tokens=_count_tokens,
    feature_inputs=("image_sizes",),
)
