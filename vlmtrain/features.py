"""Image features made once for several copies of the rows they belong to: chosen and rejected answers, say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["image_features", "repeat_rows"]


def image_features(net: Any, seen: Mapping[str, Any], copies: int) -> dict[str, Any]:
    """What a model's forward takes instead of pixels: ``mm_encoder_outputs`` of transformers.

    Args:
        net: the transformers model.
        seen: what its ``get_image_features`` takes.
        copies: of the rows.
    """
    return {"mm_encoder_outputs": {"image": _repeated(net.get_image_features(**seen, return_dict=True), copies)}}


def repeat_rows(pixels: Mapping[str, torch.Tensor], copies: int) -> dict[str, torch.Tensor]:
    """Pixel inputs for that many copies of their rows, one copy after the other."""
    import torch

    return {key: torch.cat([value] * copies) for key, value in pixels.items()}


def _repeated(features: Any, copies: int) -> Any:
    """Features of ``get_image_features`` for that many copies of its images: one tensor, or one per image or row."""
    import torch

    def images(found: Any) -> Any:
        return torch.cat([found] * copies) if isinstance(found, torch.Tensor) else [*found] * copies

    features.pooler_output = images(features.pooler_output)
    if (layers := getattr(features, "deepstack_features", None)) is not None:
        features.deepstack_features = [images(layer) for layer in layers]
    return features
