"""Exact quantiles and a readable histogram of the numbers of a whole dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Bin", "Distribution", "Numbers", "compact", "distribution", "number"]

_BINS = 16
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a histogram.

    Attributes:
        low: smallest number it counts.
        high: end of its range, counted in the last bin only.
        count: numbers in it.
        label: its range in words; ``< 10`` and ``>= 400`` where it gathers a long tail.
    """

    low: float
    high: float
    count: int
    label: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """How numbers are spread.

    Quantiles are numbers that occur (the smallest with at least that share at or below it).

    Attributes:
        count: how many numbers.
        min: the smallest.
        p5: 5 % quantile.
        p25: 25 % quantile.
        p50: median.
        p75: 75 % quantile.
        p95: 95 % quantile.
        max: the largest.
        mean: arithmetic mean.
        sum: of all numbers.
        whole: all numbers are integers.
        step: width of a bin; the first and the last may be wider and gather a long tail.
        edges: bin ends, one more than ``counts``; a bin counts its low end, the last one both.
        counts: numbers in each bin; they add up to ``count``.
    """

    count: int
    min: float
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    max: float
    mean: float
    sum: float
    whole: bool
    step: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    def bins(self, most: int | None = None) -> Iterator[Bin]:
        """The bars, with their ranges in words.

        Args:
            most: neighbours are joined until there are no more than this many.
        """
        edges, counts = self._tailless()
        join = 1 if most is None else max(1, math.ceil(len(counts) / most))
        for start in range(0, len(counts), join):
            stop = min(start + join, len(counts))
            low, high = edges[start], edges[stop]
            first = start == 0 and self.edges[0] < low
            last = stop == len(counts) and self.edges[-1] > high
            yield Bin(
                self.edges[0] if first else low,
                self.edges[-1] if last else high,
                sum(counts[start:stop]) + first * self.counts[0] + last * self.counts[-1],
                self._label(low, high, first=first, last=last),
            )

    def _tailless(self) -> tuple[Sequence[float], Sequence[int]]:
        """Edges and counts of the bins of equal width; the tails are joined to the outermost of them."""
        low = len(self.counts) > 2 and self.edges[1] - self.edges[0] > 1.5 * self.step
        high = len(self.counts) > 2 and self.edges[-1] - self.edges[-2] > 1.5 * self.step
        end = len(self.counts) - high
        return self.edges[low : end + 1], self.counts[low:end]

    def _label(self, low: float, high: float, *, first: bool, last: bool) -> str:
        if last:
            return f"\N{GREATER-THAN OR EQUAL TO} {number(low)}"
        if first:
            return f"< {number(high)}"
        if self.whole and high - low <= 1:
            return number(low)
        dash = " to " if low < 0 else "\N{EN DASH}"
        return f"{number(low)}{dash}{number(high - 1 if self.whole else high)}"


class Numbers:
    """Numbers that come in parts; all are kept, as compact arrays."""

    def __init__(self) -> None:
        """No numbers yet."""
        self._parts: list[NDArray[Any]] = []

    def add(self, values: NDArray[Any]) -> None:
        """Some more numbers."""
        if len(values):
            self._parts.append(values)

    def array(self) -> NDArray[Any]:
        """All numbers, in the order they came."""
        import numpy as np

        if len(self._parts) != 1:
            self._parts = [np.concatenate(self._parts)] if self._parts else [np.empty(0, np.int32)]
        return self._parts[0]


def distribution(values: NDArray[Any]) -> Distribution | None:
    """The distribution of an array; None when it is empty."""
    import numpy as np

    if not len(values):
        return None
    whole = bool(np.issubdtype(values.dtype, np.integer))
    ordered = np.sort(values.astype(np.int64 if whole else np.float64, copy=False))
    plain = int if whole else float
    low, high = plain(ordered[0]), plain(ordered[-1])
    p5, p25, p50, p75, p95 = (plain(_quantile(ordered, share)) for share in _QUANTILES)
    edges, step = _edges(ordered, whole)
    counts = np.histogram(ordered, np.asarray(edges, np.float64))[0]
    total = plain(ordered.sum())
    return Distribution(
        count=len(ordered),
        min=low,
        p5=p5,
        p25=p25,
        p50=p50,
        p75=p75,
        p95=p95,
        max=high,
        mean=total / len(ordered),
        sum=total,
        whole=whole,
        step=step,
        edges=edges,
        counts=tuple(map(int, counts)),
    )


def number(value: float) -> str:
    """A number for people: thousands grouped, three significant digits below 100, no empty decimals."""
    if abs(value) >= 100 or value == int(value):
        return f"{round(value):,}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 4)}f}".rstrip("0").rstrip(".")


def compact(value: float) -> str:
    """A number in at most six characters: ``8,421``, ``120k``, ``3.4M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            scaled = value / size
            return f"{scaled:.0f}{unit}" if abs(scaled) >= 99.5 else f"{scaled:.1f}".removesuffix(".0") + unit
    return number(value)


def _quantile(ordered: NDArray[Any], share: float) -> np.generic:
    found: np.generic = ordered[max(0, math.ceil(share * len(ordered)) - 1)]
    return found


def _edges(ordered: NDArray[Any], whole: bool) -> tuple[tuple[float, ...], float]:
    """Round bin ends; outliers are gathered in one wide bin on their side so that the others stay readable."""
    plain = int if whole else float
    low, high = plain(ordered[0]), plain(ordered[-1])
    if whole and high - low < _BINS:
        return tuple(range(int(low), int(high) + 2)), 1
    if high == low:
        return (low, low + 1.0), 1.0
    start, stop = plain(_quantile(ordered, 0.01)), plain(_quantile(ordered, 0.99))
    span = (stop - start) or (high - low)
    start = start if start - low > span / 2 else low
    stop = stop if high - stop > span / 2 else high
    step = _round_step((stop - start or span) / _BINS, whole)
    first, last = math.floor(start / step), math.floor(stop / step) + 1
    edges = [_at(index, step) for index in range(first, last + 1)]
    if whole:
        edges = [int(edge) for edge in edges]
    # What rounding left outside is taken in without a bin of its own.
    if low < edges[0]:
        edges[:1] = [low, edges[0]] if edges[0] - low > 1.5 * step else [low]
    if high > edges[-1]:
        edges[-1:] = [edges[-1], high] if high - edges[-1] > 1.5 * step else [high]
    return tuple(edges), step


def _round_step(step: float, whole: bool) -> float:
    """The next larger of 1, 2, 5, 10, 20, 50 ..."""
    power = 10.0 ** math.floor(math.log10(step))
    found = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
    return max(1, round(found)) if whole else found


def _at(index: int, step: float) -> float:
    """``index * step`` without the tail of binary fractions."""
    return round(index * step, max(0, 2 - math.floor(math.log10(step))))
