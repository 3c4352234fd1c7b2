"""Reports as tables of cells: what terminal, Markdown and HTML have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmeval.task import Metric, Task

__all__ = ["Cell", "Panel", "cell", "figure", "panels", "protocol_rows", "short", "signed", "span"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure.

    Attributes:
        text: the value as shown: the official rounding where there is one.
        value: the number behind the text; None where it is undefined.
        low: lower end of the 95 % interval.
        high: upper end.
        span: the interval as shown; empty without one.
        percent: whether it can be drawn on a scale of 0 to 100.
    """

    text: str
    value: float | None
    low: float | None
    high: float | None
    span: str
    percent: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """A table of groups that share their metrics: ``rows`` are (group, title, cells, scored answers)."""

    metrics: tuple[Metric, ...]
    rows: tuple[tuple[str, str, tuple[Cell, ...], int], ...]


def short(value: float | None) -> str:
    """A number to one decimal; a dash where it is undefined."""
    return "–" if value is None else f"{value:.1f}"


def signed(value: float | None) -> str:
    """A difference to one decimal, with its sign."""
    return "–" if value is None else f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def span(interval: Sequence[float] | None) -> str:
    """An interval: ``89.1–90.1``."""
    return f"{interval[0]:.1f}–{interval[1]:.1f}" if interval else ""


def figure(report: Mapping[str, Any], group: str, metric: Metric) -> Mapping[str, Any] | None:
    """The figure of a metric in a report: value, n, interval; None where the group was not asked."""
    found: Mapping[str, Any] | None = report.get(metric.column, {}).get(group, {}).get(metric.name)
    return found


def cell(report: Mapping[str, Any], group: str, metric: Metric) -> Cell:
    """A metric of a group as a cell: the official value where there is one, with the exact value's interval."""
    exact = figure(report, group, metric)
    if exact is None or not report["n"][group]:
        return Cell("–", None, None, None, "", metric.percent)
    official = report.get("official", {}).get(group, {}).get(metric.name)
    value = exact["value"] if official is None else official
    low, high = exact["interval"] or (None, None)
    return Cell(short(value), value, low, high, span(exact["interval"]), metric.percent)


def panels(task: Task, report: Mapping[str, Any]) -> list[Panel]:
    """All figures of a report, groups with the same metrics in one table."""
    groups = [group for group in task.groups if group in report["counts"]]
    shapes: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        shapes.setdefault(tuple(m.name for m in task.metrics if group in m.groups), []).append(group)
    result = []
    for shape, members in shapes.items():
        metrics = tuple(metric for metric in task.metrics if metric.name in shape and members[0] in metric.groups)
        rows = [(g, task.groups[g], tuple(cell(report, g, m) for m in metrics), report["n"][g]) for g in members]
        result.append(Panel(metrics, tuple(rows)))
    return result


def protocol_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The protocol as (name, value) pairs, nested names joined by dots, data hashes shortened."""
    rows: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), inner)
        elif value is not None and value != "":
            text = str(value)
            rows.append((prefix.replace("_", " "), text[:16] + "…" if len(text) == 64 and text.isalnum() else text))

    walk("", {name: value for name, value in report["protocol"].items() if name != "data"})
    rows += [(f"sha256 {name}", digest[:16] + "…") for name, digest in report["protocol"].get("data", {}).items()]
    return rows
