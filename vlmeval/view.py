"""Reports as tables of cells: what terminal, Markdown and HTML have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmdata.terminal import harmless
from vlmeval.task import Metric, Task

__all__ = [
    "Cell",
    "Panel",
    "baselines",
    "blind",
    "cell",
    "figure",
    "headline",
    "label",
    "panels",
    "partial",
    "protocol_rows",
    "run_rows",
    "short",
    "shown",
    "signed",
    "span",
    "speed_lines",
    "subject",
]


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


def shown(value: Any) -> str:
    """A value of a report's table: whole numbers grouped, others to four digits, a dash for nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) or value.is_integer() and abs(value) >= 100 else f"{value:.4g}"


def speed_lines(report: Mapping[str, Any]) -> list[str]:
    """How long an answer took, images read and text decoded; nothing where no time was taken."""
    if "speed" not in report:
        return []
    source = report["protocol"]["answers"]
    how = [
        f"{source['batch_size']} at a time" if source.get("batch_size") else "",
        f"on {source['device']}" if source.get("device") else "",
    ]
    each = ", ".join([f"{report['speed']['seconds_per_answer']:.3g} s an answer", *filter(None, how)])
    return [f"{each} ({report['speed']['answers']:,} answers timed)."]


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


def subject(report: Mapping[str, Any]) -> str:
    """What was evaluated, in words, on one line."""
    source = report["protocol"]["answers"]
    if source["kind"] == "responses":
        return harmless(f"answers in {source['file']}")
    return harmless(f"{source['model']} + {source['adapter']}" if source.get("adapter") else str(source["model"]))


def label(metric: Metric) -> str:
    """A metric's name with the direction that is better."""
    return metric.label + {"high": " ↑", "low": " ↓", None: ""}[metric.better]


def partial(report: Mapping[str, Any]) -> str:
    """``PARTIAL n/N`` of an incomplete report; empty for a complete one."""
    return "" if report["coverage"]["complete"] else str(report["headline"]).split(" \N{MIDDLE DOT} ")[0]


def headline(task: Task, report: Mapping[str, Any]) -> list[tuple[str, Metric]]:
    """(group, metric) of the task's headline, or of the first group where no headline group was asked."""
    asked = [
        (group, metric)
        for group, name in task.headline
        for metric in task.metrics
        if metric.name == name and group in metric.groups and group in report["counts"]
    ]
    first = next(iter(report["counts"]))
    return asked or [(first, metric) for metric in task.metrics if first in metric.groups]


def blind(said: str) -> str:
    """What a blind baseline is called: ``all-no`` for ``all_no``; names of classes stay as they are."""
    return said.replace("_", "-") if said in ("all_no", "all_yes") else said


def baselines(report: Mapping[str, Any], group: str, name: str) -> list[tuple[str, float]]:
    """What answers given blindly score: (what is said, value in the metric's unit)."""
    return [
        (blind(said), groups[group][name])
        for said, groups in report.get("baselines", {}).items()
        if groups.get(group, {}).get(name) is not None
    ]


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
    rows = _flat({name: value for name, value in report["protocol"].items() if name != "data"})
    rows += [(f"sha256 {name}", digest[:16] + "…") for name, digest in report["protocol"].get("data", {}).items()]
    return rows


def run_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it takes to repeat the run, as ``protocol_rows``, without what stands there already."""
    elsewhere = ("answers", "data", "format", "task", "timed")
    return _flat({name: value for name, value in report.get("run", {}).items() if name not in elsewhere})


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            row for name, inner in value.items() for row in _flat(inner, f"{prefix}.{name}" if prefix else str(name))
        ]
    if value is None or value == "":
        return []
    text = str(value)
    return [(prefix.replace("_", " "), text[:16] + "…" if len(text) == 64 and text.isalnum() else text)]
