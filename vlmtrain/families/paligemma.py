"""PaliGemma and PaliGemma 2: SigLIP and Gemma; image and question are read in both directions, the answer is not.

Paper:   https://arxiv.org/abs/2407.07726
Weights: https://huggingface.co/google/paligemma2-3b-mix-448

The format is that of its fine-tuning reference
(https://github.com/google-research/big_vision/blob/main/big_vision/configs/proj/paligemma/README.md): images, BOS,
question, line feed, then the answer with EOS. It knows one turn; further ones follow in the same manner. Everything
from the assistant's first word on is causal (``token_type_ids`` 1), in training as in generation: a question that
comes after an answer may see it, an answer never sees what follows. Several images of one turn stand side by side, as
the reference has them for NLVR2 and short videos.

The processor's call is not used: it demands an image, writes BOS and line feed around whatever it gets, and knows an
answer only as ``suffix``. What it makes of ``suffix`` is what is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmtrain.chat import image_places
from vlmtrain.family import Family

__all__ = ["FAMILY"]

# Images come before BOS; those of turns after the first answer stay with their turn.
_TEMPLATE = (
    "{%- macro images(message) -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}"
    "{%- endmacro -%}"
    "{%- set state = namespace(said=false) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{%- set state.said = true -%}{%- endif -%}"
    "{%- if not state.said -%}{{- images(message) -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- bos_token -}}"
    "{%- set state.said = false -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{%- set state.said = true -%}"
    "{%- elif state.said -%}{{- images(message) -}}{%- endif -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{{- eos_token if message['role'] == 'assistant' else '\\n' -}}"
    "{%- endfor -%}"
)


def _expand(processor: Any, text: str, images: int) -> list[tuple[int, int, str]]:
    piece = processor.image_token * processor.image_seq_length
    return [(start, stop, piece) for start, stop in image_places(processor, text)]


def _complete(processor: Any, batch: Mapping[str, Any], said: Any) -> dict[str, Any]:
    """Token types: 1 from the assistant's first word on.

    upstream bug: TRL's collators leave them 0 all through, and earlier tokens see the answer they are to predict.
    """
    import torch

    places = torch.arange(batch["input_ids"].shape[1])
    return {"token_type_ids": (places >= said[:, None]).long()}


FAMILY = Family(
    name="paligemma",
    model_types=("paligemma",),
    url="https://arxiv.org/abs/2407.07726",
    summary="PaliGemma 1 and 2: SigLIP, Gemma; fixed number of image tokens, prompt read in both directions",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_tower\..*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
            "mlp": r"(.*\.)?vision_tower\..*\.mlp\.(fc1|fc2)",
        },
        "projector": {"mlp": r"(.*\.)?multi_modal_projector\.linear"},
        "language": {
            "attention": r"(.*\.)?language_model\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?language_model\..*\.mlp\.(gate_proj|up_proj|down_proj)",
        },
    },
    towers=("model.vision_tower.", "model.multi_modal_projector."),
    casts_pixels=True,
    folds_not="the prompt is read in both directions",
    chat_template=_TEMPLATE,
    expand=_expand,
    complete=_complete,
    both_ways=True,
)
