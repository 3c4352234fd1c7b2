"""Idefics3: large images are cut into tiles of a fixed number of tokens, and one picture of the whole is added.

Paper:   https://arxiv.org/abs/2408.12637
Weights: https://huggingface.co/HuggingFaceM4/Idefics3-8B-Llama3
"""

from __future__ import annotations

from vlmtrain.budgets import count_tiles, tile_budget
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
    casts_pixels=True,
    folds=True,
    chat_template=_TEMPLATE,
    nested_images=True,
    set_budget=tile_budget,
    count_tokens=count_tiles,
    feature_inputs=("pixel_attention_mask",),
)
