"""The one place that touches private names of TRL and transformers; a test fails when one of them moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["image_tokens"]


def image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """How many tokens take the place of each image's placeholder, without looking at a pixel.

    Args:
        processor: a multimodal processor with its size settings.
        sizes: (width, height) of each image in pixels.
    """
    counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
    return [int(count) for count in counts["num_image_tokens"]]
