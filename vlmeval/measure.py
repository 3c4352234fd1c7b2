"""Metrics of scored answers: values from summed counters, 95 % intervals from resampled ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmeval.metrics.sums import total
from vlmeval.task import Metric, Task

if TYPE_CHECKING:
    from vlmeval.metrics.intervals import Array

__all__ = ["Row", "columns", "groups_of", "resampled", "value"]

Row = Mapping[str, Any]
"""One scored answer in the form of ``scores.jsonl``: at least ``groups``, ``cluster`` and ``counts``."""


def groups_of(task: Task, rows: Sequence[Row]) -> list[str]:
    """The groups that have answers, in the task's order."""
    present = {group for row in rows for group in row["groups"]}
    return [group for group in task.groups if group in present]


def value(metric: Metric, sums: Mapping[str, float]) -> float | None:
    """One metric of summed counters; None where it is undefined."""
    if not sums:
        return None
    result = float(metric.value(sums))
    return None if math.isnan(result) else result


def resampled(task: Task, rows: Sequence[Row], clusters: Sequence[str], seed: int = 0) -> dict[str, dict[str, Array]]:
    """Resampled counter sums by group: whole clusters are drawn with replacement.

    Args:
        task: whose groups are resampled.
        rows: scored answers.
        clusters: all clusters in a fixed order, so that two sets of rows can be drawn alike.
        seed: of the draw.

    Returns:
        Group to counter to ``[R]`` sums.
    """
    import numpy as np

    from vlmeval.metrics.intervals import bootstrap, cluster_sums

    names: list[tuple[str, str]] = []
    parts: list[Array] = []
    for group in groups_of(task, rows):
        members = [row for row in rows if group in row["groups"]]
        counters = sorted({name for row in members for name in row["counts"]})
        # One zero row per cluster fixes the order and keeps clusters without an answer in the draw.
        counts = {name: [0.0] * len(clusters) + [row["counts"].get(name, 0.0) for row in members] for name in counters}
        sums = cluster_sums([*clusters, *(row["cluster"] for row in members)], counts)
        names += [(group, name) for name in counters]
        parts += [sums[name] for name in counters]
    table = bootstrap(np.stack(parts, axis=1), seed=seed)
    result: dict[str, dict[str, Array]] = {}
    for index, (group, name) in enumerate(names):
        result.setdefault(group, {})[name] = table[:, index]
    return result


def columns(task: Task, rows: Sequence[Row], groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The ``exact`` and ``rates`` columns of a report: unrounded values, each with n and a 95 % interval.

    Args:
        task: whose metrics are taken.
        rows: scored answers.
        groups: groups to be reported, also those without an answer.
        seed: of the bootstrap.
    """
    clusters = list(dict.fromkeys(row["cluster"] for row in rows))
    drawn = resampled(task, rows, clusters, seed) if len(clusters) > 1 else {}
    result: dict[str, Any] = {"exact": {}, "rates": {}, "counts": {}, "n": {}, "clusters": len(clusters)}
    for group in groups:
        result["n"][group] = sum(group in row["groups"] for row in rows)
        sums = total(row["counts"] for row in rows if group in row["groups"])
        result["counts"][group] = sums
        for metric in task.metrics:
            if group in metric.groups:
                figure = {
                    "value": value(metric, sums),
                    "n": int(sums.get(metric.n, 0)),
                    "interval": _interval(metric, sums, drawn.get(group)),
                }
                result[metric.column].setdefault(group, {})[metric.name] = figure
    return result


def _interval(metric: Metric, sums: Mapping[str, float], drawn: Mapping[str, Array] | None) -> list[float] | None:
    import numpy as np

    from vlmeval.metrics.intervals import interval, wilson

    if value(metric, sums) is None:
        return None
    found = interval(np.asarray(metric.value(drawn), dtype=np.float64)) if drawn and not metric.independent else None
    if metric.proportion:
        successes, trials = (sums[name] for name in metric.proportion)
        # Resampling cannot vary what never varied; the score interval still says how much n answers can tell.
        if metric.independent or successes in (0, trials):
            edge = wilson(successes, trials)
            scale = 100 if metric.percent else 1
            found = (edge[0] * scale, edge[1] * scale) if edge else None
    elif metric.percent and found and found[0] == found[1]:
        return None
    return list(found) if found else None
