"""Rows of a batch that show the same images in front of the same text: their images are processed once for all.

What such rows have in common then runs through the model once (``vlmtrain.sharing``). Whether they are in one batch is
a matter of the order (``vlmtrain.image_order``); rows whose question stands before the image have nothing in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vlmtrain.chat import image_places
from vlmtrain.encode import encode_again
from vlmtrain.family import Family

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["encode_groups", "image_groups", "joined", "stacked"]

_ROWS = ("text_replacement_offsets",)


def image_groups(processor: Any, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[list[int]]:
    """Places of rows that show the same images with the same text up to the last of them; others alone, in order.

    Args:
        processor: of the model.
        rows: with ``images``, and ``image_scale`` where they are reduced.
        texts: of the rows, a mark for each image.
    """
    groups: dict[Any, list[int]] = {}
    for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
        marks = image_places(processor, text)
        if not row["images"] or not marks:
            groups[place] = [place]
            continue
        digests = tuple(hashlib.sha256(image["bytes"]).digest() for image in row["images"])
        key = (digests, row.get("image_scale"), text[: marks[-1][1]])
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def encode_groups(
    processor: Any,
    family: Family,
    texts: Sequence[str],
    begins: Sequence[int | None],
    images: Sequence[Sequence[Image.Image]],
    groups: Sequence[Sequence[int]],
    read: Callable[..., Any],
) -> dict[str, Any]:
    """The batch of :func:`vlmtrain.encode.encode`, padded on the right, with the pixels of each group once.

    Args:
        processor: of the model.
        family: the model's family, one that folds.
        texts: of R rows.
        begins: where the assistant first speaks in them.
        images: of each group.
        groups: places of rows, as :func:`image_groups` gives them.
        read: ``encode`` or what stands for it, for the first row of each group.
    """
    heads = [group[0] for group in groups]
    first: dict[str, Any] = read(
        processor, family, [texts[at] for at in heads], images, begins=[begins[at] for at in heads]
    )
    later = [(number, at) for number, group in enumerate(groups) for at in group[1:]]
    if not later:
        return first
    shared = dict(first)
    if "text_replacement_offsets" in first:
        shared["text_replacement_offsets"] = [first["text_replacement_offsets"][number] for number, _ in later]
    again = encode_again(
        processor,
        family,
        [texts[at] for _, at in later],
        [images[number] for number, _ in later],
        shared,
        begins=[begins[at] for _, at in later],
    )
    return {**first, **joined(first, again, heads, [at for _, at in later], processor)}


def joined(
    first: Mapping[str, Any], second: Mapping[str, Any], ones: Sequence[int], others: Sequence[int], processor: Any
) -> dict[str, Any]:
    """What belongs to the tokens of two batches of ``encode`` and ``encode_again`` as that of one.

    Args:
        first: a batch, padded on the right.
        second: another, without pixels.
        ones: places of the rows of the first in the whole.
        others: those of the second's.
        processor: of the model.
    """
    order = torch.tensor([*ones, *others]).argsort()
    return {key: _in_order(first[key], value, order, key, processor) for key, value in second.items()}


def _in_order(first: Any, second: Any, order: torch.Tensor, key: str, processor: Any) -> Any:
    if key in _ROWS:
        both = [*first, *second]
        return [both[at] for at in order.tolist()]
    pad = processor.tokenizer.pad_token_id if key == "input_ids" else 0
    return stacked(first, second, pad)[order]


def stacked(first: torch.Tensor, second: torch.Tensor, pad: int) -> torch.Tensor:
    """Two ``[A, T, ...]`` and ``[B, T, ...]`` of different T as one ``[A + B, max T, ...]``."""
    width = max(first.shape[1], second.shape[1])
    grown = [part.new_full((part.shape[0], width, *part.shape[2:]), pad) for part in (first, second)]
    for part, filled in zip((first, second), grown, strict=True):
        filled[:, : part.shape[1]] = part
    return torch.cat(grown)
