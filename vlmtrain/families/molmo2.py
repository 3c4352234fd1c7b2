"""Molmo 2: a picture of the whole and overlapping crops, patches pooled by attention; all image tokens see each other.

Report:  https://arxiv.org/abs/2601.10611
Weights: https://huggingface.co/allenai/Molmo2-4B

Image tokens of one row see each other also backwards, across turns: an image that is shown after an answer has read
it, and earlier images read that image. Rows with an image after an answer leak this answer into its own prompt; that is
the architecture. ``vlmdata convert --turns split`` avoids such rows.
Linear layers of the projector are those of its pooling (attention) and of its gated layer (mlp).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from vlmtrain.budgets import first_that_fits
from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{{- bos_token or eos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<|image|>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def _write_start(processor: Any) -> None:
    """Let the template write the first token.

    upstream bug: the processor puts it before a text whose template did not, and counts no character of it.
    """
    start = processor.tokenizer.bos_token or processor.tokenizer.eos_token
    ask = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    if not processor.apply_chat_template(ask, tokenize=False).startswith(start):
        processor.chat_template = "{{ " + json.dumps(start) + " }}" + processor.chat_template


def _set_budget(processor: Any, tokens: int, count: Callable[[int, int], int]) -> None:
    """Take the most crops that still fit, at worst one beside the picture of the whole."""
    images = processor.image_processor
    most = images.max_crops
    margin = sum(images.overlap_margins) * images.patch_size
    window = images.size["height"] - margin

    def tokens_of(crops: int) -> int:
        images.max_crops = crops
        grids = [(rows, crops // rows) for rows in range(1, crops + 1)]
        return max(count(columns * window + margin, rows * window + margin) for rows, columns in grids)

    try:
        most = first_that_fits(((crops, tokens_of(crops)) for crops in range(most, 0, -1)), tokens)
    finally:
        images.max_crops = most


def _repeat(inputs: Mapping[str, Any], copies: int) -> dict[str, Any]:
    """The pooling tells patches by their number among all patches of the batch."""
    import torch

    repeated = {key: torch.cat([value] * copies) for key, value in inputs.items()}
    if "pixel_values" in inputs and "image_token_pooling" in inputs:
        pooling = inputs["image_token_pooling"]
        patches = inputs["pixel_values"].shape[:-1].numel()
        parts = [torch.where(pooling < 0, pooling, pooling + copy * patches) for copy in range(copies)]
        repeated["image_token_pooling"] = torch.cat(parts)
    return repeated


FAMILY = Family(
    name="molmo2",
    model_types=("molmo2",),
    url="https://arxiv.org/abs/2601.10611",
    summary="Molmo 2: overlapping crops, pooled by attention, Qwen 3 or OLMo",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_tower\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?vision_tower\..*\.mlp\.(fc1|fc2)",
        },
        "projector": {
            "attention": r"(.*\.)?multi_modal_projector\.image_pooling_2d\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?multi_modal_projector\.image_projector\.(gate_proj|up_proj|down_proj)",
        },
        "language": {
            "attention": r"(.*\.)?language_model\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?language_model\..*\.mlp\.(gate_proj|up_proj|down_proj)",
        },
    },
    towers=("model.vision_tower.", "model.multi_modal_projector."),
    casts_pixels=True,
    folds_not="image tokens see each other",
    chat_template=_TEMPLATE,
    set_budget=_set_budget,
    feature_inputs=("image_token_pooling", "image_grids"),
    pixel_inputs=("image_num_crops",),
    repeat=_repeat,
    prepare_processor=_write_start,
)
