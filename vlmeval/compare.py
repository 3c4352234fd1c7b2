"""Two or more evaluations of one task: what differs, and what of it is more than noise.

Figures stand side by side as each run reports them. Tests are paired, over the items both runs answered: exact
McNemar on right and wrong answers, and for every metric the bootstrap of its difference, images drawn alike for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmeval import measure, store
from vlmeval.metrics.sums import total
from vlmeval.task import Task, load

__all__ = ["Comparison", "Pair", "Run", "compare"]

_ALL_PAIRS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation folder: its name in the comparison, its report, its scores."""

    name: str
    folder: Path
    report: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs, paired.

    Attributes:
        one: name of the first.
        other: name of the second.
        common: items both answered.
        mcnemar: group to ``right_to_wrong``, ``wrong_to_right`` and the exact two-sided ``p``.
        differences: ``group``, ``metric``, ``difference`` (second minus first, in the metric's unit), ``interval``
            (95 %) and ``verdict``: better, worse, changed or inside noise.
        flips: items one got right and the other wrong: (row of the first, row of the second).
        texts: texts of both to the same item: (row of the first, row of the second).
    """

    one: str
    other: str
    common: int
    mcnemar: Mapping[str, Mapping[str, Any]]
    differences: Sequence[Mapping[str, Any]]
    flips: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    texts: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs, all pairs (with more than three runs: neighbours, and each against the first), all warnings."""

    task: Task
    runs: Sequence[Run]
    pairs: Sequence[Pair]
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Everything but the texts, which stand in the runs' own files."""
        keep = ("coverage", "official", "exact", "rates", "headline")
        return {
            "task": self.task.name,
            "runs": [{"name": run.name, **{k: run.report[k] for k in keep if k in run.report}} for run in self.runs],
            "pairs": [_pair_json(pair) for pair in self.pairs],
            "notes": list(self.notes),
        }


def compare(runs: Sequence[str | Path], *, names: Sequence[str] = ()) -> Comparison:
    """Compare evaluation folders; the first is the one others are measured against.

    Args:
        runs: two or more folders written by ``evaluate``.
        names: what to call them, in order; the folders' own names when left out.

    Raises:
        ConfigError: fewer than two runs, names that do not fit, or runs of different tasks or data.
        MissingError: a folder is no finished evaluation.
        DataError: a file in it is damaged.
    """
    if len(runs) < 2:
        raise ConfigError(f"compare takes two or more evaluation folders, got {len(runs)}")
    if names and len(names) != len(runs):
        raise ConfigError(f"{len(names)} names for {len(runs)} runs: give --name once for each run, in order")
    called = list(names) or _names([Path(run) for run in runs])
    if len(set(called)) != len(called):
        raise ConfigError(f"two runs have the same name in {', '.join(called)}: give --name once for each run")
    read = [_read(Path(run), name) for run, name in zip(runs, called, strict=True)]
    task = load(read[0].report["task"])
    notes = _comparable(read)
    pairs = [_pair(task, one, other) for one, other in _pairs(read)]
    return Comparison(task, read, pairs, notes)


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names; with so much of their parents that they differ."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read(folder: Path, name: str) -> Run:
    report = store.read_json(folder / store.REPORT)
    rows = store.read_rows(folder / store.SCORES)
    needed = ("task", "protocol", "coverage", "counts", "headline")
    absent = [key for key in needed if key not in report]
    if absent:
        raise DataError(f"{folder / store.REPORT} has no {absent[0]!r}: expected a report of vlmeval")
    for number, row in enumerate(rows, 1):
        if not {"id", "groups", "cluster", "counts", "correct"} <= row.keys():
            raise DataError(f"{folder / store.SCORES}, line {number} is no score")
    return Run(name, folder, report, rows)


def _comparable(runs: Sequence[Run]) -> list[str]:
    """Refuse what cannot be compared; say what compares badly."""
    notes = [f"{run.name}: {run.report['headline']}" for run in runs if run.report["headline"]]
    first = runs[0]
    for run in runs[1:]:
        if run.report["task"] != first.report["task"]:
            raise ConfigError(
                f"{first.name} is an evaluation of {first.report['task']}, {run.name} of {run.report['task']}: "
                "expected runs of one task"
            )
        ours, theirs = first.report["protocol"], run.report["protocol"]
        changed = [name for name in ours["data"] if theirs["data"].get(name, ours["data"][name]) != ours["data"][name]]
        if changed:
            raise ConfigError(f"{first.name} and {run.name} were scored on different data: {changed[0]} differs")
        # What the answers were like is a result, not a rule.
        for key in sorted((ours.keys() & theirs.keys()) - {"answers", "data", "unread"}):
            if ours[key] != theirs[key]:
                notes.append(f"{key.replace('_', ' ')} differs: {first.name} {ours[key]}, {run.name} {theirs[key]}")
    if len({run.report["coverage"]["answered"] for run in runs}) > 1:
        notes.append("The runs answered different numbers of items: the table shows each on its own, tests are paired.")
    return notes


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    if len(runs) <= _ALL_PAIRS:
        return list(combinations(runs, 2))
    with_first = [(runs[0], run) for run in runs[1:]]
    return [*with_first, *zip(runs[1:], runs[2:], strict=False)]


def _pair(task: Task, one: Run, other: Run) -> Pair:
    left, right = ({row["id"]: row for row in reversed(run.rows)} for run in (one, other))
    both = [(left[ident], right[ident]) for ident in dict.fromkeys(row["id"] for row in one.rows) if ident in right]
    flips = [(a, b) for a, b in both if None not in (a["correct"], b["correct"]) and a["correct"] != b["correct"]]
    texts = [(a, b) for a, b in both if a["correct"] is None and b["correct"] is None]
    return Pair(one.name, other.name, len(both), _mcnemar(task, both), _differences(task, both), flips, texts)


def _mcnemar(task: Task, both: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    from vlmeval.metrics.intervals import mcnemar

    result = {}
    answered = [(a, b) for a, b in both if None not in (a["correct"], b["correct"])]
    for group in measure.groups_of(task, [a for a, _ in answered]):
        members = [(a["correct"], b["correct"]) for a, b in answered if group in a["groups"] and group in b["groups"]]
        lost, won = members.count((True, False)), members.count((False, True))
        result[group] = {"n": len(members), "right_to_wrong": lost, "wrong_to_right": won, "p": mcnemar(lost, won)}
    return result


def _differences(task: Task, both: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[dict[str, Any]]:
    import numpy as np

    from vlmeval.metrics.intervals import interval

    clusters = list(dict.fromkeys(a["cluster"] for a, _ in both))
    sides: list[list[Mapping[str, Any]]] = [[a for a, _ in both], [b for _, b in both]]
    drawn = [measure.resampled(task, side, clusters) if len(clusters) > 1 else {} for side in sides]
    result = []
    for group in measure.groups_of(task, sides[0]):
        sums = [total(row["counts"] for row in side if group in row["groups"]) for side in sides]
        for metric in (metric for metric in task.metrics if group in metric.groups):
            before, after = (measure.value(metric, side) for side in sums)
            if before is None or after is None:
                continue
            span = None
            if all(group in side for side in drawn):
                low, high = (np.asarray(metric.value(side[group]), dtype=np.float64) for side in drawn)
                span = interval(high - low)
            result.append(
                {
                    "group": group,
                    "metric": metric.name,
                    "difference": after - before,
                    "interval": list(span) if span else None,
                    "verdict": _verdict(after - before, span, metric.better),
                }
            )
    return result


def _verdict(difference: float, span: tuple[float, float] | None, better: str | None) -> str:
    if span is None:
        return "unknown"
    if span[0] <= 0 <= span[1]:
        return "inside noise"
    if better is None:
        return "changed"
    return "better" if (difference > 0) == (better == "high") else "worse"


def _pair_json(pair: Pair) -> dict[str, Any]:
    flips = [
        {
            "id": a["id"],
            "groups": a["groups"],
            "prompt": a.get("prompt"),
            "target": a.get("target"),
            "one": a.get("response"),
            "other": b.get("response"),
            "change": "right_to_wrong" if a["correct"] else "wrong_to_right",
        }
        for a, b in pair.flips
    ]
    whole = {"one": pair.one, "other": pair.other, "common": pair.common, "mcnemar": pair.mcnemar}
    return {**whole, "differences": list(pair.differences), "flips": flips}
