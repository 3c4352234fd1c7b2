"""LLaVA 1.5: a CLIP tower, a two-layer projector and a Llama; every image takes the same number of tokens.

Paper:   https://arxiv.org/abs/2310.03744
Weights: https://huggingface.co/llava-hf/llava-1.5-7b-hf

``vision_feature_layer`` is -2, so LoRA on the tower's last layer never gets a gradient; that is the architecture.
The chat template below is the Vicuna format of the LLaVA repository; the one published with the converted weights
never writes the end token, which ``vlmtrain.chat`` puts after every answer.
"""

from __future__ import annotations

from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- message['content'][0]['text'] + ' ' -}}"
    "{%- else -%}"
    "{{- 'ASSISTANT: ' if message['role'] == 'assistant' else 'USER: ' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>\\n' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- eos_token if message['role'] == 'assistant' else ' ' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)

FAMILY = Family(
    name="llava",
    model_types=("llava",),
    url="https://arxiv.org/abs/2310.03744",
    summary="LLaVA 1.5: CLIP tower, MLP projector, Llama; fixed number of image tokens",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_tower\..*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
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
)
