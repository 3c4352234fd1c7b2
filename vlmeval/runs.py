"""Evaluation folders as they are compared: read, checked line by line, and held against each other.

What cannot be compared is refused with the difference named; what compares badly becomes a note.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmdata import __version__
from vlmdata.errors import ConfigError, DataError, MissingError
from vlmeval import store

__all__ = ["Row", "Run", "called", "notes", "read", "same_questions"]

Row = Mapping[str, Any]

_REPORT: Mapping[str, type | tuple[type, ...]] = {
    "task": str, "headline": str, "protocol": dict, "coverage": dict, "counts": dict, "n": dict,
}  # fmt: skip
_KEYS = frozenset({"id", "groups", "cluster", "counts", "correct"})
_SHORT = 5


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation folder.

    Attributes:
        name: in the comparison.
        folder: where it lies.
        report: the content of ``report.json``.
        rows: the content of ``scores.jsonl``, in its order.
        answers: id to its row; of several answers to one item the first.
    """

    name: str
    folder: Path
    report: Mapping[str, Any]
    rows: Sequence[Row]
    answers: Mapping[int | str, Row] = field(default_factory=dict)


def called(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """What the runs are called: as given, or folder names with so much of their parents that they differ.

    Raises:
        ConfigError: there are more or fewer names than folders, or one twice.
    """
    if names and len(names) != len(folders):
        raise ConfigError(f"{len(names)} names for {len(folders)} runs: give --name once for each run, in order")
    found = list(names)
    if not names:
        places = [folder.resolve() for folder in folders]
        if len(set(places)) != len(places):
            again = next(folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1)
            raise ConfigError(f"{again} is given twice: give different evaluation folders, or --name once for each run")
        parts = [place.parts for place in places]
        depth = 1
        while len({part[-depth:] for part in parts}) < len(parts) and depth < max(map(len, parts)):
            depth += 1
        found = ["/".join(part[-depth:]) for part in parts]
    if len(set(found)) != len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ConfigError(f"two runs have the same name, {twice!r}: tell them apart by giving --name once for each run")
    return found


def read(folder: Path, name: str) -> Run:
    """An evaluation folder.

    Raises:
        MissingError: it is none, or its run did not finish.
        DataError: a file in it is damaged, or was written by something else.
    """
    if not folder.exists():
        raise MissingError(f"no evaluation folder {folder}")
    report = _report(folder / store.REPORT)
    path = folder / store.SCORES
    rows = [_row(path, number, line) for number, line in enumerate(_text(path).split("\n"), 1) if line]
    if not rows:
        raise DataError(f"{path} holds no scores: {folder} has nothing to compare")
    counted = report["coverage"]["answered"] + report["coverage"].get("duplicate", 0)
    if counted != len(rows):
        raise DataError(
            f"{path} holds {len(rows):,} scores where {store.REPORT} beside it counts {counted:,}: it is cut short or "
            f"of another run; vlmeval score {folder} writes both anew"
        )
    return Run(name, folder, report, rows, {row["id"]: row for row in reversed(rows)})


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingError(f"{path} is missing: {path.parent} is no evaluation folder, or its run did not finish")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{where} is JSON nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _report(path: Path) -> dict[str, Any]:
    report = _json(_text(path), str(path))
    made = report.get("version", "an unknown version")
    again = f"expected a report of vlmeval {__version__}, this one is of {made}; vlmeval score {path.parent} renews it"
    for key, kind in _REPORT.items():
        if key not in report:
            raise DataError(f"{path} has no {key!r}: {again}")
        if not isinstance(report[key], kind):
            raise DataError(f"{path}: {key!r} is {report[key]!r:.60}: {again}")
    if not report["counts"]:
        raise DataError(f"{path}: 'counts' is empty: {again}")
    coverage = report["coverage"]
    sound = isinstance(coverage.get("answered"), int) and isinstance(coverage.get("duplicate", 0), int)
    if not sound or "complete" not in coverage:
        raise DataError(f"{path}: 'coverage' is {coverage!r:.60}: {again}")
    if not isinstance(report["protocol"].get("answers"), dict) or not isinstance(report["protocol"].get("data"), dict):
        raise DataError(f"{path}: 'protocol' does not name answers and data: {again}")
    return report


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    row = _json(line, where)
    absent = sorted(_KEYS - row.keys())
    if absent:
        raise DataError(f"{where} is no score: it has no {absent[0]!r}")
    groups, counts = row["groups"], row["counts"]
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise DataError(f"{where}: 'groups' is {groups!r:.60}, expected a list of names")
    if not isinstance(row["id"], int | str) or not isinstance(row["cluster"], str):
        raise DataError(f"{where}: id {row['id']!r:.40} or cluster {row['cluster']!r:.40} is no name")
    if row["correct"] not in (True, False, None):
        raise DataError(f"{where}: 'correct' is {row['correct']!r:.60}, expected true, false or null")
    for name in ("counts", "facets", "detail"):
        if not isinstance(row.get(name, {}), dict):
            raise DataError(f"{where}: {name!r} is {row[name]!r:.60}, expected an object")
    if not _finite(counts.values()):
        name, value = next((name, value) for name, value in counts.items() if not _finite((value,)))
        raise DataError(f"{where} (id {row['id']}): counter {name!r} is {value!r:.40}, expected a finite number")
    return row


def _finite(values: Iterable[Any]) -> bool:
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def notes(runs: Sequence[Run]) -> list[str]:
    """What compares badly.

    Raises:
        ConfigError: the runs are of different tasks, or were scored on different data.
    """
    found = [f"{run.name}: {run.report['headline']}" for run in runs if run.report["headline"]]
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
        found += _unlike(first, run)
    if len({run.report["coverage"]["answered"] for run in runs}) > 1:
        found.append("The runs answered different numbers of items: the table shows each on its own, tests are paired.")
    for run in runs:
        if again := len(run.rows) - len(run.answers):
            found.append(f"{run.name} answers {again} items again: pairs are made of the first answer to each.")
    return found + _twins(runs)


def _unlike(first: Run, run: Run) -> list[str]:
    """Rules of scoring and versions that differ."""
    ours, theirs = first.report["protocol"], run.report["protocol"]
    # What the answers were like is a result, not a rule.
    found = [
        f"{key.replace('_', ' ')} differs: {first.name} {ours[key]!s:.80}, {run.name} {theirs[key]!s:.80}"
        for key in sorted((ours.keys() & theirs.keys()) - {"answers", "data", "unread"})
        if ours[key] != theirs[key]
    ]
    code = [(one.report.get("task_file") or {}).get("sha256") for one in (first, run)]
    if code[0] != code[1]:
        found.append(f"The task's file changed between {first.name} and {run.name}: vlmeval score scores both alike.")
    versions = [one.report.get("version") for one in (first, run)]
    if versions[0] != versions[1]:
        found.append(f"vlmeval differs: {first.name} was scored by {versions[0]}, {run.name} by {versions[1]}")
    return found


def _twins(runs: Sequence[Run]) -> list[str]:
    """Runs that are one folder, or gave one set of answers."""
    found = []
    said = [{ident: row.get("response") for ident, row in run.answers.items()} for run in runs]
    for place, run in enumerate(runs):
        for number, before in enumerate(runs[:place]):
            if before.folder.resolve() == run.folder.resolve():
                found.append(f"{before.name} and {run.name} are the same folder.")
            elif said[number] == said[place]:
                found.append(f"{before.name} and {run.name} gave identical answers to all {len(run.answers):,} items.")
    return found


def same_questions(one: Run, other: Run, common: Sequence[int | str]) -> list[str]:
    """Check that items of one id are the same question in both runs; what differs without harm as notes.

    Raises:
        ConfigError: an item shows other images or has another truth.
    """
    worded: list[int | str] = []
    bare = set()
    for ident in common:
        a, b = one.answers[ident], other.answers[ident]
        ours, theirs = a.get("images") or [], b.get("images") or []
        if ours != theirs:
            if ours and theirs:
                raise ConfigError(
                    f"item {ident} shows {', '.join(map(str, ours))} in {one.name} and "
                    f"{', '.join(map(str, theirs))} in {other.name}: expected runs on the same questions"
                )
            bare.add(one.name if theirs else other.name)
        if a.get("target") != b.get("target"):
            raise ConfigError(
                f"the truth of item {ident} is {a.get('target')!r:.60} in {one.name} and {b.get('target')!r:.60} in "
                f"{other.name}: expected runs on the same questions"
            )
        if a.get("prompt") != b.get("prompt"):
            worded.append(ident)
    found = [f"{name} does not know the images: those of the other run say what belongs together." for name in bare]
    if worded:
        few = ", ".join(map(str, worded[:_SHORT])) + (", ..." if len(worded) > _SHORT else "")
        found.append(f"{one.name} and {other.name} were asked in other words at {len(worded):,} items ({few}).")
    return found
