"""Scores of a model while it trains: the one door of vlmtrain to vlmeval's tasks and metrics, which need no torch.

Answers are read as ``vlmeval`` reads them, and figures are those of its reports: of the task a metric belongs to, all
of them, unrounded, in percent where they are shares.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError, MissingError

__all__ = ["Amber", "Judge", "classified", "greater_is_better"]

# Metric of eval_metric -> the task of vlmeval that has it.
_TASKS: Mapping[str, str] = {
    **dict.fromkeys(("accuracy", "f1", "exact", "anls", "relaxed"), "vqa"),
    **dict.fromkeys(("fields", "cer", "wer"), "ocr"),
    **dict.fromkeys(("cider", "bleu4", "rouge_l"), "caption"),
}
_AMBER = "amber_"


def greater_is_better(metric: str) -> bool:
    """Whether more of a metric of ``eval_metric`` is an improvement."""
    from vlmeval import task as tasks

    if metric in ("loss", "top5"):
        return metric == "top5"
    task = tasks.load("amber" if metric.startswith(_AMBER) else _TASKS[metric])
    return next(m.better for m in task.metrics if m.name == metric.removeprefix(_AMBER)) == "high"


class Judge:
    """Scores answers to rows whose truth is known.

    Attributes:
        metrics: the names of its figures.
    """

    def __init__(self, metric: str, prompts: Sequence[str], references: Sequence[str]) -> None:
        """Take what is asked.

        Args:
            metric: of ``eval_metric``; all figures of its task are given.
            prompts: N last turns of users.
            references: N right answers.
        """
        from vlmeval import task as tasks

        self._task = tasks.load(_TASKS[metric])
        pairs = enumerate(zip(prompts, references, strict=True))
        self._items = [tasks.Item(row, prompt, (), [truth], tuple(self._task.groups)) for row, (prompt, truth) in pairs]
        assert self._task.judge is not None
        self._score = self._task.judge(self._items)
        self.metrics = tuple(metric.name for metric in self._task.metrics)

    def figures(self, answers: Sequence[str | None]) -> dict[str, float]:
        """Figures of N answers; one that is None was not asked and does not count. Undefined figures are left out."""
        from vlmeval import task as tasks

        pairs = zip(self._items, answers, strict=True)
        return _figures(
            self._task, [self._score(item, tasks.Response(item.id, text)) for item, text in pairs if text is not None]
        )


class Amber:
    """A fixed random part of an AMBER folder's questions.

    Attributes:
        items: what is asked; ``pictures`` the folder of their images.
        metrics: the names of its figures.
    """

    def __init__(self, folder: str, images: str | None, limit: int) -> None:
        """Open and check it.

        Args:
            folder: of AMBER's files.
            images: folder of its pictures; None looks for ``images`` beside the files.
            limit: most items that are asked.

        Raises:
            MissingError: no such folder, or an image is not there.
            DataError: it is no AMBER folder, or has no questions.
        """
        from vlmeval import task as tasks

        self._task = tasks.load("amber")
        data = Path(folder)
        self._benchmark = self._task.open(data, {}, None)
        items = [item for item in self._benchmark.items if item.images]
        if not items:
            raise DataError(f"eval_amber: {folder} has no query/ files that say which picture is asked about")
        chosen = sorted(random.Random(0).sample(range(len(items)), min(limit, len(items))))
        self.items = [items[place] for place in chosen]
        places = [Path(images)] if images else [data / "images", data / "data" / "images", data / "image"]
        self.metrics = tuple(f"{_AMBER}{metric.name}" for metric in self._task.metrics)
        self.pictures = next((place for place in places if place.is_dir()), places[0])
        missing = [name for item in self.items for name in item.images if not (self.pictures / name).is_file()]
        if missing:
            more = "" if images else "; give eval_amber_images=FOLDER"
            raise MissingError(f"eval_amber: {len(missing)} pictures are not in {self.pictures}: {missing[0]}{more}")

    def figures(self, answers: Sequence[str | None]) -> dict[str, float]:
        """AMBER's figures of answers to ``items``, names with ``amber_`` before them."""
        from vlmeval import task as tasks

        pairs = zip(self.items, answers, strict=True)
        scores = [
            self._benchmark.score(item, tasks.Response(item.id, text)) for item, text in pairs if text is not None
        ]
        return {f"{_AMBER}{name}": value for name, value in _figures(self._task, scores).items()}


def _figures(task: Any, scores: Sequence[Any]) -> dict[str, float]:
    """The task's metrics over its widest groups."""
    from vlmeval.metrics.sums import total

    found: dict[str, float] = {}
    for group in dict.fromkeys(score.item.groups[0] for score in scores):
        sums = total(score.counts for score in scores if group in score.item.groups)
        for metric in task.metrics:
            if group in metric.groups and not math.isnan(value := float(metric.value(sums))):
                found[metric.name] = value
    return found


def classified(
    ranked: Sequence[Sequence[int]], references: Sequence[int], names: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of an image classifier, and their details by class; see :func:`vlmeval.metrics.labels.summary`.

    Args:
        ranked: for each of N pictures its likeliest classes, the likeliest first.
        references: N class indices.
        names: of the classes, in index order.
    """
    from vlmeval.metrics.labels import summary

    return summary(ranked, references, names)
