"""Gemma 3: an image is 256 tokens that see each other; long ones may also be cut into crops ("pan and scan").

Paper:   https://arxiv.org/abs/2503.19786
Weights: https://huggingface.co/google/gemma-3-4b-it

The projector is one bare weight, no linear layer: LoRA has nothing to hold on to. To train it in full, name it in
``modules_to_save: [multi_modal_projector]``.
The processor takes crops into account when it writes an image's tokens, not when it is asked for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vlmtrain.budgets import first_that_fits, replaced_tokens
from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}"
    "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}"
    "{%- if loop.index0 == 1 and messages[0]['role'] == 'system' -%}"
    "{{- messages[0]['content'][0]['text'] + '\\n\\n' -}}"
    "{%- endif -%}"
    "{%- for part in message['content'] -%}"
    "{{- '<start_of_image>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<end_of_turn>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)


def _own_settings(processor: Any) -> None:
    """Let the image processor's settings count.

    upstream bug: the processor's class has defaults for them that are stronger than what was loaded or set.
    """
    images = processor.image_processor
    for key, value in type(processor).images_kwargs.items():
        if getattr(images, key, None) is None:
            setattr(images, key, value)
    processor.images_kwargs = {}


def _crops(width: int, height: int, images: Any) -> int:
    """Crops of an image, after ``pan_and_scan_batched`` of transformers' Gemma3ImageProcessor."""
    long, short = max(width, height), min(width, height)
    least = images.pan_and_scan_min_crop_size
    if not images.do_pan_and_scan or long / short < images.pan_and_scan_min_ratio_to_activate:
        return 0
    number = min(int(long / short + 0.5), long // least)
    number = min(images.pan_and_scan_max_num_crops, max(2, number))
    return number if min(-(-long // number), short) >= least else 0


def _count_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    crops = [_crops(width, height, processor.image_processor) for width, height in sizes]
    known = {number: replaced_tokens(processor, {"num_crops": [number]}) for number in set(crops)}
    return [known[number] for number in crops]


def _set_budget(processor: Any, tokens: int, count: Callable[[int, int], int]) -> None:
    """Take the most crops that still fit, at worst none."""
    images = processor.image_processor
    most = images.pan_and_scan_max_num_crops if images.do_pan_and_scan else 0
    # One crop is none: cutting starts with two.
    numbers = [*range(most, 1, -1), 0]
    costs = ((number, replaced_tokens(processor, {"num_crops": [number]})) for number in numbers)
    chosen = first_that_fits(costs, tokens)
    if chosen:
        images.pan_and_scan_max_num_crops = chosen
    else:
        images.do_pan_and_scan = False


FAMILY = Family(
    name="gemma3",
    model_types=("gemma3",),
    url="https://arxiv.org/abs/2503.19786",
    summary="Gemma 3: SigLIP, 256 tokens an image that see each other, pan and scan",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_tower\..*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
            "mlp": r"(.*\.)?vision_tower\..*\.mlp\.(fc1|fc2)",
        },
        "language": {
            "attention": r"(.*\.)?language_model\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?language_model\..*\.mlp\.(gate_proj|up_proj|down_proj)",
        },
    },
    towers=("model.vision_tower.", "model.multi_modal_projector."),
    casts_pixels=True,
    folds_not="tokens of an image see each other",
    chat_template=_TEMPLATE,
    nested_images=True,
    set_budget=_set_budget,
    count_tokens=_count_tokens,
    prepare_processor=_own_settings,
)
