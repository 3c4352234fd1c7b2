"""Questions about pictures with short answers.

Data: shards of ``vlmdata convert``, kind messages; the last answer of a row is the truth, the turns before it are
    asked; further right answers (VQA has ten) stand as a list of texts under ``answers`` in the row's meta

``exact`` compares texts as they are but for white space; VQA accuracy, relaxed accuracy (numbers within 5 %, the best
of the right answers), ANLS and word F1 are described in ``vlmeval.metrics.vqa`` and ``vlmeval.metrics.edits``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError
from vlmeval.conversations import asked
from vlmeval.metrics import edits, vqa
from vlmeval.shardset import open_set
from vlmeval.task import Benchmark, Item, Metric, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a dataset of questions and answers."""
    found = open_set(data)
    questions = asked(found, _ALL, "answer")
    if not questions.items:
        raise DataError(f"no row of {data} holds an answer to compare with")
    protocol = {"right_answers": max(len(item.target) for item in questions.items)}
    return Benchmark(questions.items, frozenset(), found.data, protocol, _score, _summary, questions.notes)


def _score(item: Item, response: Response) -> Score:
    agreed = vqa.vqa_accuracy(response.text, item.target)
    right = vqa.normalized(response.text) in {vqa.normalized(text) for text in item.target}
    said = edits.collapsed(response.text)
    counts = {
        "asked": 1.0,
        "right": float(right),
        "exact": float(said in {edits.collapsed(text) for text in item.target}),
        "agreed": agreed,
        "relaxed": float(any(vqa.relaxed(response.text, text) for text in item.target)),
        "anls": edits.anls(response.text, item.target),
        "f1": max(vqa.word_f1(response.text, text) for text in item.target),
        "words": float(len(said.split())),
    }
    return Score(item, response.text, counts, right, said or None)


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    silent = sum(score.answer is None for score in scores)
    return {"notes": [f"{silent} answers are empty."] if silent else []}


def _share(name: str, label: str, part: str, **more: Any) -> Metric:
    def value(sums: Sums) -> Any:
        return 100 * ratio(sums[part], sums["asked"])

    return Metric(name, label, (_ALL,), value, "asked", **more)


def _words(sums: Sums) -> Any:
    return ratio(sums["words"], sums["asked"])


TASK = Task(
    name="vqa",
    summary="VQA: short answers to questions about pictures.",
    open=_open,
    groups={_ALL: "Questions"},
    metrics=(
        _share("accuracy", "VQA acc", "agreed"),
        _share("relaxed", "Relaxed", "relaxed", proportion=("relaxed", "asked")),
        _share("exact", "Exact", "exact", proportion=("exact", "asked")),
        _share("anls", "ANLS", "anls"),
        _share("f1", "Word F1", "f1"),
        Metric("words", "Words", (_ALL,), _words, "asked", None, percent=False, column="rates"),
    ),
    headline=((_ALL, "accuracy"), (_ALL, "relaxed"), (_ALL, "anls")),
    judge=lambda items: _score,
)
