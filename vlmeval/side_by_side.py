"""The figures of several runs side by side: what terminal, Markdown and HTML of a comparison have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmeval.compare import Comparison, Pair
from vlmeval.task import Metric
from vlmeval.view import Cell, cell, headline

__all__ = ["Line", "against_before", "difference", "lines", "named"]

_NAMED = 4


@dataclass(frozen=True, slots=True)
class Line:
    """One headline figure: its group, its metric, a cell for each run."""

    group: str
    metric: Metric
    cells: tuple[Cell, ...]


def lines(comparison: Comparison) -> list[Line]:
    """The headline figures that any of the runs has, in the task's order."""
    found = {
        (group, metric.name): metric
        for run in comparison.runs
        for group, metric in headline(comparison.task, run.report)
    }
    order = {key: place for place, key in enumerate(comparison.task.headline)}
    wanted = sorted(found, key=lambda key: order.get(key, len(order)))
    if any(key in order for key in wanted):
        wanted = [key for key in wanted if key in order]
    return [
        Line(key[0], found[key], tuple(_cell(run.report, key[0], found[key]) for run in comparison.runs))
        for key in wanted
    ]


def named(comparison: Comparison) -> str:
    """The runs by name; of many only how many there are."""
    if len(comparison.runs) > _NAMED:
        return f"{len(comparison.runs)} runs"
    return " · ".join(run.name for run in comparison.runs)


def _cell(report: Mapping[str, Any], group: str, metric: Metric) -> Cell:
    if group not in report["counts"]:
        return Cell("–", None, None, None, "", metric.percent)
    return cell(report, group, metric)


def difference(pair: Pair, group: str, metric: Metric) -> Mapping[str, Any] | None:
    """The difference of a metric in a group; None where one of the two has no value."""
    same = (entry for entry in pair.differences if entry["group"] == group and entry["metric"] == metric.name)
    return next(same, None)


def against_before(comparison: Comparison, index: int, line: Line) -> str:
    """The verdict of a run against the run to its left; empty where there is none."""
    if index == 0:
        return ""
    names = (comparison.runs[index - 1].name, comparison.runs[index].name)
    pair = next((pair for pair in comparison.pairs if (pair.one, pair.other) == names), None)
    found = difference(pair, line.group, line.metric) if pair else None
    return str(found["verdict"]) if found else ""
