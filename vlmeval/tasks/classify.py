"""Image classification on a labelled dataset: which of its classes a picture shows.

Data: shards of ``vlmdata convert`` with a ``label`` (food101, an image folder with a subfolder for each class)

An image classifier answers with its likeliest classes, one name a line. A model that answers in words is asked the
dataset's own question, with the names of the classes where ``--list-classes`` is given, and its answer is read for the
one class it names (``vlmeval.metrics.class_names``); an answer that names none or several counts as wrong. With
``--decide likelihood`` nothing is generated: every class's own answer in the data, or its name, is ranked by the
log-likelihood the model gives it, its end included (``acc`` of lm-evaluation-harness); a ranking by the mean per token
is told beside it. That takes one pass for each class and picture.

Accuracy and F1 are those of scikit-learn's ``accuracy_score`` and ``f1_score``: macro F1 is the mean over the classes
that occur, as truth or as answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmeval.charts import Chart, Matrix
from vlmeval.conversations import spoken
from vlmeval.metrics import labels
from vlmeval.metrics.class_names import ClassNames
from vlmeval.metrics.ranked import order, ranking
from vlmeval.shardset import SPLIT, ShardSet, open_set
from vlmeval.task import Benchmark, Item, Metric, Option, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"
_SHOWN = 5
_LISTED = 50
_NO_YES = ("no", "yes")
_FEW = 128
_MATRIX, _PART = 40, 30
_ELSE, _NOTHING = "other classes", "no class"


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a labelled dataset."""
    found = open_set(data, settings.get("split"))
    names = found.manifest.label_names
    if not names:
        raise DataError(
            f"{found.folder} has no labels: expected data of food101 or imagefolder (a subfolder for each class)"
        )
    ranks, listed = settings.get("decide") == "likelihood", settings.get("list_classes") == "yes"
    if ranks and len(names) > _FEW:
        raise ConfigError(
            f"--decide likelihood asks once for each class and picture: expected at most {_FEW} classes, "
            f"{found.folder} has {len(names)}; use --decide words"
        )
    items, unlabelled = _items(found, names, listed, ranks)
    if not items:
        raise DataError(f"no row of {found.folder} has a label")
    classes = ClassNames(names)

    def score(item: Item, response: Response) -> Score:
        return _score(item, response, classes)

    def summarize(scores: Sequence[Score]) -> dict[str, Any]:
        return _summary(scores, names)

    notes = (f"{unlabelled} rows without a label are not asked.",) if unlabelled else ()
    protocol = {
        **found.protocol,
        "classes": len(names),
        "list_classes": "yes" if listed else "no",
        "decide": "likelihood" if ranks else "words",
    }
    return Benchmark(
        tuple(items), frozenset(), found.data, protocol, score, summarize, (*found.notes, *notes), folder=found.folder
    )


def _items(found: ShardSet, names: Sequence[str], listed: bool, ranks: bool) -> tuple[list[Item], int]:
    rows = list(found.rows(["messages", "label"]))
    labelled = [row for row in rows if row["label"] is not None and 0 <= row["label"] < len(names)]
    choice = "\nAnswer with one of: " + ", ".join(name.replace("_", " ") for name in names) + "." if listed else ""
    wordings = tuple(_wordings(labelled, names)) if ranks else ()
    items: list[Item] = []
    for row in labelled:
        asked = [spoken(turn["content"]) for turn in row["messages"] if turn["role"] == "user"][:1]
        prompt = ("".join(asked) or "What is shown in this image?") + choice
        true, images = names[row["label"]], tuple(row["image_sha256"])
        kind: Any = "choice" if ranks else "class"
        items.append(Item(row["id"], prompt, images, true, (_ALL,), kind, (), wordings, {"class": true}))
    return items, len(rows) - len(labelled)


