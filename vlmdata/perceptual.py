"""What makes two images the same: their pixels, or how they look.

How an image looks is a difference hash (dHash) of 64 bits: the picture in grey, shrunk to 9 by 8, and of each two
neighbours in a row whether the right one is brighter. N. Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013,
https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html. It survives scaling and compression.
Turning, mirroring and cropping change it, and pictures without any contrast have all the same.

Near hashes are found by multi-index hashing: cut into four bands, two hashes of distance d agree in one band up to
d // 4 bits. M. Norouzi, A. Punjani, D. Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012,
https://arxiv.org/abs/1307.2982. Nothing is missed, and not all pairs are looked at.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from io import BytesIO
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlmdata.errors import ConfigError

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["MAX_DISTANCE", "dhash", "near_pairs", "pixel_sha256"]

MAX_DISTANCE = 16
"""Largest distance that is searched for; beyond it hashes of unlike pictures are as near."""

_BANDS = 4
_BAND_BITS = 64 // _BANDS
_CHUNK = 1 << 22
_MAX_PAIRS = 50_000_000


def pixel_sha256(data: bytes) -> bytes:
    """The sha256 of an image's size and RGB pixels, however they are encoded."""
    picture = _open(data).convert("RGB")
    return hashlib.sha256(b"%d %d " % picture.size + picture.tobytes()).digest()


def dhash(data: bytes) -> int:
    """The difference hash of an encoded image."""
    import PIL.Image

    picture = _open(data)
    # A JPEG is decoded no larger than it takes to shrink it well.
    picture.draft("L", (144, 128))
    small = picture.convert("L").resize((9, 8), PIL.Image.Resampling.BOX)
    grey = np.asarray(small, np.uint8)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of different positions whose hashes differ in at most ``distance`` bits: smaller ones, larger ones.

    Args:
        hashes: all different.
        distance: up to ``MAX_DISTANCE``.

    Raises:
        ConfigError: the distance is out of bounds, or so wide for these hashes that pairs would fill the memory.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ConfigError(f"--distance is {distance}, expected 0 to {MAX_DISTANCE} of 64 bits")
    found: list[NDArray[np.int64]] = []
    count = 0
    for values in _bands(hashes):
        order = np.argsort(values, kind="stable")
        starts = np.searchsorted(values[order], np.arange((1 << _BAND_BITS) + 1))
        for left, right in _candidates(values, order, starts, distance // _BANDS):
            near = np.bitwise_count(hashes[left] ^ hashes[right]) <= distance
            found.append(left[near] * len(hashes) + right[near])
            count += int(near.sum())
            if count > _MAX_PAIRS:
                raise ConfigError(
                    f"--distance {distance} is too wide: more than {_MAX_PAIRS:,} pairs of images are as near; "
                    "give a smaller one"
                )
    pairs = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    return np.divmod(pairs, max(len(hashes), 1))


def _bands(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Every fourth bit each: neighbouring bits are alike in pictures with flat regions, and would crowd a band."""
    weights = 1 << np.arange(_BAND_BITS)
    for band in range(_BANDS):
        shifts = np.arange(band, 64, _BANDS, dtype=np.uint64)
        values = np.zeros(len(hashes), np.int64)
        for shift, weight in zip(shifts, weights, strict=True):
            values += ((hashes >> shift) & np.uint64(1)).astype(np.int64) * weight
        yield values


def _candidates(
    values: NDArray[np.int64], order: NDArray[np.int64], starts: NDArray[np.int64], radius: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs ``left < right`` whose band values differ in at most ``radius`` bits, some millions at a time."""
    everyone = np.arange(len(values))
    for bits in range(radius + 1):
        for places in combinations(range(_BAND_BITS), bits):
            flipped = values ^ sum(1 << place for place in places)
            first, counts = starts[flipped], starts[flipped + 1] - starts[flipped]
            ends = np.cumsum(counts)
            begin = 0
            while begin < len(values):
                before = ends[begin - 1] if begin else 0
                stop = max(begin + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
                here = counts[begin:stop]
                left = np.repeat(everyone[begin:stop], here)
                offsets = np.arange(len(left)) - np.repeat(ends[begin:stop] - here - before, here)
                right = order[np.repeat(first[begin:stop], here) + offsets]
                forward = left < right
                yield left[forward], right[forward]
                begin = stop


def _open(data: bytes) -> PIL.Image.Image:
    import PIL.Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd tags are no fault of the picture
        return PIL.Image.open(BytesIO(data))
