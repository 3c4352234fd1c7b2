"""LLaVA-NeXT (1.6): a CLIP picture of the whole and up to four tiles, padding cut away, a token after every row.

Blog:    https://llava-vl.github.io/blog/2024-01-30-llava-next/
Weights: https://huggingface.co/llava-hf/llava-v1.6-mistral-7b-hf

``vision_feature_layer`` is -2, so LoRA on the tower's last layer never gets a gradient; that is the architecture.
Processor and model must know the same grids of tiles: a budget takes away the large ones from the processor, and
the model follows. Plain transformers has to be told: ``model.config.image_grid_pinpoints`` is the processor's.
The chat template is the Mistral format of those weights; other sizes were published with others, and their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmtrain.budgets import first_that_fits
from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- '<<SYS>>\\n' + message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- ' ' -}}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{{- eos_token -}}"
    "{%- else -%}"
    "{{- '[INST] ' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>\\n' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- ' [/INST]' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def _set_budget(processor: Any, tokens: int, count: Callable[[int, int], int]) -> None:
    """Take away grids, largest first, until no image comes to more; one tile is the least."""
    images = processor.image_processor
    grids = images.image_grid_pinpoints
    tile = images.crop_size["height"]

    def most(chosen: list[list[int]]) -> int:
        images.image_grid_pinpoints = chosen
        # Nothing of an image in the shape of a grid is padding.
        return max(count(width, height) for height, width in chosen)

    areas = sorted({height * width for height, width in grids}, reverse=True)
    smaller = [[grid for grid in grids if grid[0] * grid[1] <= area] for area in areas]
    try:
        grids = first_that_fits(((chosen, most(chosen)) for chosen in [*smaller, [[tile, tile]]]), tokens)
    finally:
        images.image_grid_pinpoints = grids


def _same_grids(model: Any, processor: Any) -> None:
    model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints


FAMILY = Family(
    name="llava_next",
    model_types=("llava_next",),
    url="https://llava-vl.github.io/blog/2024-01-30-llava-next/",
    summary="LLaVA-NeXT: CLIP tiles of large images, MLP projector, Mistral, Vicuna or Llama 3",
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
    # The token after every row is made by none of the two modules.
    towers=("model.vision_tower.", "model.multi_modal_projector.", "model.image_newline"),
    casts_pixels=True,
    folds=True,
    chat_template=_TEMPLATE,
    set_budget=_set_budget,
    feature_inputs=("image_sizes",),
    prepare_model=_same_grids,
)
