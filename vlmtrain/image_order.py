"""The order of rows whose images are to meet in one batch: groups of rows are shuffled instead of rows.

Every row comes once an epoch, as in any order. What changes is which rows share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vlmtrain.mixing import Rows

__all__ = ["by_image", "image_keys", "pack"]

Pair = tuple[int, int]
"""A row and its length in tokens."""


def image_keys(digests: Sequence[Sequence[str]]) -> Rows:
    """A number for each row that is the same for the same images; a row without images has its own."""
    known: dict[tuple[str, ...], int] = {}
    alone = len(digests)
    keys = []
    for row, images in enumerate(digests):
        keys.append(known.setdefault(tuple(images), len(known)) if images else alone + row)
    return np.asarray(keys, np.int64)


def by_image(rows: Rows, keys: Rows, random: Callable[[int], np.random.Generator]) -> Callable[[int], Iterator[Rows]]:
    """Passes over rows in which those of one image follow each other, images and their rows in random order.

    Args:
        rows: row numbers.
        keys: of all rows, as :func:`image_keys` gives them.
        random: of a pass.
    """

    def passes(number: int) -> Iterator[Rows]:
        mixed = rows[random(number).permutation(len(rows))]
        # Images come in the order of the first of their rows in the mix.
        _, first, group = np.unique(keys[mixed], return_index=True, return_inverse=True)
        yield mixed[np.argsort(first[group], kind="stable")]

    return passes


def pack(pairs: Sequence[Pair], keys: Rows, batch: int, *, sort: bool) -> tuple[list[Pair], list[Pair]]:
    """Cut rows into batches in which those of one image are together as far as they go in.

    Rows of an image that are more than a batch holds are cut. Each piece goes into the fullest batch it fits into.

    Args:
        pairs: rows, those of one image one after the other.
        keys: of all rows.
        batch: rows of a batch.
        sort: take pieces of like length one after the other, so that they meet.

    Returns:
        Rows of full batches, batch by batch; and the rest, pieces kept whole.
    """
    pieces: list[list[Pair]] = []
    for pair in pairs:
        new = not pieces or len(pieces[-1]) == batch or keys[pieces[-1][-1][0]] != keys[pair[0]]
        if new:
            pieces.append([])
        pieces[-1].append(pair)
    if sort:
        pieces.sort(key=lambda piece: max(length for _, length in piece), reverse=True)
    full: list[Pair] = []
    # Open batches by how many rows they still take; of those that take as many, the latest has rows of like length.
    room: list[list[list[Pair]]] = [[] for _ in range(batch + 1)]
    for piece in pieces:
        place = next((left for left in range(len(piece), batch) if room[left]), None)
        held = room[place].pop() if place is not None else []
        held += piece
        if len(held) == batch:
            full += held
        else:
            room[batch - len(held)].append(held)
    return full, [pair for held in room[1:] for batches in held for pair in batches]
