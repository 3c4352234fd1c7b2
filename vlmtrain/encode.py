"""Texts with images to tensors: what the processor makes of whole rows, and where in them the assistant speaks.

Most processors read a row in one call and tell what they wrote in the place of an image. Where one does not, or
rewrites the text on its way, its family says what the change is (``Family.expand``) and the same tokens are made here.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchFeature

from vlmdata.errors import DataError
from vlmtrain.chat import add_special_tokens, image_mark
from vlmtrain.family import Family
from vlmtrain.trl_seam import image_tokens

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["answer_mask", "encode", "encode_again", "text_length"]

Pictures = Sequence[Sequence["Image.Image"]]
_TO_THE_END = 1 << 30


def encode(
    processor: Any,
    family: Family,
    texts: Sequence[str],
    images: Pictures,
    *,
    side: str,
    begins: Sequence[int | None] | None = None,
) -> BatchFeature:
    """Rows as one batch; no row of it depends on another but for padding.

    Args:
        processor: of the model.
        family: the model's family.
        texts: one a row, a mark for each image.
        images: the pictures of each row.
        side: ``left`` or ``right``: where padding goes.
        begins: the place in each text where the assistant first speaks, None where it does not.

    Returns:
        ``input_ids`` ``[B, T]`` and all else the model takes, with ``offset_mapping`` ``[B, T, 2]`` and, where
        something was replaced, ``text_replacement_offsets``.

    Raises:
        DataError: only some rows start with the BOS token.
    """
    if family.expand is not None:
        pixels = _see(processor, family, images)
        read = _read(processor, family, texts, [len(row) for row in images], side)
        batch = BatchFeature({**pixels, **read})
    else:
        batch = _call(processor, family, texts, images, side)
    _complete(processor, family, batch, begins or [None] * len(texts), {})
    return batch


def encode_again(
    processor: Any,
    family: Family,
    texts: Sequence[str],
    images: Pictures,
    first: Mapping[str, Any],
    *,
    begins: Sequence[int | None] | None = None,
) -> dict[str, Any]:
    """What the processor would make of other texts on images it has just seen, without seeing them again.

    Args:
        processor: of the model.
        family: the model's family.
        texts: one a row, a mark for each image.
        images: the pictures of each row.
        first: the batch it made of the images.
        begins: the place in each text where the assistant first speaks, None where it does not.

    Returns:
        As :func:`encode`, padded on the right, without pixels.
    """
    if family.expand is not None:
        batch = _read(processor, family, texts, [len(row) for row in images], "right")
    else:
        batch = _call_again(processor, texts, first.get("text_replacement_offsets") or [[]] * len(texts))
        if "token_type_ids" in first and "mm_token_type_ids" not in first:
            # Gemma 3's processor calls them so in what it returns.
            batch["token_type_ids"] = batch.pop("mm_token_type_ids")
    pixels = {key: value for key, value in first.items() if key not in batch}
    _complete(processor, family, batch, begins or [None] * len(texts), pixels)
    return batch


def answer_mask(batch: dict[str, Any], answers: Sequence[Sequence[tuple[int, int]]]) -> torch.Tensor:
    """Which tokens belong to an answer; takes the offsets out of the batch.

    Args:
        batch: of :func:`encode`.
        answers: per row the character spans in the text before expansion.

    Returns:
        Boolean mask ``[B, T]``.
    """
    mask = _mask(batch, answers)
    batch.pop("offset_mapping")
    batch.pop("text_replacement_offsets", None)
    return mask


def text_length(processor: Any, family: Family, text: str, images: int) -> int:
    """Tokens of a row without those of its images.

    Args:
        processor: of the model.
        family: the model's family.
        text: of the row, a mark for each image.
        images: how many there are.
    """
    if family.expand is None:
        found = processor.tokenizer(text, add_special_tokens=add_special_tokens(processor, text))["input_ids"]
        return len(found) - images
    expanded, _ = _expanded(processor, family, text, images)
    mark = image_mark(processor)
    assert mark is not None
    # One mark, which is one token, for every run of them: the text is what takes time to read.
    short = re.sub(f"(?:{re.escape(mark)})+", lambda run: mark, expanded)
    left_out = expanded.count(mark) - short.count(mark)
    found = processor.tokenizer(short, add_special_tokens=False)["input_ids"]
    return len(found) + left_out - sum(image_tokens(processor, [(64, 64)] * images, family))


def _complete(
    processor: Any, family: Family, batch: Any, begins: Sequence[int | None], pixels: Mapping[str, Any]
) -> None:
    """Put in what else the family says belongs to the tokens."""
    if family.complete is not None:
        width = batch["input_ids"].shape[1]
        spans = [[] if begin is None else [(begin, _TO_THE_END)] for begin in begins]
        said = [int(row.int().argmax()) if row.any() else width for row in _mask(batch, spans)]
        batch.update(family.complete(processor, {**pixels, **batch}, torch.tensor(said)))


def _mask(batch: Mapping[str, Any], spans: Sequence[Sequence[tuple[int, int]]]) -> torch.Tensor:
    """Which tokens overlap spans of the text before expansion."""
    offsets = torch.as_tensor(batch["offset_mapping"])
    replaced = batch.get("text_replacement_offsets") or [[]] * len(spans)
    mask = torch.zeros(offsets.shape[:2], dtype=torch.bool)
    for row, found in enumerate(spans):
        ends = [entry["span"][1] for entry in replaced[row]]
        gains = [0, *(entry["new_span"][1] - entry["span"][1] for entry in replaced[row])]
        for start, stop in found:
            start, stop = (place + gains[bisect.bisect_right(ends, place)] for place in (start, stop))
            # Zero-width tokens (padding, added specials) overlap nothing.
            mask[row] |= (offsets[row, :, 0] < stop) & (offsets[row, :, 1] > start)
    return mask


def _call(processor: Any, family: Family, texts: Sequence[str], images: Pictures, side: str) -> BatchFeature:
    """One processor call for the batch."""
    pictures: Any = images if family.nested_images else [image for row in images for image in row]
    special = {add_special_tokens(processor, text) for text in texts}
    if len(special) > 1:
        raise DataError("the chat template writes the BOS token for some rows only")
    batch = processor(
        text=list(texts),
        images=pictures if any(images) else None,
        padding=True,
        padding_side=side,
        add_special_tokens=special.pop(),
        return_offsets_mapping=True,
        return_text_replacement_offsets=True,
    )
    # Not the processor's own return_tensors: Idefics3's would try to make a tensor of the replacement offsets.
    return batch.convert_to_tensors("pt", skip_tensor_conversion=["text_replacement_offsets"])


def _call_again(
    processor: Any, texts: Sequence[str], replaced: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    pieces = [[entry["replacement"] for entry in row] for row in replaced]
    expanded, offsets = processor.get_text_with_replacements(list(texts), [piece for row in pieces for piece in row])
    encoded = processor.tokenizer(
        expanded,
        return_tensors="pt",
        padding=True,
        padding_side="right",
        return_offsets_mapping=True,
        add_special_tokens=add_special_tokens(processor, texts[0]),
    )
    batch: dict[str, Any] = {**encoded, "text_replacement_offsets": offsets}
    if processor.return_mm_token_type_ids:
        batch["mm_token_type_ids"] = torch.as_tensor(processor.create_mm_token_type_ids(encoded["input_ids"]))
    return batch


def _see(processor: Any, family: Family, images: Pictures) -> dict[str, Any]:
    if family.see is not None:
        return family.see(processor, images)
    shown = [list(row) for row in images if row]
    if not shown:
        return {}
    pictures: Any = shown if family.nested_images else [image for row in shown for image in row]
    return dict(processor.image_processor(pictures, return_tensors="pt"))


def _read(processor: Any, family: Family, texts: Sequence[str], images: Sequence[int], side: str) -> dict[str, Any]:
    found = [_expanded(processor, family, text, count) for text, count in zip(texts, images, strict=True)]
    encoded = processor.tokenizer(
        [text for text, _ in found],
        return_tensors="pt",
        padding=True,
        padding_side=side,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_token_type_ids=False,
    )
    return {**encoded, "text_replacement_offsets": [entries for _, entries in found]}


def _expanded(processor: Any, family: Family, text: str, images: int) -> tuple[str, list[dict[str, Any]]]:
    """A text as the tokenizer is to read it, and what was replaced, in the form transformers' processors tell it."""
    assert family.expand is not None
    edits, mark = family.expand(processor, text, images), image_mark(processor)
    pieces: list[str] = []
    entries: list[dict[str, Any]] = []
    done = grown = 0
    for start, stop, piece in edits:
        pieces += [text[done:start], piece]
        begin, kind = start + grown, "image" if mark and mark in piece else "text"
        place = (begin, begin + len(piece))
        entries.append({"type": kind, "span": (start, stop), "new_span": place, "replacement": piece})
        grown += len(piece) - (stop - start)
        done = stop
    expanded = "".join([*pieces, text[done:]])
    if add_special_tokens(processor, expanded):
        # What the tokenizer would write in front by itself; row by row, as not every template does it alike.
        lead = processor.tokenizer.decode(processor.tokenizer("")["input_ids"])
        entries = [{**entry, "new_span": tuple(place + len(lead) for place in entry["new_span"])} for entry in entries]
        entries.insert(0, {"type": "text", "span": (0, 0), "new_span": (0, len(lead)), "replacement": lead})
        expanded = lead + expanded
    return expanded, entries
