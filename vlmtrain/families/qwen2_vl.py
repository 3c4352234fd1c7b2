"""Qwen2-VL: a tower for any resolution, one token per 28 x 28 pixels, positions in three dimensions.

Paper:   https://arxiv.org/abs/2409.12191
Weights: https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct
"""

from __future__ import annotations

from vlmtrain.budgets import pixel_budget
from vlmtrain.family import Family
from vlmtrain.positions import rope_index

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


FAMILY = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    url="https://arxiv.org/abs/2409.12191",
    summary="Qwen2-VL: any resolution, one image token per 28 x 28 pixels",
    targets={
        "vision": {
            "attention": r"(.*\.)?visual\.blocks\..*\.attn\.(qkv|proj)",
            "mlp": r"(.*\.)?visual\.blocks\..*\.mlp\.(fc1|fc2)",
        },
        "projector": {"mlp": r"(.*\.)?visual\.merger\.mlp\.(0|2)"},
        "language": {
            "attention": r"(.*\.)?language_model\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?language_model\..*\.mlp\.(gate_proj|up_proj|down_proj)",
        },
    },
    towers=("model.visual.",),
    casts_pixels=True,
    folds=True,
    positions=rope_index,
    chat_template=_TEMPLATE,
    set_budget=pixel_budget,
    feature_inputs=("image_grid_thw",),
)
