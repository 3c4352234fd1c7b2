"""Two runs, paired over the items both answered: tests, differences of every metric, by group and by facet.

Images are drawn alike for both runs, so an interval is that of the difference, not of two figures on their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmeval import changes
from vlmeval.measure import Sheet, resampled, sheet
from vlmeval.runs import Row, Run, same_questions
from vlmeval.task import Task

if TYPE_CHECKING:
    from vlmeval.metrics.intervals import Array

__all__ = ["Draws", "Matched", "Pair", "pair"]

_BUDGET = 512 << 20

Sums = Mapping[str, Mapping[str, "Array"]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs, paired.

    Attributes:
        one: name of the first.
        other: name of the second.
        common: items both answered.
        mcnemar: group to ``n``, ``right_to_wrong``, ``wrong_to_right``; the exact two-sided ``p`` and ``mid_p``, which
            take questions for independent; ``clustered_p``, exact as well, which takes whole ``images`` (how many
            changed); and ``p_holm`` and ``clustered_p_holm``, corrected for all groups and pairs of the comparison.
        differences: one mapping for each group and metric: ``group``, ``metric``, ``label``, ``before``, ``after``,
            ``difference`` (second minus first, in the metric's unit), ``interval`` (95 %), ``se``, ``p`` (two-sided,
            from the resamples), ``p_holm`` (corrected for all headline figures of all pairs; None elsewhere), ``n``
            (items), ``images``, ``mdd`` (the least true difference that this comparison finds four times in five),
            ``images_needed`` (to find the observed one as often), ``verdict`` (better, worse, changed, inside noise or
            unknown), ``headline`` (whether it is one) and ``words``.
        flips: items one got right and the other wrong: (row of the first, row of the second).
        texts: texts of both to the same item: (row of the first, row of the second).
        by_facet: as ``differences``, for every value of every facet (``facet``, ``value``) within the widest group of
            its items, but of more than three runs only against the first; with ``small`` (fewer than ten images),
            ``right_to_wrong``, ``wrong_to_right``, their exact ``clustered_p`` over images and ``clustered_p_holm``,
            corrected for all values of the facet; a group's first figure before its others, largest change first.
        reading: ``n``, and ids that became readable (``unread_to_read``), unreadable (``read_to_unread``) or stayed
            unreadable (``unread_in_both``); None where answers are not read.
        probabilities: what changed in the probability of the truth, see ``vlmeval.changes.probabilities``; None where
            the answers carry none.
        same: items to which both gave the same response.
        images: different images among the common items.
    """

    one: str
    other: str
    common: int
    mcnemar: Mapping[str, dict[str, Any]]
    differences: Sequence[dict[str, Any]]
    flips: Sequence[tuple[Row, Row]]
    texts: Sequence[tuple[Row, Row]]
    by_facet: Sequence[dict[str, Any]] = ()
    reading: Mapping[str, Any] | None = None
    probabilities: Mapping[str, Any] | None = None
    same: int = 0
    images: int = 0


@dataclass(slots=True)
class Draws:
    """Resampled sums of runs: a run that stands in several pairs over the same items is drawn once.

    Attributes:
        task: whose counters are drawn.
        rank: id to its place; items are put in this order, so that figures do not depend on the files' order.
        notes: what was found out on the way.
    """

    task: Task
    rank: Mapping[int | str, int]
    notes: list[str] = field(default_factory=list)
    _frames: list[tuple[Any, ...]] = field(default_factory=list)
    _kept: dict[tuple[str, int], tuple[Sheet, Sums]] = field(default_factory=dict)
    _bytes: int = 0

    def of(self, run: Run, matched: Matched) -> tuple[Sheet, Sums]:
        """A run's answers to the matched items by column, and their resampled sums."""
        frame = (matched.ids, matched.groups, matched.clusters)
        if frame not in self._frames:
            self._frames.append(frame)
        key = (run.name, self._frames.index(frame))
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)
            return self._kept[key]
        names = sorted(set(matched.clusters))
        rows = [run.answers[ident] for ident in matched.ids]
        table = sheet(self.task, rows, names, groups=matched.groups, cluster=matched.clusters)
        drawn = resampled(self.task, table, names) if len(names) > 1 else {}
        self._kept[key] = table, drawn
        self._bytes += _size(drawn)
        while self._bytes > _BUDGET and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            self._bytes -= _size(self._kept.pop(oldest)[1])
        return table, drawn


def _size(drawn: Sums) -> int:
    return sum(values.nbytes for group in drawn.values() for values in group.values())


@dataclass(frozen=True, slots=True)
class Matched:
    """Items both runs answered: ids in order, the groups both count them in, what they are clustered by."""

    ids: list[int | str]
    groups: list[tuple[str, ...]]
    clusters: list[str]


def _groups(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    return tuple(one) if one == other else tuple(group for group in one if group in other)


def pair(one: Run, other: Run, draws: Draws, *, full: bool = True) -> Pair:
    """Two runs, paired.

    Args:
        one: the first, which the differences are taken from.
        other: the second.
        draws: of this comparison; gets notes.
        full: whether the breakdown by facet is made and what compares badly is noted.

    Raises:
        ConfigError: an item is another question in the other run.
    """
    task = draws.task
    common = sorted(one.answers.keys() & other.answers.keys(), key=draws.rank.__getitem__)
    notes = same_questions(one, other, common)
    draws.notes.extend(note for note in notes if full and note not in draws.notes)
    both = [(one.answers[ident], other.answers[ident]) for ident in common]
    matched = Matched(
        common,
        [_groups(a["groups"], b["groups"]) for a, b in both],
        [(a if a.get("images", True) else b)["cluster"] for a, b in both],
    )
    sides = [draws.of(run, matched) for run in (one, other)]
    sheets = (sides[0][0], sides[1][0])
    marks = changes.correctness(both)
    judged = [(a, b) for a, b in both if a["correct"] is not None and b["correct"] is not None]
    return Pair(
        one.name,
        other.name,
        len(common),
        changes.tests(sheets[0], marks),
        changes.by_group(task, sheets, (sides[0][1], sides[1][1]), draws.notes),
        [(a, b) for a, b in judged if a["correct"] != b["correct"]],
        [(a, b) for a, b in both if a["correct"] is None and b["correct"] is None],
        by_facet=changes.by_facet(task, both, matched.groups, sheets, marks) if full else (),
        reading=changes.reading(judged),
        probabilities=changes.probabilities(both, matched.clusters),
        same=sum(a.get("response") == b.get("response") for a, b in both),
        images=len(set(matched.clusters)),
    )
