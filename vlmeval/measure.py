"""Metrics of scored answers: values from summed counters, 95 % intervals from resampled ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmeval.task import Metric, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vlmeval.metrics.intervals import Array

__all__ = ["Row", "Sheet", "columns", "groups_of", "resampled", "sheet", "value", "values"]

Row = Mapping[str, Any]
"""One scored answer in the form of ``scores.jsonl``: at least ``groups``, ``cluster`` and ``counts``."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Scored answers by column.

    Attributes:
        clusters: names of the C clusters, in order.
        cluster: ``[N]`` cluster number of each answer.
        groups: group to ``[N]``, whether the answer counts in it; only groups that have answers, in the task's order.
        counters: group to the names of the counters its answers have, in order of first appearance.
        counts: counter to its ``[N]`` values, 0 where an answer does not have it.
    """

    clusters: Sequence[str]
    cluster: npt.NDArray[np.int64]
    groups: Mapping[str, npt.NDArray[np.bool_]]
    counters: Mapping[str, Sequence[str]]
    counts: Mapping[str, Array]

    def totals(self, group: str) -> dict[str, float]:
        """Summed counters of a group; empty for a group without answers."""
        member = self.groups.get(group)
        return {} if member is None else {n: float(self.counts[n][member].sum()) for n in self.counters[group]}

    def spread(self, group: str) -> int:
        """How many clusters have answers in a group."""
        import numpy as np

        member = self.groups.get(group)
        return 0 if member is None else len(np.unique(self.cluster[member]))

    def by_cluster(self) -> tuple[list[tuple[str, str]], Array]:
        """(group, counter) of K columns, and their sums ``[C, K]``."""
        import numpy as np

        names = [(group, name) for group in self.groups for name in self.counters[group]]
        table = np.zeros((len(self.clusters), len(names)))
        for column, (group, name) in enumerate(names):
            member = self.groups[group]
            table[:, column] = np.bincount(self.cluster[member], self.counts[name][member], len(self.clusters))
        return names, table


def sheet(
    task: Task,
    rows: Sequence[Row],
    clusters: Sequence[str],
    *,
    groups: Sequence[Sequence[str]] | None = None,
    cluster: Sequence[str] | None = None,
) -> Sheet:
    """Scored answers by column.

    Args:
        task: whose groups they count in.
        rows: scored answers.
        clusters: all clusters in a fixed order.
        groups: the groups of each row; None takes the rows' own.
        cluster: the cluster of each row; None takes the rows' own.
    """
    import numpy as np

    place = {name: number for number, name in enumerate(clusters)}
    numbers = (place[name] for name in (cluster if cluster is not None else (row["cluster"] for row in rows)))
    # Few answers differ in their groups and in the names of their counters: each kind is looked at once.
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    own = groups if groups is not None else [row["groups"] for row in rows]
    kind = np.fromiter(
        (
            kinds.setdefault((tuple(member), tuple(row["counts"])), len(kinds))
            for row, member in zip(rows, own, strict=True)
        ),
        dtype=np.int64,
        count=len(rows),
    )
    counters: dict[str, dict[str, None]] = {}
    members: dict[str, list[int]] = {}
    for (belongs, names), number in kinds.items():
        for group in belongs:
            counters.setdefault(group, {}).update(dict.fromkeys(names))
            members.setdefault(group, []).append(number)
    present = [group for group in task.groups if group in members]
    return Sheet(
        clusters,
        np.fromiter(numbers, dtype=np.int64, count=len(rows)),
        {group: np.isin(kind, members[group]) for group in present},
        {group: tuple(counters[group]) for group in present},
        _counts(rows),
    )


def _counts(rows: Sequence[Row]) -> dict[str, Array]:
    """Counter to its ``[N]`` values; of hundreds of counters an answer has a few."""
    import numpy as np

    found: dict[str, tuple[list[int], list[float]]] = {}
    for number, row in enumerate(rows):
        for name, count in row["counts"].items():
            places, values = found.setdefault(name, ([], []))
            places.append(number)
            values.append(count)
    result = {}
    for name, (places, values) in found.items():
        result[name] = np.zeros(len(rows))
        result[name][places] = values
    return result


def groups_of(task: Task, rows: Sequence[Row]) -> list[str]:
    """The groups that have answers, in the task's order."""
    present = {group for row in rows for group in row["groups"]}
    return [group for group in task.groups if group in present]


