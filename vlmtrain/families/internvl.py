"""InternVL 3: large images are cut into tiles of a fixed number of tokens, and one picture of the whole is added.

Paper:   https://arxiv.org/abs/2504.10479
Weights: https://huggingface.co/OpenGVLab/InternVL3-1B-hf (the "-hf" ones; the others need their authors' code)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmtrain.budgets import first_that_fits
from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<IMG_CONTEXT>\\n' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def _set_budget(processor: Any, tokens: int, count: Callable[[int, int], int]) -> None:
    """Take the most tiles that still fit, at worst the one picture of the whole alone."""
    images = processor.image_processor
    least, most = images.min_patches, images.max_patches
    height, width = images.size["height"], images.size["width"]

    def tokens_of(tiles: int) -> int:
        images.min_patches, images.max_patches = min(least, tiles), tiles
        # A row of tiles is a grid for every number of them.
        return count(tiles * width, height)

    found = most
    try:
        found = first_that_fits(((tiles, tokens_of(tiles)) for tiles in range(most, 0, -1)), tokens)
    finally:
        images.min_patches, images.max_patches = min(least, found), found


FAMILY = Family(
    name="internvl",
    model_types=("internvl",),
    url="https://arxiv.org/abs/2504.10479",
    summary="InternVL 3: InternViT tiles of a fixed number of tokens, Qwen 2.5",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_tower\..*\.attention\.(q_proj|k_proj|v_proj|projection_layer)",
            "mlp": r"(.*\.)?vision_tower\..*\.mlp\.(fc1|fc2)",
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
)
