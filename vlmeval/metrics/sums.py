"""Adding counters up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["total"]


def total(counts: Iterable[Mapping[str, float]], names: Iterable[str] = ()) -> dict[str, float]:
    """The sum of each counter; ``names`` are there with 0 even when nothing was counted."""
    sums = dict.fromkeys(names, 0.0)
    for count in counts:
        for name, value in count.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
