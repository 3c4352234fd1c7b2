"""Image classification on a labelled dataset: which of its classes a picture shows.

Data: shards of ``vlmdata convert`` with a ``label`` (food101, an image folder with a subfolder for each class)

An image classifier answers with its likeliest classes, one name a line. A model that answers in words is asked the
dataset's own question, with the names of the classes where ``--list-classes`` is given, and its answer is read for the
one class it names (``vlmeval.metrics.class_names``); an answer that names none or several counts as wrong.

Accuracy and F1 are those of scikit-learn's ``accuracy_score`` and ``f1_score``: macro F1 is the mean over the classes
that occur, as truth or as answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError
from vlmeval.metrics import labels
from vlmeval.metrics.class_names import ClassNames
from vlmeval.shardset import ShardSet, open_set
from vlmeval.task import Benchmark, Item, Metric, Option, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"
_SHOWN = 5
_NO_YES = ("no", "yes")


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a labelled dataset."""
    found = open_set(data)
    names = found.manifest.label_names
    if not names:
        raise DataError(f"{data} has no labels: expected data of food101 or imagefolder (a subfolder for each class)")
    classes = ClassNames(names)
    listed = settings.get("list_classes") == "yes"
    items, unlabelled = _items(found, names, listed)
    if not items:
        raise DataError(f"no row of {data} has a label")

    def score(item: Item, response: Response) -> Score:
        return _score(item, response, classes)

    def summarize(scores: Sequence[Score]) -> dict[str, Any]:
        return _summary(scores, names)

    notes = (f"{unlabelled} rows without a label are not asked.",) if unlabelled else ()
    protocol = {"classes": len(names), "list_classes": "yes" if listed else "no"}
    return Benchmark(tuple(items), frozenset(), found.data, protocol, score, summarize, notes)


def _items(found: ShardSet, names: Sequence[str], listed: bool) -> tuple[list[Item], int]:
    items: list[Item] = []
    unlabelled = 0
    seen: Counter[str] = Counter()
    choice = "\nAnswer with one of: " + ", ".join(name.replace("_", " ") for name in names) + "." if listed else ""
    for row in found.rows(["label"]):
        if row["label"] is None or not 0 <= row["label"] < len(names):
            unlabelled += 1
            continue
        asked = [turn for turn in row["messages"] if turn["role"] == "user"][:1]
        parts = [part["text"] for turn in asked for part in turn["content"] if part["type"] == "text" and part["text"]]
        seen[row["id"]] += 1
        # Rows of a mixture may share an id; answers join by it.
        ident = row["id"] if seen[row["id"]] == 1 else f"{row['id']}#{seen[row['id']]}"
        prompt = ("\n".join(parts) or "What is shown in this image?") + choice
        items.append(Item(ident, prompt, tuple(row["image_sha256"]), names[row["label"]], (_ALL,), "class"))
    return items, unlabelled


def _score(item: Item, response: Response, classes: ClassNames) -> Score:
    """Counters by class are named ``true:I``, ``said:I`` and ``hit:I``, I being its index."""
    truth = classes.names.index(item.target)
    ranked = classes.ranking(response.text)
    said = classes.said(response.text)
    counts = {"asked": 1.0, "right": float(said == truth), "unread": float(said is None), f"true:{truth}": 1.0}
    if said is not None:
        counts[f"said:{said}"] = 1.0
    if said == truth:
        counts[f"hit:{truth}"] = 1.0
    # Five of five classes hold the truth, whoever ranks them.
    counts["ranked"] = float(len(ranked) >= _SHOWN and len(classes.names) > _SHOWN)
    counts["in_top"] = counts["ranked"] * float(truth in ranked[:_SHOWN])
    answer = None if said is None else classes.names[said]
    return Score(item, response.text, counts, said == truth, answer)


