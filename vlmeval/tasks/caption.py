"""Captions compared with those people wrote: BLEU-1 to 4, ROUGE-L, CIDEr-D; and how much they repeat themselves.

Data: shards of ``vlmdata convert``, kind messages; the last answer of a row is a caption, the turns before it are
    asked; rows with the same picture and the same prompt are one item with several captions, and so are further
    captions under ``answers`` in a row's meta

Formulas, sources and how words are told apart: ``vlmeval.metrics.caption_scores``. CIDEr-D is shown times 100, as
papers on COCO do, and its document frequencies come from the captions of this dataset, all of them, also when
``--limit`` asks for some. Whether a caption invents things is not what these figures measure: see ``vlmeval amber``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmeval.conversations import asked
from vlmeval.metrics import caption_scores
from vlmeval.shardset import SPLIT, open_set
from vlmeval.task import Benchmark, Item, Metric, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a dataset of captions."""
    found = open_set(data, settings.get("split"))
    questions = asked(found, _ALL, "text", join=True)
    notes = [*questions.notes]
    if len(questions.items) == 1:
        notes.append("CIDEr-D is 0 for a single picture: every word is in all of its captions.")
    protocol = {**found.protocol, "captions": questions.rows, "pictures": len(questions.items)}
    score = _judge(questions.items)
    return Benchmark(
        questions.items, frozenset(), found.data, protocol, score, _summary, tuple(notes), folder=found.folder
    )


def _judge(items: Sequence[Item]) -> Callable[[Item, Response], Score]:
    known = {item.id: [caption_scores.words(text) for text in item.target] for item in items}
    frequencies = caption_scores.Frequencies(list(known.values()))

    def score(item: Item, response: Response) -> Score:
        said, true = caption_scores.words(response.text), known[item.id]
        counts = caption_scores.bleu_counts(said, true) | caption_scores.repetition_counts(said)
        figures = {"rouge_l": caption_scores.rouge_l(said, true), "cider": frequencies.cider(said, true)}
        counts |= {"captions": 1.0, "empty": float(not said), **figures}
        shown = {name: round(100 * value, 1) for name, value in figures.items()}
        return Score(item, response.text, counts, detail=shown | ({"loops": True} if counts["loops"] else {}))

    return score


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    """How different the captions are: words and pairs of words, and whole captions."""
    said = [caption_scores.words(score.response) for score in scores]
    notes = []
    silent, looping = (int(sum(score.counts[name] for score in scores)) for name in ("empty", "loops"))
    if silent:
        notes.append(f"{silent} captions are empty.")
    if looping:
        notes.append(f"{looping} captions loop: a phrase stands in them three times or more in a row.")
    whole = Counter(map(tuple, said))
    often, times = whole.most_common(1)[0]
    if often and times > max(1, len(said) // 10):
        shown = " ".join(often)
        notes.append(f"{times} of {len(said)} captions are the same: {shown[:80]}{'…' if len(shown) > 80 else ''}")
    pairs = [pair for one in said for pair in zip(one, one[1:], strict=False)]
    singles = [word for one in said for word in one]
    diversity = {
        "different_captions": len(whole),
        "distinct1": len(set(singles)) / len(singles) if singles else None,
        "distinct2": len(set(pairs)) / len(pairs) if pairs else None,
    }
    return {"diversity": diversity, "notes": notes}


def _bleu(order: int) -> Callable[[Sums], Any]:
    return lambda sums: 100 * caption_scores.bleu(sums, order)


def _mean(name: str, scale: float = 100) -> Callable[[Sums], Any]:
    return lambda sums: scale * ratio(sums[name], sums["captions"])


def _repeats(sums: Sums) -> Any:
    return 100 * ratio(sums["grams4"] - sums["different4"], sums["grams4"])


_GROUP = (_ALL,)

TASK = Task(
    name="caption",
    summary="Captions: BLEU, ROUGE-L and CIDEr-D against those people wrote.",
    open=_open,
    groups={_ALL: "All"},
    metrics=(
        Metric("cider", "CIDEr-D", _GROUP, _mean("cider"), "captions", percent=False),
        *(Metric(f"bleu{order}", f"B@{order}", _GROUP, _bleu(order), "captions") for order in (1, 2, 3)),
        Metric("bleu4", "BLEU-4", _GROUP, _bleu(4), "captions"),
        Metric("rouge_l", "ROUGE-L", _GROUP, _mean("rouge_l"), "captions"),
        Metric("words", "Words", _GROUP, _mean("length", 1), "captions", None, percent=False, column="rates"),
        Metric("repeats", "Repeats", _GROUP, _repeats, "grams4", "low", column="rates"),
        Metric(
            "loops",
            "Loops",
            _GROUP,
            _mean("loops"),
            "captions",
            "low",
            proportion=("loops", "captions"),
            column="rates",
        ),
    ),
    headline=((_ALL, "cider"), (_ALL, "bleu4"), (_ALL, "rouge_l")),
    options=(SPLIT,),
    judge=_judge,
)
