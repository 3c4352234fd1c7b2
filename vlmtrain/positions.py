"""Positions in three dimensions (M-RoPE), as the model itself numbers the tokens of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["rope_index"]


def rope_index(net: Any, rows: Mapping[str, Any]) -> torch.Tensor:
    """Position of each token, ``[3, R, T]``: time, height and width.

    Paper: Qwen2-VL, https://arxiv.org/abs/2409.12191, section 2.1.

    Args:
        net: a model with ``get_rope_index`` in its ``model``.
        rows: ``input_ids``, ``attention_mask`` and, where there are images, ``mm_token_type_ids`` ``[R, T]`` and
            ``image_grid_thw`` ``[images of all rows, 3]``.
    """
    import torch

    ids = rows["input_ids"]
    if rows.get("image_grid_thw") is None:
        return torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
    found, _ = net.model.get_rope_index(
        ids,
        mm_token_type_ids=rows["mm_token_type_ids"],
        image_grid_thw=rows["image_grid_thw"],
        attention_mask=rows["attention_mask"],
    )
    index: torch.Tensor = found
    return index
