"""Two or more evaluations of one task: what differs, and what of it is more than noise.

Figures stand side by side as each run reports them. Tests are paired, over the items both runs answered: exact
McNemar on right and wrong answers and its form for whole images, and for every metric the bootstrap of its difference,
images drawn alike for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, choices
from vlmeval import runs as folders
from vlmeval import verdicts
from vlmeval.pairs import Draws, Pair, pair
from vlmeval.runs import Run
from vlmeval.task import Task, recorded

__all__ = ["Comparison", "Pair", "Run", "compare"]

_ALL_PAIRS = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs, all pairs (with more than three runs: each against the first, and neighbours), all warnings.

    Attributes:
        task: of all runs.
        runs: the baseline first, the others in the order they were given.
        pairs: see ``Pair``; those with the baseline come first.
        notes: what a reader must be told.
        order: names of the runs by the first headline figure, best first.
        sentences: what was found, in plain English: a few lines for each pair, one for each of many.
    """

    task: Task
    runs: Sequence[Run]
    pairs: Sequence[Pair]
    notes: Sequence[str]
    order: Sequence[str] = ()
    sentences: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the texts, which stand in the runs' own files; see ``vlmeval.tidy``."""
        from vlmeval.tidy import to_json

        return to_json(self)


def compare(
    runs: Sequence[str | Path],
    *,
    names: Sequence[str] = (),
    baseline: str | None = None,
    task: str | Path | None = None,
) -> Comparison:
    """Compare evaluation folders; the first is the one others are measured against.

    Args:
        runs: two or more folders written by ``evaluate``.
        names: what to call them, in order; the folders' own names when left out.
        baseline: name of the run to be measured against instead of the first.
        task: Python file of a task of one's own, where it is not where the runs recorded it.

    Raises:
        ConfigError: fewer than two runs, names that do not fit, or runs of different tasks, data or questions.
        MissingError: a folder is no finished evaluation.
        DataError: a file in it is damaged.
    """
    if len(runs) < 2:
        raise ConfigError(f"compare takes two or more evaluation folders, got {len(runs)}")
    called = folders.called([Path(run) for run in runs], names)
    if baseline is not None and baseline not in called:
        raise ConfigError(f"--baseline {baseline!r} is none of the runs; valid: {choices(called)}")
    read = [folders.read(Path(run), name) for run, name in zip(runs, called, strict=True)]
    read.sort(key=lambda run: run.name != (baseline or called[0]))
    notes = folders.notes(read)
    found = recorded(read[0].report, task)
    draws = Draws(found, {ident: place for place, ident in enumerate(_idents(read))})
    few = len(read) <= _ALL_PAIRS
    pairs = [pair(one, other, draws, full=few or one is read[0]) for one, other in _pairs(read, notes)]
    notes += _strange(found, read)
    _correct(pairs)
    _say(found, pairs)
    order = verdicts.standing(found, {run.name: run.report for run in read})
    return Comparison(found, read, pairs, [*notes, *draws.notes, *_rough(pairs)], order, _sentences(found, read, pairs))


def _strange(task: Task, runs: Sequence[Run]) -> list[str]:
    """Groups in the scores that the task does not have: they are in no figure."""
    found = []
    for run in runs:
        for group in dict.fromkeys(group for row in run.rows for group in row["groups"] if group not in task.groups):
            count = sum(group in row["groups"] for row in run.rows)
            found.append(
                f"{count:,} scores of {run.name} count in {group!r}, which {task.name} does not have any more."
            )
    return found


def _idents(runs: Sequence[Run]) -> dict[int | str, None]:
    """All ids, in the order of the first run, then of the others."""
    return {row["id"]: None for run in runs for row in run.rows}


def _pairs(runs: Sequence[Run], notes: list[str]) -> list[tuple[Run, Run]]:
    """Runs to be paired; two that share no item are refused when one is the baseline, else left out with a note."""
    first = runs[0]
    for run in runs[1:]:
        if not first.answers.keys() & run.answers.keys():
            raise ConfigError(f"{first.name} and {run.name} have no item in common: there is nothing to compare")
    wanted = [(first, run) for run in runs[1:]]
    others = list(combinations(runs[1:], 2) if len(runs) <= _ALL_PAIRS else zip(runs[1:], runs[2:], strict=False))
    for one, other in others:
        if one.answers.keys() & other.answers.keys():
            wanted.append((one, other))
        else:
            notes.append(f"{one.name} and {other.name} have no item in common and are not paired.")
    return wanted


def _correct(pairs: Sequence[Pair]) -> None:
    """Holm's correction: headline figures of all pairs are one family, McNemar tests of all groups another."""
    from vlmeval.metrics.pair_tests import holm

    tests = [test for found in pairs for test in found.mcnemar.values()]
    for key in ("p", "clustered_p"):
        for test, corrected in zip(tests, holm([test[key] for test in tests]), strict=True):
            test[f"{key}_holm"] = corrected
    entries = [entry for found in pairs for entry in found.differences]
    family = [entry["p"] if entry["headline"] else None for entry in entries]
    for entry, corrected in zip(entries, holm(family), strict=True):
        entry["p_holm"] = corrected


def _say(task: Task, pairs: Sequence[Pair]) -> None:
    metrics = {metric.name: metric for metric in task.metrics}
    for entry in (entry for found in pairs for entry in (*found.differences, *found.by_facet)):
        entry["words"] = verdicts.words(entry, metrics[entry["metric"]])


def _rough(pairs: Sequence[Pair]) -> list[str]:
    from vlmeval.metrics.intervals import FEW

    least = min(found.images for found in pairs)
    if least >= FEW:
        return []
    return [f"Intervals of differences are rough: they rest on {least} images, {FEW} or more are wanted."]


def _sentences(task: Task, runs: Sequence[Run], pairs: Sequence[Pair]) -> list[str]:
    many = len(runs) > _ALL_PAIRS
    shown = [found for found in pairs if not many or found.one == runs[0].name]
    lines = [line for found in shown for line in verdicts.pair_lines(task, found, brief=many)]
    return [*lines, *verdicts.changed(task, pairs)]
