"""How sure a number is: bootstrap over clusters, Wilson intervals, exact McNemar. All of it numpy or exact integers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "RESAMPLES", "bootstrap", "cluster_sums", "interval", "mcnemar", "wilson"]

Array = npt.NDArray[np.float64]
RESAMPLES = 10_000
_CHUNK_CELLS = 2_000_000


def cluster_sums(clusters: Sequence[Hashable], counts: Mapping[str, Sequence[float]]) -> dict[str, Array]:
    """Counters summed per cluster.

    Args:
        clusters: cluster of each of N units.
        counts: counter name to its N values.

    Returns:
        Counter name to ``[C]`` sums, clusters in order of first appearance.
    """
    order = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.fromiter((order[cluster] for cluster in clusters), dtype=np.int64, count=len(clusters))
    return {
        name: np.bincount(index, weights=np.asarray(values), minlength=len(order)).astype(np.float64)
        for name, values in counts.items()
    }


def bootstrap(sums: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Sums of counters over clusters drawn with replacement.

    Answers about one image are not independent, so whole images are drawn, not answers.

    Args:
        sums: ``[C, K]`` counters per cluster.
        resamples: how many resamples R are drawn.
        seed: of the draw; the same clusters are drawn for every column, so differences of columns are paired.

    Returns:
        ``[R, K]`` resampled sums.
    """
    clusters = sums.shape[0]
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // max(1, clusters))
    parts = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, clusters, size=(rows, clusters)) + np.arange(rows)[:, None] * clusters
        weights = np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        parts.append(weights.astype(np.float64) @ sums)
    return np.concatenate(parts)


def interval(values: Array) -> tuple[float, float] | None:
    """The central 95 % of resampled values ``[R]``; None where more than one in twenty is undefined."""
    defined = values[~np.isnan(values)]
    if len(defined) < 0.95 * len(values):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def wilson(successes: float, trials: float) -> tuple[float, float] | None:
    """Wilson's 95 % score interval of a proportion, as fractions; None without trials."""
    if trials <= 0:
        return None
    z = 1.959963984540054
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < trials else 1.0


def mcnemar(one: int, other: int) -> float:
    """Exact two-sided McNemar test: probability of a split at least this uneven under equal chances.

    Args:
        one: pairs only the first got right.
        other: pairs only the second got right.
    """
    total, fewer = one + other, min(one, other)
    if total == 0:
        return 1.0
    term, tail = 1, 1
    for k in range(1, fewer + 1):
        term = term * (total - k + 1) // k
        tail += term
    return min(1.0, float(2 * tail / 2**total))
