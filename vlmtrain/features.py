"""Image features made once for several copies of the rows they belong to: chosen and rejected answers, say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["IMAGES", "Images", "Known", "image_features", "repeat_rows", "repeated"]

IMAGES = "image_keys"
"""Key of a batch with its :class:`Images`, where features are kept (``vlmtrain.caches.feature_cache``)."""


@dataclass(frozen=True, slots=True)
class Known:
    """What has to be known of an image to read a text that shows it.

    Attributes:
        replacement: what the processor writes in its place.
        inputs: what the model's forward takes of it besides its features, one entry of each.
        typed: the processor calls the kinds of tokens ``token_type_ids``.
    """

    replacement: str
    inputs: dict[str, torch.Tensor]
    typed: bool


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a batch, in the order of its rows; no container, so that what moves batches leaves it alone.

    Attributes:
        keys: of each, what it is known by.
        fresh: places of those whose pixels the batch has, in the order of the pixels.
        known: of those what is to be known, in the same order.
    """

    keys: list[str]
    fresh: list[int]
    known: list[Known]


def image_features(net: Any, seen: Mapping[str, Any], copies: int) -> dict[str, Any]:
    """What a model's forward takes instead of pixels: ``mm_encoder_outputs`` of transformers.

    Args:
        net: the transformers model.
        seen: what its ``get_image_features`` takes.
        copies: of the rows.
    """
    return {"mm_encoder_outputs": {"image": repeated(net.get_image_features(**seen, return_dict=True), copies)}}


def repeat_rows(pixels: Mapping[str, torch.Tensor], copies: int) -> dict[str, torch.Tensor]:
    """Pixel inputs for that many copies of their rows, one copy after the other."""
    import torch

    return {key: torch.cat([value] * copies) for key, value in pixels.items()}


def repeated(features: Any, copies: int) -> Any:
    """Features of ``get_image_features`` for that many copies of its images: one tensor, or one per image or row."""
    import torch

    def images(found: Any) -> Any:
        return torch.cat([found] * copies) if isinstance(found, torch.Tensor) else [*found] * copies

    features.pooler_output = images(features.pooler_output)
    if (layers := getattr(features, "deepstack_features", None)) is not None:
        features.deepstack_features = [images(layer) for layer in layers]
    return features
