"""Qwen3-VL: any resolution, one token per 32 x 32 pixels; features of inner tower layers go into inner text layers.

Paper:   https://arxiv.org/abs/2511.21631
Weights: https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct

The mergers of these inner layers ("DeepStack") belong to the projector, and their features come with the others.
"""

from __future__ import annotations

from vlmtrain.budgets import pixel_budget
from vlmtrain.family import Family
from vlmtrain.positions import rope_index

__all__ = ["FAMILY"]

_TEMPLATE = (
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
    name="qwen3_vl",
    model_types=("qwen3_vl",),
    url="https://arxiv.org/abs/2511.21631",
    summary="Qwen3-VL: any resolution, one image token per 32 x 32 pixels, DeepStack",
    targets={
        "vision": {
            "attention": r"(.*\.)?visual\.blocks\..*\.attn\.(qkv|proj)",
            "mlp": r"(.*\.)?visual\.blocks\..*\.mlp\.(linear_fc1|linear_fc2)",
        },
        "projector": {"mlp": r"(.*\.)?visual\.(merger|deepstack_merger_list\.\d+)\.(linear_fc1|linear_fc2)"},
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
