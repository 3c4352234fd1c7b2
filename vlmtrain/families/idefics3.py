"""Idefics3: large images are cut into tiles of a fixed number of tokens, and one picture of the whole is added.

Paper:   https://arxiv.org/abs/2408.12637
Weights: https://huggingface.co/HuggingFaceM4/Idefics3-8B-Llama3
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- message['role'].capitalize() -}}"
    "{{- ':' if message['content'][0]['type'] == 'image' else ': ' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<end_of_utterance>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)


def _set_budget(processor: Any, tokens: int, count: Callable[[int, int], int]) -> None:
    """Take the most tiles a side that still fit, at worst the one picture of the whole alone."""
    images = processor.image_processor
    tile = images.max_image_size["longest_edge"]
    split, size = images.do_image_splitting, images.size
    sides = range(size["longest_edge"] // tile, 0, -1) if split else ()
    for side in sides:
        # A square fills side x side tiles, the most this longest edge can come to.
        images.size = type(size)(longest_edge=side * tile)
        if count(side * tile, side * tile) <= tokens:
            return
    images.size, images.do_image_splitting = size, False
    least = count(tile, tile)
    if least > tokens:
        images.do_image_splitting = split
        raise ConfigError(f"an image takes at least {least} tokens here; --max-image-tokens {tokens} is less")


FAMILY = Family(
    name="idefics3",
    model_types=("idefics3",),
    url="https://arxiv.org/abs/2408.12637",
    summary="Idefics3: SigLIP tiles of a fixed number of tokens, Llama 3",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_model\..*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
            "mlp": r"(.*\.)?vision_model\..*\.mlp\.(fc1|fc2)",
        },
        "projector": {"mlp": r"(.*\.)?connector\.modality_projection\.proj"},
        "language": {
            "attention": r"(.*\.)?text_model\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?text_model\..*\.mlp\.(gate_proj|up_proj|down_proj)",
        },
    },
    towers=("model.vision_model.", "model.connector."),
    chat_template=_TEMPLATE,
    nested_images=True,
    set_budget=_set_budget,
    feature_inputs=("pixel_attention_mask",),
)
