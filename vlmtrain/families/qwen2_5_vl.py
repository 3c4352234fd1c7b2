"""Qwen2.5-VL: as Qwen2-VL, with a tower of gated layers that mostly look through windows.

Paper:   https://arxiv.org/abs/2502.13923
Weights: https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct
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
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    url="https://arxiv.org/abs/2502.13923",
    summary="Qwen2.5-VL: any resolution, one image token per 28 x 28 pixels, windowed tower",
    targets={
        "vision": {
            "attention": r"(.*\.)?visual\.blocks\..*\.attn\.(qkv|proj)",
            "mlp": r"(.*\.)?visual\.blocks\..*\.mlp\.(gate_proj|up_proj|down_proj)",
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
