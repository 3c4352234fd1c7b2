"""How much of each dataset makes an epoch: all of it, or shares by weight.

``data_weights`` gives one number per dataset. An epoch then has rows of each in exactly these shares (rounded to whole
rows), as many as there are until the first dataset is used up (``mix_stop: first``) or until every dataset was used at
least once (``mix_stop: all``, smaller ones are repeated). What an epoch leaves of a dataset comes first in the next
one, so that over the epochs every row is seen equally often. These are the two stopping rules of
``datasets.interleave_datasets``, with exact shares in place of draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlmdata.errors import ConfigError

__all__ = ["Rows", "check_weights", "epoch_counts", "take"]

Rows = NDArray[np.int64]
MOST = 1e12


def check_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    """Refuse weights that do not belong to the datasets.

    Raises:
        ConfigError: their number differs, there is one dataset only, or a weight is not above 0.
    """
    if not weights:
        return
    if len(names) < 2:
        raise ConfigError("data_weights is for several datasets: give --data more than once")
    if len(weights) != len(names):
        raise ConfigError(f"data_weights has {len(weights)} numbers for {len(names)} datasets: {', '.join(names)}")
    for weight, name in zip(weights, names, strict=True):
        if not 0 < weight < float("inf"):
            raise ConfigError(f"data_weights: {weight:g} for {name}, expected a number above 0; leave the dataset out")


def epoch_counts(sizes: Sequence[int], weights: Sequence[float], stop: str) -> list[int]:
    """Rows of each dataset in one epoch.

    Args:
        sizes: rows there are, each above 0.
        weights: shares, not necessarily summing to 1; none takes every row once.
        stop: ``first`` or ``all``.

    Raises:
        ConfigError: a weight is so small that its dataset would get no row, or the epoch absurdly long.
    """
    if not weights:
        return list(sizes)
    shares = [weight / sum(weights) for weight in weights]
    ends = [size / share for size, share in zip(sizes, shares, strict=True)]
    total = min(ends) if stop == "first" else max(ends)
    if total > MOST:
        raise ConfigError(f"data_weights: an epoch would have {total:.3g} rows; give the small weight more")
    # Of the dataset that sets the end all rows are taken; rounding the others moves a share by half a row at most.
    counts = [
        size if end == total else round(total * share) for size, share, end in zip(sizes, shares, ends, strict=True)
    ]
    if not all(counts):
        place = counts.index(0)
        raise ConfigError(f"data_weights: {weights[place]:g} gives dataset {place + 1} no row in {total:,.0f}")
    return counts


def take(passes: Callable[[int], Iterator[Rows]], size: int, start: int, count: int) -> Iterator[Rows]:
    """A stretch of the endless row of passes over one dataset, in pieces.

    Args:
        passes: gives the order of pass 0, 1, 2, ... in pieces; each has ``size`` rows in all.
        size: rows of a pass.
        start: rows of the stretch's beginning.
        count: how many rows.
    """
    number, skip = divmod(start, size)
    while count > 0:
        for piece in passes(number):
            if skip >= len(piece):
                skip -= len(piece)
                continue
            part = piece[skip : skip + count]
            skip = 0
            count -= len(part)
            yield part
            if count <= 0:
                return
        number += 1
