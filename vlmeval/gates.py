"""Limits that figures of a report must keep: what fails a build when a model got worse.

A limit is ``METRIC=VALUE`` or ``GROUP.METRIC=VALUE``. Without a group the metric's headline group is meant. For
metrics in percent a value up to 1 is a fraction, a larger one is percent: ``f1=0.9`` and ``f1=90`` are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlmdata.errors import ConfigError, choices
from vlmeval.task import Metric, Task, recorded
from vlmeval.view import cell

__all__ = ["Failure", "Gate", "Limit", "check", "failed", "gates", "parse"]


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit as it was given.

    Attributes:
        group: of the report; None for the metric's headline group.
        metric: its name in ``report.json``.
        value: as given: a fraction or percent where the metric is in percent.
        text: the whole of it, for messages.
    """

    group: str | None
    metric: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit beside what the report says.

    Attributes:
        limit: what was given.
        side: whether the figure may not be ``under`` or not ``over`` the limit.
        group: the group it was taken from.
        label: the metric's name in tables.
        bound: the limit in the metric's own unit.
        value: the figure as the report shows it, the official rounding where there is one; None where there is none.
        reason: why it failed, in one line; empty where it is kept.
    """

    limit: Limit
    side: Literal["under", "over"]
    group: str
    label: str
    bound: float
    value: float | None
    reason: str


Failure = Gate
"""A gate that did not hold: its ``reason`` is not empty."""


def parse(limits: Sequence[str]) -> list[Limit]:
    """Limits from ``METRIC=VALUE`` or ``GROUP.METRIC=VALUE``.

    Raises:
        ConfigError: one has no ``=``, no name, or a value that is no finite number.
    """
    found = []
    for text in limits:
        name, sign, number = text.rpartition("=")
        group, _, metric = name.strip().rpartition(".")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not sign or not metric or not math.isfinite(value):
            raise ConfigError(
                f"limit {text!r} is not understood: expected METRIC=NUMBER or GROUP.METRIC=NUMBER, as in f1=0.9"
            )
        found.append(Limit(group or None, metric, value, text.strip()))
    return found


def check(task: Task, limits: Sequence[Limit]) -> None:
    """Refuse limits on figures that the task does not have, before anything is asked.

    Raises:
        ConfigError: an unknown metric or group, with the valid ones.
    """
    for limit in limits:
        names = [metric.name for metric in task.metrics]
        if limit.metric not in names:
            valid = choices(dict.fromkeys(names))
            raise ConfigError(f"limit {limit.text}: {task.name} has no metric {limit.metric!r}; valid: {valid}")
        metric = _metric(task, limit)
        groups = [group for other in task.metrics if other.name == limit.metric for group in other.groups]
        if limit.group is not None and limit.group not in groups:
            raise ConfigError(
                f"limit {limit.text}: {limit.metric} has no group {limit.group!r}; valid: {choices(groups)}"
            )
        if metric.percent and not 0 <= limit.value <= 100:
            raise ConfigError(f"limit {limit.text}: expected a fraction from 0 to 1 or percent up to 100")


def gates(
    report: Mapping[str, Any], under: Sequence[Limit] = (), over: Sequence[Limit] = (), *, task: Task | None = None
) -> list[Gate]:
    """Every limit beside its figure, in the order given; a partial report keeps none. Arguments as of ``failed``."""
    task = task or recorded(report)
    return [
        *(_gate(task, report, limit, "under") for limit in under),
        *(_gate(task, report, limit, "over") for limit in over),
    ]


def failed(
    report: Mapping[str, Any], under: Sequence[Limit] = (), over: Sequence[Limit] = (), *, task: Task | None = None
) -> list[Failure]:
    """The limits that are not kept.

    Args:
        report: the content of ``report.json``.
        under: fail when the figure is smaller.
        over: fail when the figure is larger.
        task: whose report it is; None takes the one the report names.
    """
    return [gate for gate in gates(report, under, over, task=task) if gate.reason]


def _gate(task: Task, report: Mapping[str, Any], limit: Limit, side: Literal["under", "over"]) -> Gate:
    metric = _metric(task, limit)
    group = limit.group or _group(task, report, metric)
    # 1 percent is nobody's limit on accuracy; 1 as a fraction is a limit that only a perfect score keeps.
    bound = limit.value * 100 if metric.percent and abs(limit.value) <= 1 else limit.value
    value = cell(report, group, metric).value if group in report["counts"] else None
    shown = f"{group}.{metric.name}"
    if not report["coverage"]["complete"]:
        reason = f"{shown} is not known: {report['headline']}"
    elif value is None:
        reason = f"{shown} has no value in this report, {_word(side)} {bound:g} was asked for"
    elif value < bound if side == "under" else value > bound:
        reason = f"{shown} is {_exactly(value, bound)}, {_word(side)} {bound:g} was asked for"
    else:
        reason = ""
    return Gate(limit, side, group, metric.label, bound, value, reason)


def _word(side: str) -> str:
    return "at least" if side == "under" else "at most"


def _exactly(value: float, bound: float) -> str:
    """The value with as many digits as tell it from the bound."""
    return next((text for digits in (1, 2, 4) if (text := f"{value:.{digits}f}") != f"{bound:.{digits}f}"), repr(value))


def _metric(task: Task, limit: Limit) -> Metric:
    """Metrics of one name may stand in several groups, each with its own definition."""
    named = [metric for metric in task.metrics if metric.name == limit.metric]
    return next((metric for metric in named if limit.group in metric.groups), named[0])


def _group(task: Task, report: Mapping[str, Any], metric: Metric) -> str:
    """The headline group that was asked, else the widest group that was."""
    headline = [group for group, name in task.headline if name == metric.name]
    asked = [group for group in (*headline, *metric.groups) if group in report["counts"]]
    return (asked or [*headline, *metric.groups])[0]