def value(metric: Metric, sums: Mapping[str, float]) -> float | None:
    """One metric of summed counters; None where it is undefined."""
    if not sums:
        return None
    try:
        result = float(metric.value(sums))
    except ZeroDivisionError:
        return None
    return result if math.isfinite(result) else None


def values(metric: Metric, drawn: Mapping[str, Array]) -> Array:
    """One metric of resampled sums, ``[R]``; nan or infinite where it is undefined."""
    import numpy as np

    # A metric that divides without ``vlmeval.task.ratio`` is undefined where that divides by nothing.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(metric.value(drawn), dtype=np.float64)


def resampled(
    task: Task, rows: Sequence[Row] | Sheet, clusters: Sequence[str], seed: int = 0, resamples: int | None = None
) -> dict[str, dict[str, Array]]:
    """Resampled counter sums by group: whole clusters are drawn with replacement.

    Args:
        task: whose groups are resampled.
        rows: scored answers, or their sheet.
        clusters: all clusters in a fixed order, so that two sets of rows are drawn alike.
        seed: of the draw.
        resamples: how many; None is 10,000.

    Returns:
        Group to counter to ``[R]`` sums.
    """
    from vlmeval.metrics.intervals import RESAMPLES, bootstrap

    columns_of = rows if isinstance(rows, Sheet) else sheet(task, rows, clusters)
    names, sums = columns_of.by_cluster()
    table = bootstrap(sums, resamples=resamples or RESAMPLES, seed=seed).T.copy()
    result: dict[str, dict[str, Array]] = {}
    for (group, name), column in zip(names, table, strict=True):
        result.setdefault(group, {})[name] = column
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
    table = sheet(task, rows, clusters)
    drawn = resampled(task, table, clusters, seed) if len(clusters) > 1 else {}
    result: dict[str, Any] = {"exact": {}, "rates": {}, "counts": {}, "n": {}, "clusters": len(clusters)}
    for group in groups:
        spread = table.spread(group)
        result["n"][group] = int(table.groups[group].sum()) if group in table.groups else 0
        sums = table.totals(group)
        result["counts"][group] = sums
        for metric in task.metrics:
            if group in metric.groups:
                figure = {
                    "value": value(metric, sums),
                    "n": int(sums.get(metric.n, 0)),
                    "interval": _interval(metric, sums, drawn.get(group), spread),
                }
                result[metric.column].setdefault(group, {})[metric.name] = figure
    return result


def _interval(
    metric: Metric, sums: Mapping[str, float], drawn: Mapping[str, Array] | None, clusters: int
) -> list[float] | None:
    from vlmeval.metrics.intervals import interval, wilson

    if value(metric, sums) is None:
        return None
    found = None
    if drawn and not metric.independent:
        found = interval(values(metric, drawn), clusters)
    if metric.proportion:
        successes, trials = (sums[name] for name in metric.proportion)
        if metric.independent or successes in (0, trials):
            # Resampling cannot vary what never varied; the score interval still says how much n answers can tell.
            # How alike the answers to one image are cannot be seen then: an image counts as one.
            counted = trials if metric.independent else min(trials, clusters)
            edge = wilson(counted * successes / trials, counted) if trials else None
            scale = 100 if metric.percent else 1
            found = (edge[0] * scale, edge[1] * scale) if edge else None
    elif metric.percent and found and found[0] == found[1]:
        return None
    return list(found) if found else None
