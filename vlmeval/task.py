"""What an evaluation task is, and how tasks are found: by the file names in ``vlmeval/tasks``, or a file's path.

A task opens its data folder once and gets a ``Benchmark``: the items to be asked, a function that scores one
answer, and one that adds the task's own numbers to the report. Every metric is a function of summed counters, so
values, bootstrap intervals and paired differences come from one place for all tasks. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmdata.errors import DataError, MissingError
from vlmdata.leaves import leaf_names, load_leaf
from vlmeval.charts import Chart

__all__ = [
    "Benchmark",
    "Item",
    "Metric",
    "Option",
    "Response",
    "Score",
    "Sums",
    "Task",
    "load",
    "names",
    "ratio",
    "recorded",
]

Sums = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask.

    Attributes:
        id: as the benchmark numbers it; answers join by it.
        prompt: the user's text.
        images: file names below the image folder, in order.
        target: the truth, in whatever form the task's ``score`` understands.
        groups: every group of the report this item counts in, the widest first.
        kind: what is expected: a short answer, a text, the name of a class, or a choice between whole answers, which
            are not generated but ranked by their likelihood; picks the limit of new tokens.
        turns: the whole conversation before the answer, in shard form, where it is more than images and ``prompt``.
        choices: the answers that are to be told apart: of a short answer the words whose first-token probabilities can
            be read ("Yes", "No"), of a choice the whole answers.
        facets: further properties that a report can be filtered by: name to value ({"object": "dog"}).
    """

    id: int | str
    prompt: str
    images: tuple[str, ...]
    target: Any
    groups: tuple[str, ...]
    kind: Literal["answer", "text", "class", "choice"] = "answer"
    turns: tuple[Mapping[str, Any], ...] = ()
    choices: tuple[str, ...] = ()
    facets: Mapping[str, str] = field(default_factory=dict)

    @property
    def cluster(self) -> str:
        """What items share that are not independent of each other: the image."""
        return self.images[0] if self.images else str(self.id)