def _wordings(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """How the data say each class: their answer where it is always the same and no other class's; else the name."""
    said: dict[int, set[str]] = {}
    for row in rows:
        answers = [spoken(turn["content"]) for turn in row["messages"] if turn["role"] == "assistant"]
        said.setdefault(row["label"], set()).update(answers[:1])
    plain = [name.replace("_", " ") for name in names]
    ours = [one.pop() if len(one := said.get(index, set())) == 1 else "" for index in range(len(names))]
    if len(said) == len(names) and all(ours) and len(set(ours)) == len(ours):
        return ours
    return plain if len(set(plain)) == len(plain) else list(names)


def _score(item: Item, response: Response, classes: ClassNames) -> Score:
    """Counters by class are named ``true:I``, ``said:I`` and ``hit:I``, I being its index."""
    truth = classes.names.index(item.target)
    detail: dict[str, Any] = {}
    counts: dict[str, float] = {"asked": 1.0}
    if item.kind == "choice":
        found = ranking(item, response)
        ranked, said = list(found.order), found.first
        if found.each is not None:
            detail = {"log_likelihoods": list(found.each), "tokens": list(found.tokens)}
            per_token = order([value / size for value, size in zip(found.each, found.tokens, strict=True)])
            counts |= {"likely": 1.0, "right_per_token": float(per_token[0] == truth)}
    else:
        ranked, said = classes.ranking(response.text), classes.said(response.text)
    counts |= {"right": float(said == truth), "unread": float(said is None), f"true:{truth}": 1.0}
    if said is not None:
        counts[f"said:{said}"] = 1.0
    if said == truth:
        counts[f"hit:{truth}"] = 1.0
    # Five of five classes hold the truth, whoever ranks them.
    counts["ranked"] = float(len(ranked) >= _SHOWN and len(classes.names) > _SHOWN)
    counts["in_top"] = counts["ranked"] * float(truth in ranked[:_SHOWN])
    answer = None if said is None else classes.names[said]
    return Score(item, response.text, counts, said == truth, answer, detail)


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
    weakest = [(row["f1"], row["name"]) for row in classes if row["n"]]
    if len(weakest) > _SHOWN:
        weak = ", ".join(f"{name} ({100 * value:.0f})" for value, name in sorted(weakest)[:_SHOWN])
        notes.append(f"Lowest F1: {weak}; all classes stand in report.json.")
    unread = sum(answer is None for answer in said)
    if unread:
        notes.append(f"{unread} of {len(said)} answers name no class, or several, and count as wrong.")
    likely = sum(score.counts.get("likely", 0) for score in scores)
    if likely:
        right = sum(score.counts.get("right_per_token", 0) for score in scores)
        notes.append(f"Ranked by the mean log-likelihood per token, accuracy is {100 * right / likely:.1f} %.")
    absent = sum(not row["n"] for row in classes)
    if absent:
        notes.append(f"{absent} of {len(names)} classes have no picture in these data.")
    return {
        "classes": classes,
        "confusions": confusions,
        "baselines": {f"always {names[frequent]}": {_ALL: baseline}},
        "tables": _tables(classes, confusions, scores),
        "notes": notes,
    }


def _tables(
    classes: Sequence[Mapping[str, Any]], confusions: Sequence[Mapping[str, Any]], scores: Sequence[Score]
) -> list[dict[str, Any]]:
    def share(value: float | None) -> float | None:
        return None if value is None else round(100 * value, 1)

    rows = [
        [row["name"], row["n"], row["said"], row["right"], *(share(row[key]) for key in ("precision", "recall", "f1"))]
        for row in sorted(classes, key=lambda row: (row["f1"] is None, row["f1"], row["name"]))
    ]
    found = [{"title": "Classes", "columns": ["", "n", "said", "right", "precision", "recall", "F1"], "rows": rows}]
    if confusions:
        pairs = [[pair["true"], pair["said"], pair["n"]] for pair in confusions[:_LISTED]]
        found.append({"title": "Confusions", "columns": ["true", "said", "n"], "rows": pairs})
    unread = [[score.item.id, score.item.target, score.response or ""] for score in scores if score.answer is None]
    if unread:
        title = "Answers that name no class" + (f" (the first {_LISTED} of {len(unread)})" * (len(unread) > _LISTED))
        found.append({"title": title, "columns": ["id", "true", "answer"], "rows": unread[:_LISTED]})
    return found


def _charts(report: Mapping[str, Any]) -> list[Chart]:
    """The confusion matrix; of many classes, the ones that are most often confused."""
    classes, confusions = report["classes"], report["confusions"]
    present = [row["name"] for row in classes if row["n"] or row["said"]]
    pairs = {(pair["true"], pair["said"]): pair["n"] for pair in confusions}
    title = "Confusion matrix"
    if len(present) > _MATRIX:
        wrong: Counter[str] = Counter()
        for (true, said), n in pairs.items():
            wrong[true] += n
            wrong[said] += n
        chosen = {name for name, _ in wrong.most_common(_PART)}
        title = f"Confusion matrix: the {len(chosen)} of {len(present)} classes that are most often confused"
        present = [name for name in present if name in chosen]
    if not present:
        return []
    counted = {row["name"]: row for row in classes}
    shown = set(present)
    cells = []
    for true in present:
        row = [counted[true]["right"] if true == said else pairs.get((true, said), 0) for said in present]
        elsewhere = sum(n for (one, said), n in pairs.items() if one == true and said not in shown)
        wrong_ones = sum(n for (one, _), n in pairs.items() if one == true)
        cells.append([*row, elsewhere, counted[true]["n"] - counted[true]["right"] - wrong_ones])
    more = [_ELSE, _NOTHING]
    for place in (1, 0):
        if not any(row[len(present) + place] for row in cells):
            more.pop(place)
            for row in cells:
                row.pop(len(present) + place)
    return [Matrix(title, "true", "said", present, [*present, *more], cells)]


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


def _micro_f1(sums: Sums) -> Any:
    return 200 * ratio(sums["right"], 2 * sums["asked"] - sums["unread"])


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
        Metric("f1_micro", "Micro F1", _GROUP, _micro_f1, "asked"),
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
        Option(
            "decide", "Read a VLM's words, or rank the class names by likelihood.", "words", ("words", "likelihood")
        ),
        SPLIT,
    ),
    charts=_charts,
)
