"""Which rows belong together, and how groups of rows are dealt out to parts of given sizes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["allot", "quotas", "together"]


def together(keys: Iterable[Sequence[Hashable]]) -> NDArray[np.int64]:
    """For each row the number of its group: rows that share any key are in one, also by way of a third row.

    Union-find with path halving. Groups are numbered in the order of their first rows.

    Args:
        keys: of each row; a row without keys is a group of its own.
    """
    parents: list[int] = []
    first: dict[Hashable, int] = {}

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for row, held in enumerate(keys):
        parents.append(row)
        for key in held:
            other = root(first.setdefault(key, row))
            mine = root(row)
            # The smaller number stays the root, so that a group is known by its first row.
            parents[max(mine, other)] = min(mine, other)
    roots = np.array([root(row) for row in range(len(parents))], np.int64)
    numbers: NDArray[np.int64] = np.unique(roots, return_inverse=True)[1].astype(np.int64)
    return numbers


def quotas(rows: int, shares: NDArray[np.float64], owed: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """Whole numbers that add up to ``rows`` and follow the shares: largest remainders.

    Args:
        rows: to be shared out.
        shares: of each part; they add up to 1.
        owed: rows each part should have had before and has not; they add up to 0.
    """
    ideal = np.maximum(rows * shares + (0 if owed is None else owed), 0)
    if ideal.sum():
        ideal *= rows / ideal.sum()
    found = np.floor(ideal + 1e-9).astype(np.int64)
    order = np.argsort(-(ideal - found), kind="stable")
    found[order[: rows - int(found.sum())]] += 1
    return found


def allot(sizes: NDArray[np.int64], targets: Sequence[int], order: Sequence[int]) -> NDArray[np.int16]:
    """The part of each group, so that parts come as near to their targets as whole groups allow.

    A group goes to the part that lacks most of its target, among those it fits into; where it fits into none, to the
    one that lacks most rows.

    Args:
        sizes: rows of each group.
        targets: rows of each part; they add up to all rows.
        order: in which the groups come.
    """
    lacks = [int(target) for target in targets]
    parts = np.zeros(len(sizes), np.int16)
    for group in order:
        size = int(sizes[group])
        best, best_share = -1, 0.0
        for part, lack in enumerate(lacks):
            if size <= lack and lack / targets[part] > best_share:
                best, best_share = part, lack / targets[part]
        if best < 0:
            best = lacks.index(max(lacks))
        parts[group] = best
        lacks[best] -= size
    return parts
