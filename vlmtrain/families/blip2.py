"""BLIP-2 with OPT: a Q-Former asks a ViT 32 questions, their answers stand in front of the text.

Paper:   https://arxiv.org/abs/2301.12597
Weights: https://huggingface.co/Salesforce/blip2-opt-2.7b

The format is that of its reference (https://github.com/salesforce/LAVIS/tree/main/projects/blip2): a caption follows
BOS without any prompt, so a user's turn is then an image alone; a question is ``Question: ... Answer:``, and what was
asked and answered before stands in front of it. Every answer ends with EOS, captions too, or the model does not learn
to stop. One image a row; a row without any is plain OPT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain.chat import add_special_tokens, image_places
from vlmtrain.family import Family

__all__ = ["FAMILY"]

# Images come before BOS; one of a turn after the first answer stays with its turn. A text that already has the form of
# a question stays as it is.
_TEMPLATE = (
    "{%- macro images(message) -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}"
    "{%- endmacro -%}"
    "{%- set state = namespace(said=false, asked=false) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{%- set state.said = true -%}{%- endif -%}"
    "{%- if not state.said -%}{{- images(message) -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- bos_token -}}"
    "{%- set state.said = false -%}"
    "{%- for message in messages -%}"
    "{%- set words -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endset -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- (' ' if state.asked else '') + words + eos_token -}}"
    "{%- set state.said = true -%}{%- set state.asked = false -%}"
    "{%- else -%}"
    "{%- if state.said -%}{{- images(message) -}}{%- endif -%}"
    "{%- if words | trim -%}"
    "{{- '' if loop.first else ' ' -}}"
    "{%- if message['role'] == 'system' or words.startswith('Question:') -%}{{- words -}}"
    "{%- else -%}{{- 'Question: ' + words + ' Answer:' -}}{%- endif -%}"
    "{%- set state.asked = true -%}"
    "{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def _expand(processor: Any, text: str, images: int) -> list[tuple[int, int, str]]:
    """The tokens of the queries, where the template marks the image, else in front of all, BOS included."""
    piece = str(processor.image_token) * processor.num_query_tokens
    places = image_places(processor, text)
    if images and not places:
        lead = processor.tokenizer.decode(processor.tokenizer("")["input_ids"])
        return [(0, 0, piece + (lead if add_special_tokens(processor, text) else ""))]
    return [(start, stop, piece) for start, stop in places]


def _count(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    return [processor.num_query_tokens] * len(sizes)


def _see(processor: Any, images: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """``pixel_values`` ``[images, 3, H, W]``: the model wants some, so a batch of words has one no token looks at."""
    pictures = [picture for row in images for picture in row]
    if pictures:
        return {"pixel_values": processor.image_processor(pictures, return_tensors="pt")["pixel_values"]}
    import torch

    size = processor.image_processor.size
    return {"pixel_values": torch.zeros(1, 3, size["height"], size["width"])}


class _Backbone:
    """The model without its head, which TRL looks for as ``base_model``.

    upstream bug: TRL asks what ``base_model`` gives for ``last_hidden_state``; BLIP-2's is said to be ``blip``, which
    it does not have, so that ``base_model`` is the model itself.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        net = self.model
        seen = mm_encoder_outputs["image"] if mm_encoder_outputs else net.get_image_features(pixel_values)
        words = net.get_input_embeddings()(input_ids)
        places = net.get_placeholder_mask(input_ids, inputs_embeds=words)
        words = words.masked_scatter(places, seen.pooler_output.to(words.device, words.dtype))
        return net.language_model.model(inputs_embeds=words, attention_mask=attention_mask, **kwargs)


def _refuse(config: Any) -> str | None:
    if config.use_decoder_only_language_model:
        return None
    return f"writes with {config.text_config.model_type}, an encoder-decoder; expected a BLIP-2 with OPT"


def _prepare_model(model: Any, processor: Any) -> None:
    if model.config.num_query_tokens != processor.num_query_tokens or model.config.image_token_id is None:
        has = f"{processor.num_query_tokens} query tokens, the model {model.config.num_query_tokens}"
        raise ConfigError(f"the processor has {has}, image token {model.config.image_token_id}: an old conversion")
    model.blip = _Backbone(model)
    # What generates is the language model: it stops where the whole does.
    model.language_model.generation_config = model.generation_config


FAMILY = Family(
    name="blip2",
    model_types=("blip-2",),
    url="https://arxiv.org/abs/2301.12597",
    summary="BLIP-2: ViT, Q-Former, OPT; 32 image tokens, one image a row",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_model\..*\.self_attn\.(qkv|projection)",
            "mlp": r"(.*\.)?vision_model\..*\.mlp\.(fc1|fc2)",
        },
        "projector": {
            "attention": r"(.*\.)?qformer\..*attention\.(attention\.(query|key|value)|output\.dense)",
            "mlp": r"(.*\.)?(qformer\.encoder\.layer\.\d+\.(intermediate|output)(_query)?\.dense|language_projection)",
        },
        "language": {
            "attention": r"(.*\.)?language_model\..*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
            "mlp": r"(.*\.)?language_model\..*\.(fc1|fc2|project_in|project_out)",
        },
    },
    towers=("vision_model.", "query_tokens", "qformer.", "language_projection."),
    casts_pixels=True,
    folds_not="its words are put together before the mask is made",
    chat_template=_TEMPLATE,
    max_images=1,
    expand=_expand,
    see=_see,
    count_tokens=_count,
    refuse=_refuse,
    prepare_model=_prepare_model,
)
