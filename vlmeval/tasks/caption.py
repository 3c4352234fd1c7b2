"""Captions compared with those people wrote: BLEU-4, ROUGE-L, CIDEr-D.

Data: shards of ``vlmdata convert``, kind messages; the last answer of a row is a caption, the turns before it are
    asked; rows with the same picture and the same prompt are one item with several captions

Formulas, sources and how words are told apart: ``vlmeval.metrics.captions``. CIDEr-D is shown times 100, as papers on
COCO do, and its document frequencies come from the captions of this dataset, all of them, also when ``--limit`` asks
for some. Whether a caption invents things is not what these figures measure: see ``vlmeval amber``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError
from vlmeval.conversations import asked
from vlmeval.metrics import captions
from vlmeval.shardset import open_set
from vlmeval.task import Benchmark, Item, Metric, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a dataset of captions."""
    found = open_set(data)
    questions = asked(found, _ALL, "text", join=True)
    if not questions.items:
        raise DataError(f"no row of {data} holds a caption to compare with")
    notes = [*questions.notes]
    if len(questions.items) == 1:
        notes.append("CIDEr-D is 0 for a single picture: every word is in all of its captions.")
    protocol = {"captions": questions.rows, "pictures": len(questions.items)}
    score = _judge(questions.items)
    return Benchmark(questions.items, frozenset(), found.data, protocol, score, _summary, tuple(notes))


def _judge(items: Sequence[Item]) -> Callable[[Item, Response], Score]:
    known = {item.id: [captions.words(text) for text in item.target] for item in items}
    frequencies = captions.Frequencies(list(known.values()))

    def score(item: Item, response: Response) -> Score:
        said, true = captions.words(response.text), known[item.id]
        counts = captions.bleu_counts(said, true)
        counts |= {"captions": 1.0, "rouge_l": captions.rouge_l(said, true), "cider": frequencies.cider(said, true)}
        return Score(item, response.text, counts)

    return score


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    silent = sum(not score.counts["length"] for score in scores)
    return {"notes": [f"{silent} captions are empty."] if silent else []}


def _bleu(sums: Sums) -> Any:
    return 100 * captions.bleu(sums)


def _rouge(sums: Sums) -> Any:
    return 100 * ratio(sums["rouge_l"], sums["captions"])


def _cider(sums: Sums) -> Any:
    return 100 * ratio(sums["cider"], sums["captions"])


def _words(sums: Sums) -> Any:
    return ratio(sums["length"], sums["captions"])


TASK = Task(
    name="caption",
    summary="Captions: BLEU-4, ROUGE-L and CIDEr-D against those people wrote.",
    open=_open,
    groups={_ALL: "Captions"},
    metrics=(
        Metric("cider", "CIDEr-D", (_ALL,), _cider, "captions", percent=False),
        Metric("bleu4", "BLEU-4", (_ALL,), _bleu, "captions"),
        Metric("rouge_l", "ROUGE-L", (_ALL,), _rouge, "captions"),
        Metric("words", "Words", (_ALL,), _words, "captions", None, percent=False, column="rates"),
    ),
    headline=((_ALL, "cider"), (_ALL, "bleu4"), (_ALL, "rouge_l")),
    judge=_judge,
)