def _summary(scores: Sequence[Score], names: Sequence[str]) -> dict[str, Any]:
    index = {name: place for place, name in enumerate(names)}
    truths = [index[score.item.target] for score in scores]
    said = [None if score.answer is None else index[score.answer] for score in scores]
    classes, confusions = labels.per_class(said, truths, names)
    frequent, count = Counter(truths).most_common(1)[0]
    share = count / len(truths)
    # One class always said: its F1, and zero for the others that occur.
    blind = 2 * share / (share + 1) / len(set(truths))
    baseline = {"accuracy": round(100 * share, 1), "f1": round(100 * blind, 1)}
    notes = []
    if confusions:
        worst = ", ".join(f"{c['true']} taken for {c['said']} ({c['n']})" for c in confusions[:_SHOWN])
        notes.append(f"Most confused: {worst}.")
    ranked = [(row["f1"], row["name"]) for row in classes if row["n"]]
    if len(ranked) > _SHOWN:
        weak = ", ".join(f"{name} ({100 * value:.0f})" for value, name in sorted(ranked)[:_SHOWN])
        notes.append(f"Lowest F1: {weak}; all classes stand in report.json.")
    unread = sum(answer is None for answer in said)
    if unread:
        notes.append(f"{unread} of {len(said)} answers name no class, or several, and count as wrong.")
    absent = sum(not row["n"] for row in classes)
    if absent:
        notes.append(f"{absent} of {len(names)} classes have no picture in these data.")
    baselines = {f"always {names[frequent]}": {_ALL: baseline}}
    return {"classes": classes, "confusions": confusions, "baselines": baselines, "notes": notes}


def _by_class(sums: Sums) -> list[tuple[Any, Any, Any]]:
    """(true, said, hit) of every class that occurs."""
    found = sorted({name.partition(":")[2] for name in sums if name.startswith(("true:", "said:"))}, key=int)
    return [
        (sums.get(f"true:{index}", 0.0), sums.get(f"said:{index}", 0.0), sums.get(f"hit:{index}", 0.0))
        for index in found
    ]


def _macro_f1(sums: Sums) -> Any:
    scores = [200 * ratio(hit, true + said) for true, said, hit in _by_class(sums)]
    if any(hasattr(score, "shape") for score in scores):
        import numpy as np

        table = np.stack(scores)
        # A resample may lack a class; it is then no class that occurs. Every resample has one.
        there = ~np.isnan(table)
        return np.where(there, table, 0).sum(0) / there.sum(0)
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined)


def _weighted_f1(sums: Sums) -> Any:
    total = 0.0
    for true, said, hit in _by_class(sums):
        both = true + said
        # Where it is neither true nor said, its weight is zero as well.
        total = total + true * 200 * hit / (both + (both == 0))
    return ratio(total, sums["asked"])


def _share(successes: str, trials: str) -> Any:
    return lambda sums: 100 * ratio(sums[successes], sums[trials])


_GROUP = (_ALL,)

TASK = Task(
    name="classify",
    summary="Image classification: accuracy, F1 and confusions.",
    open=_open,
    groups={_ALL: "All"},
    metrics=(
        Metric("accuracy", "Accuracy", _GROUP, _share("right", "asked"), "asked", proportion=("right", "asked")),
        Metric("f1", "Macro F1", _GROUP, _macro_f1, "asked"),
        Metric("f1_weighted", "Weighted F1", _GROUP, _weighted_f1, "asked"),
        Metric("top5", "Top 5", _GROUP, _share("in_top", "ranked"), "ranked", proportion=("in_top", "ranked")),
        Metric(
            "no_answer_rate",
            "No class",
            _GROUP,
            _share("unread", "asked"),
            "asked",
            "low",
            proportion=("unread", "asked"),
            column="rates",
        ),
    ),
    headline=((_ALL, "accuracy"), (_ALL, "f1"), (_ALL, "top5")),
    options=(
        Option("list-classes", "Name the classes in the question, for a model that answers in words.", "no", _NO_YES),
    ),
)
