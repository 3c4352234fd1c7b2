"""A report's figures among published ones: one table, the best first, warnings where the protocols differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmeval.task import Metric, Task
from vlmeval.view import Cell, cell, headline, partial, short, subject

__all__ = ["Place", "Published", "table"]


@dataclass(frozen=True, slots=True)
class Place:
    """One row: a name, a figure for each metric of the table, the number of its source, whether it is this run."""

    name: str
    figures: tuple[Cell, ...]
    source: int | None
    own: bool


@dataclass(frozen=True, slots=True)
class Published:
    """The whole table.

    Attributes:
        metrics: its columns.
        places: its rows, best first by the first column; those without that figure last.
        sources: where the published figures come from, in the order of their numbers, which begin at 1.
        warnings: where the protocols differ.
    """

    metrics: tuple[Metric, ...]
    places: tuple[Place, ...]
    sources: tuple[str, ...]
    warnings: tuple[str, ...]


def table(
    task: Task, report: Mapping[str, Any], runs: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> Published | None:
    """Published figures with the run's own among them; None where the report has none.

    Args:
        task: whose report it is.
        report: the content of ``report.json``; its ``published`` holds ``rows`` (``name``, ``figures`` by metric or
            by group and metric joined by a dot, ``source``) and ``warnings``.
        runs: (name, report) of the runs to stand in the table; the report's own when left out.
    """
    found = report.get("published") or {}
    rows = found.get("rows") or ()
    if not rows:
        return None
    own = list(runs) or [(subject(report), report)]
    columns = [
        (group, metric)
        for group, metric in headline(task, report)
        if any(_named(row, group, metric) is not None for row in rows)
    ]
    if not columns:
        return None
    places = [
        Place(_marked(name, mine), tuple(cell(mine, group, metric) for group, metric in columns), None, True)
        for name, mine in own
    ]
    sources = list(dict.fromkeys(str(row["source"]) for row in rows if row.get("source")))
    for row in rows:
        figures = tuple(_published(_named(row, group, metric), metric) for group, metric in columns)
        source = sources.index(str(row["source"])) + 1 if row.get("source") else None
        places.append(Place(str(row["name"]), figures, source, False))
    first = columns[0][1]
    sign = 1 if first.better == "low" else -1
    places.sort(key=lambda place: (place.figures[0].value is None, sign * (place.figures[0].value or 0.0)))
    return Published(
        tuple(metric for _, metric in columns), tuple(places), tuple(sources), tuple(found.get("warnings") or ())
    )


def _marked(name: str, report: Mapping[str, Any]) -> str:
    """A partial result is never shown as a full one."""
    return f"{name} ({partial(report)})" if partial(report) else name


def _named(row: Mapping[str, Any], group: str, metric: Metric) -> float | None:
    figures = row.get("figures") or {}
    value = figures.get(f"{group}.{metric.name}", figures.get(metric.name))
    return None if value is None else float(value)


def _published(value: float | None, metric: Metric) -> Cell:
    return Cell(short(value), value, None, None, "", metric.percent)