@dataclass(frozen=True, slots=True)
class Response:
    """What was said to an item.

    Attributes:
        id: of the item.
        text: the answer; None for a recorded null.
        detail: what else is known of it: ``probabilities`` (choice to first-token probability), ``log_likelihoods``
            (one for each choice) with ``tokens`` (their lengths).
        error: why there is no answer, in one line; such an item is listed, not scored, and asked again by ``--resume``.
            What stands before the first colon is the reason it is counted under.
    """

    id: int | str
    text: str | None
    detail: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One scored answer: everything a number in the report can be opened to.

    Attributes:
        counts: additive counters; a metric is a function of their sums over a group.
        correct: right or wrong, for answers that are either; None otherwise.
        answer: what was read from the response ("Yes", "No", None for neither), where reading applies.
        detail: what else explains the counts (nouns found, hallucinated words).
    """

    item: Item
    response: str | None
    counts: Mapping[str, float]
    correct: bool | None = None
    answer: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One row of ``scores.jsonl``."""
        item = self.item
        return {
            "id": item.id,
            "groups": list(item.groups),
            "facets": dict(item.facets),
            "cluster": item.cluster,
            "images": list(item.images),
            "prompt": item.prompt,
            **({"turns": [dict(turn) for turn in item.turns]} if item.turns else {}),
            "target": item.target,
            "response": self.response,
            "answer": self.answer,
            "correct": self.correct,
            "counts": dict(self.counts),
            "detail": dict(self.detail),
        }


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a report.

    Attributes:
        name: key in ``report.json``.
        label: name in tables.
        groups: groups it is defined for.
        value: summed counters (numbers, or arrays ``[R]`` of resampled sums) to the value; nan where undefined.
        n: the counter that says over how many units the value is taken.
        better: which direction is an improvement; None when neither is.
        percent: the unit; plain numbers otherwise.
        proportion: counters (successes, trials) when the value is one proportion.
        independent: the trials are independent of each other, so the interval is Wilson's; else it is a bootstrap over
            images.
        column: the key of ``report.json`` it stands under.
    """

    name: str
    label: str
    groups: tuple[str, ...]
    value: Callable[[Sums], Any]
    n: str
    better: Literal["high", "low"] | None = "high"
    percent: bool = True
    proportion: tuple[str, str] | None = None
    independent: bool = False
    column: Literal["exact", "rates"] = "exact"


@dataclass(frozen=True, slots=True)
class Option:
    """A command line option of one task; its value reaches ``Task.open`` under ``name`` (dashes as underscores)."""

    name: str
    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task's data, opened and checked.

    Attributes:
        items: everything that is asked, in the benchmark's order.
        known: ids that exist in the benchmark beyond ``items`` (other parts): not unknown, but not asked.
        data: file name to sha256 of every data file read.
        protocol: how answers are scored, for the report.
        score: one answer to one score.
        summarize: scores to the task's own keys of ``report.json``; ``notes`` (list) and ``protocol`` (mapping) in it
            are added to the report's own; every report shows ``tables``, a list of mappings with ``title``,
            ``columns`` (names), ``rows`` (lists of texts, numbers and None) and, where wanted, a ``note``.
        notes: anything a reader of the report must be told.
        together: scores to the same scores, with the counters that need several answers at once filled in (both
            questions of a pair right); None where every answer is judged alone.
        folder: the converted dataset that the items are rows of, which may be a part of the folder that was given;
            its images lie there. None for other data.
    """

    items: tuple[Item, ...]
    known: frozenset[int | str]
    data: Mapping[str, str]
    protocol: Mapping[str, Any]
    score: Callable[[Item, Response], Score]
    summarize: Callable[[Sequence[Score]], dict[str, Any]]
    notes: tuple[str, ...] = ()
    together: Callable[[Sequence[Score]], Sequence[Score]] | None = None
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One evaluation task.

    Attributes:
        name: its file's and its command's.
        summary: one line for ``vlmeval --help``.
        open: (data folder, settings, ids of a given responses file or None) to a checked ``Benchmark``. Settings hold
            the values of ``options``.
        metrics: in the order of the tables.
        headline: (group, metric) rows of a comparison, in order.
        groups: group to its title, in order.
        options: what the task adds to the command line.
        images: whether the task's items show images, so that an image folder is needed to ask a model.
        judge: what scores answers to items made elsewhere, whose targets are lists of right answers; None where the
            task's own data are needed.
        fetch: gets the official data and gives the folder they lie in; None where there are none to be had.
        charts: what the report draws, from the content of ``report.json`` alone.
        choices: whether items have ``choices`` whose first-token probabilities can decide: offers ``--answers``.
    """

    name: str
    summary: str
    open: Callable[[Path, Mapping[str, Any], frozenset[int | str] | None], Benchmark]
    metrics: tuple[Metric, ...]
    headline: tuple[tuple[str, str], ...]
    groups: Mapping[str, str]
    options: tuple[Option, ...] = ()
    images: bool = True
    judge: Callable[[Sequence[Item]], Callable[[Item, Response], Score]] | None = None
    fetch: Callable[[], Path] | None = None
    charts: Callable[[Mapping[str, Any]], Sequence[Chart]] | None = None
    choices: bool = False


def ratio(numerator: Any, denominator: Any) -> Any:
    """Numerator over denominator for numbers or arrays ``[R]``; nan where the denominator is zero."""
    if not hasattr(denominator, "shape"):
        return numerator / denominator if denominator else float("nan")
    import numpy as np

    empty = denominator == 0
    return np.where(empty, np.nan, numerator / np.where(empty, 1, denominator))


def names() -> list[str]:
    """All task names, sorted; nothing is imported."""
    return leaf_names("vlmeval.tasks")


def load(name: str) -> Task:
    """The task of that name, or of the Python file at that path (it ends in ``.py``).

    Raises:
        MissingError: there is no such task or file.
        DataError: the file holds no task.
    """
    from vlmeval import task_file

    if task_file.is_file(name):
        return task_file.load_file(name)
    more = "; a task of your own is the path of its Python file, ./mytask.py"
    task: Task = load_leaf("vlmeval.tasks", name, "TASK", "task", more)
    return task


def recorded(report: Mapping[str, Any], file: str | Path | None = None) -> Task:
    """The task that ``report.json`` or ``run.json`` names: packaged, or from the file that stands under ``task_file``.

    Args:
        report: holds ``task`` and, of a task of a user's own, ``task_file`` with its ``path``.
        file: the file to be used instead.

    Raises:
        MissingError: there is no such task, or its file is gone.
        DataError: the file holds no task, or one of another name.
    """
    own = report.get("task_file")
    place = file or (own or {}).get("path")
    if place is None:
        return load(report["task"])
    if file is None and not Path(place).is_file():
        raise MissingError(f"the file of task {report['task']!r} is not at {place} any more: give --task FILE")
    task = load(str(place))
    if task.name != report["task"]:
        raise DataError(f"{place} holds task {task.name!r}, expected {report['task']!r}")
    return task
