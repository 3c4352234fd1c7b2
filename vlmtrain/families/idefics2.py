"""Idefics2: SigLIP at any aspect ratio, resampled by a perceiver to 64 tokens an image, Mistral.

Paper:   https://arxiv.org/abs/2405.02246
Weights: https://huggingface.co/HuggingFaceM4/idefics2-8b

With ``do_image_splitting`` an image is five: its quarters and the whole. ``image_processor: {do_image_splitting:
false}`` turns that off, and so does ``--max-image-tokens`` where five are too many. The size of an image changes what
it costs the tower, not its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vlmtrain.budgets import first_that_fits
from vlmtrain.chat import image_places
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


def _parts(processor: Any) -> int:
    return 5 if processor.image_processor.do_image_splitting else 1


def _expand(processor: Any, text: str, images: int) -> list[tuple[int, int, str]]:
    """What the processor's call writes: parts between marks, one mark where two images touch, a space before a word.

    upstream bug: the call does not tell where it changed the text, so masks of the assistant's tokens are shifted.
    """
    fake = processor.fake_image_token
    piece = (fake + processor.image_token * processor.image_seq_len) * _parts(processor) + fake
    edits: list[tuple[int, int, str]] = []
    for start, stop in image_places(processor, text):
        touches = bool(edits) and edits[-1][1] == start
        edits.append((start, stop, piece.removeprefix(fake) if touches else piece))
        follows = text[stop : stop + 1]
        if follows and not follows.isspace() and follows != "<":
            edits.append((stop, stop, " "))
    return edits


def _count(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """The processor has no ``_get_num_multimodal_tokens``.

    Raises:
        ValueError: a picture that cannot be cut into quarters.
    """
    parts = _parts(processor)
    if parts > 1 and any(min(size) < 2 for size in sizes):
        raise ValueError("a picture of one pixel's width has no quarters; do_image_splitting: false takes it whole")
    return [parts * processor.image_seq_len + parts + 1] * len(sizes)


def _set_budget(processor: Any, tokens: int, count: Callable[[int, int], int]) -> None:
    images = processor.image_processor
    splitting = images.do_image_splitting
    found: list[tuple[bool, int]] = []
    for split in (True, False) if splitting else (False,):
        images.do_image_splitting = split
        found.append((split, count(64, 64)))
    images.do_image_splitting = splitting
    images.do_image_splitting = first_that_fits(found, tokens)


_LAYERS = r"(.*\.)?connector\.perceiver_resampler\.layers\..*"

FAMILY = Family(
    name="idefics2",
    model_types=("idefics2",),
    url="https://arxiv.org/abs/2405.02246",
    summary="Idefics2: SigLIP at any aspect ratio, perceiver, Mistral; 64 tokens an image, five times that if split",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_model\..*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
            "mlp": r"(.*\.)?vision_model\..*\.mlp\.(fc1|fc2)",
        },
        "projector": {
            "attention": _LAYERS + r"\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": rf"(?:{_LAYERS}\.mlp|(.*\.)?connector\.modality_projection)\.(gate_proj|up_proj|down_proj)",
        },
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
    set_budget=_set_budget,
    expand=_expand,
    count_tokens=_count,
    feature_inputs=("pixel_attention_mask",),
)
