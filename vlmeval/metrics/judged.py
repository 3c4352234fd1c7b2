"""A task's figures of answers without its data: what the ``evaluate.Metric`` modules of tasks give."""

from __future__ import annotations

from collections.abc import Sequence

from vlmeval import task as tasks
from vlmeval.metrics.sums import total

__all__ = ["figures"]


def figures(name: str, answers: Sequence[str | None], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All metrics of a task, as ``vlmeval NAME`` reckons them, but shares in [0, 1].

    Args:
        name: of a task that judges answers to items made elsewhere: caption, ocr, vqa.
        answers: N answers.
        references: N lists of right answers.
    """
    task = tasks.load(name)
    assert task.judge is not None
    groups = tuple(task.groups)
    items = [tasks.Item(row, "", (), list(right), groups) for row, right in enumerate(references)]
    score = task.judge(items)
    scores = [score(item, tasks.Response(item.id, text)) for item, text in zip(items, answers, strict=True)]
    sums = total(one.counts for one in scores)
    return {metric.name: float(metric.value(sums)) / (100 if metric.percent else 1) for metric in task.metrics}
