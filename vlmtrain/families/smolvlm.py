"""SmolVLM: as Idefics3, small, with fewer tokens a tile.

Paper:   https://arxiv.org/abs/2504.05299
Weights: https://huggingface.co/HuggingFaceTB/SmolVLM-Instruct

Its processor needs the package ``num2words`` (for videos, but it does not load without), and cannot tell the tokens of
an image from its size.
"""

from __future__ import annotations

from vlmtrain.budgets import count_tiles, tile_budget
from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{{- '<|im_start|>' -}}"
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
    name="smolvlm",
    model_types=("smolvlm",),
    url="https://arxiv.org/abs/2504.05299",
    summary="SmolVLM: SigLIP tiles of a fixed number of tokens, SmolLM2",
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
