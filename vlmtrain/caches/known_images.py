"""Rows whose images the main process has features of: read without decoding or processing the images.

What a text says in the place of an image is known since the image was first seen; so the text of such a row is all
there is to read (``vlmtrain.encode.encode_again``). Rows of a batch that show a new image are read as ever.

Who knows what: the main process adds to ``Known`` when it has kept an image's features
(``vlmtrain.caches.feature_cache``) and never takes away. Workers start anew with every pass and have the state of its
beginning; what was added since is unknown to them, so they send pixels the main process has no use for, never too few.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vlmtrain.encode import encode, encode_again
from vlmtrain.family import Family
from vlmtrain.features import IMAGES, Images, Known
from vlmtrain.grouping import joined

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Shown", "encode_known", "image_inputs"]

_ENTRIES = "text_replacement_offsets"


class Shown(Sequence["Image.Image"]):
    """The pictures of a row, decoded when they are looked at.

    Attributes:
        keys: of each, what it is known by: the hash of its bytes, and how much smaller it is made.
    """

    def __init__(self, row: Mapping[str, Any], decode: Callable[[Mapping[str, Any]], list[Image.Image]]) -> None:
        """Take a row with ``images``, and ``image_scale`` where they are reduced."""
        self._row, self._decode = row, decode
        self._pictures: list[Image.Image] | None = None
        scale = row.get("image_scale") or 1.0
        end = f"@{scale!r}" if scale < 1 else ""
        self.keys = [hashlib.sha256(image["bytes"] or b"").hexdigest() + end for image in row["images"]]

    def __len__(self) -> int:
        """How many there are; nothing is decoded."""
        return len(self.keys)

    def __getitem__(self, place: Any) -> Any:
        """A picture, or some."""
        return self.pictures()[place]

    def __iter__(self) -> Iterator[Image.Image]:
        """The pictures."""
        return iter(self.pictures())

    def pictures(self) -> list[Image.Image]:
        """The pictures, decoded once."""
        if self._pictures is None:
            self._pictures = self._decode(self._row)
        return self._pictures


def image_inputs(family: Family) -> tuple[str, ...]:
    """Keys of a batch with one entry an image that the model's forward takes besides features: for positions."""
    return family.feature_inputs if family.positions is not None else ()


def encode_known(
    processor: Any,
    family: Family,
    texts: Sequence[str],
    images: Sequence[Shown],
    known: Mapping[str, Known],
    *,
    begins: Sequence[int | None] | None = None,
) -> dict[str, Any]:
    """The batch of :func:`vlmtrain.encode.encode`, padded on the right, with the pixels of rows with a new image alone.

    Args:
        processor: of the model.
        family: the model's family.
        texts: one a row, a mark for each image.
        images: the pictures of each row.
        known: images by their keys.
        begins: the place in each text where the assistant first speaks, None where it does not.

    Returns:
        The batch and its :class:`~vlmtrain.features.Images` as ``image_keys``; what the model's forward takes of
        images besides features is there of all.
    """
    begins = begins or [None] * len(texts)
    new: list[int] = []
    seen: set[str] = set()
    for row, shown in enumerate(images):
        if any(key not in known and key not in seen for key in shown.keys):
            new.append(row)
            seen.update(shown.keys)
    keys = [key for shown in images for key in shown.keys]
    if not keys:
        # Where a model wants pixels even of words alone, they come with them.
        return dict(encode(processor, family, texts, [[] for _ in texts], side="right", begins=begins))
    first: dict[str, Any] = {}
    found: dict[str, Known] = {}
    if new:
        pictures = [list(images[row]) for row in new]
        some = [begins[row] for row in new]
        first = dict(encode(processor, family, [texts[row] for row in new], pictures, side="right", begins=some))
        found = _told(family, first, [images[row].keys for row in new])
    of = {**{key: known[key] for key in keys if key in known}, **found}
    old = [row for row in range(len(texts)) if row not in set(new)]
    batch = first
    if old:
        told = {_ENTRIES: [[{"replacement": of[key].replacement} for key in images[row].keys] for row in old]}
        if any(one.typed for one in of.values()):
            told["token_type_ids"] = []
        again = encode_again(
            processor, family, [texts[row] for row in old], [images[row] for row in old], told,
            begins=[begins[row] for row in old],
        )  # fmt: skip
        batch = {**first, **joined(first, again, new, old, processor)} if new else again
    for name in image_inputs(family):
        batch[name] = torch.stack([of[key].inputs[name] for key in keys])
    starts = _starts([len(shown) for shown in images])
    fresh = [place for row in new for place in range(starts[row], starts[row + 1])]
    batch[IMAGES] = Images(keys, fresh, [found[keys[place]] for place in fresh])
    return batch


def _told(family: Family, first: Mapping[str, Any], keys: Sequence[Sequence[str]]) -> dict[str, Known]:
    """What the processor wrote in the place of each image, and what else there is to know of it."""
    typed = "token_type_ids" in first and "mm_token_type_ids" not in first
    found: dict[str, Known] = {}
    place = 0
    for row, shown in enumerate(keys):
        entries = [entry for entry in first[_ENTRIES][row] if entry["type"] == "image"]
        for key, entry in zip(shown, entries, strict=True):
            inputs = {name: first[name][place].clone() for name in image_inputs(family)}
            found[key] = Known(entry["replacement"], inputs, typed)
            place += 1
    return found


def _starts(counts: Sequence[int]) -> list[int]:
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts
