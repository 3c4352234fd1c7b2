"""Accuracy, F1, per-class figures and confusions of class labels; F1, precision and recall are scikit-learn's.

What is counted is counted here: confusions are few of the many pairs of classes that a matrix would have room for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from vlmdata.errors import ConfigError, DataError

__all__ = ["AVERAGES", "accuracy", "f1", "per_class", "summary", "top_k"]

AVERAGES = ("macro", "micro", "weighted")
_NONE = -1


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """The share of predictions that are right, in [0, 1].

    Raises:
        DataError: there are none, or their number differs.
    """
    _check(predictions, references)
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def f1(predictions: Sequence[Hashable], references: Sequence[Hashable], average: str = "macro") -> float:
    """F1 over the classes that occur in either list, in [0, 1]: scikit-learn's ``f1_score``, undefined ones 0.

    Args:
        predictions: N labels; None where none was said, which is no class: its reference is missed.
        references: N labels.
        average: ``macro`` is the mean over classes, ``weighted`` weighs them by how often they are true, ``micro``
            counts all classes together.

    Raises:
        DataError: there are none, or their number differs.
        ConfigError: an unknown average.
    """
    _check(predictions, references)
    if average not in AVERAGES:
        raise ConfigError(f"average is {average!r}; valid: {', '.join(AVERAGES)}")
    from sklearn.metrics import f1_score

    codes = {label: code for code, label in enumerate(dict.fromkeys([*references, *predictions])) if label is not None}
    true, said = ([codes.get(label, _NONE) for label in labels] for labels in (references, predictions))
    return float(f1_score(true, said, labels=list(codes.values()), average=average, zero_division=0))


def top_k(ranked: Sequence[Sequence[Hashable]], references: Sequence[Hashable]) -> float:
    """The share of references that are among the labels ranked for them, in [0, 1].

    Raises:
        DataError: there are none, or their number differs.
    """
    _check(ranked, references)
    return sum(r in labels for labels, r in zip(ranked, references, strict=True)) / len(references)


def per_class(
    predictions: Sequence[int | None], references: Sequence[int], names: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Figures of each class, and which classes are taken for which.

    Args:
        predictions: N class indices; None where none was said.
        references: N class indices.
        names: of the classes, in index order.

    Returns:
        For each class ``name``, ``n`` (how often it is true), ``said``, ``right``, ``precision``, ``recall`` and ``f1``
        (None where undefined: never said, never true); and the confusions ``true``, ``said``, ``n``, most frequent
        first.

    Raises:
        DataError: there are none, or their number differs.
    """
    _check(predictions, references)
    from sklearn.metrics import precision_recall_fscore_support

    pairs = Counter(zip(references, predictions, strict=True))
    said = Counter(predictions)
    figures = precision_recall_fscore_support(
        references,
        [_NONE if label is None else label for label in predictions],
        labels=range(len(names)),
        zero_division=math.nan,
    )
    rows = []
    for index, (name, precision, recall, score, n) in enumerate(zip(names, *figures, strict=True)):
        shares = {"precision": precision, "recall": recall, "f1": score}
        defined = {key: None if math.isnan(share) else float(share) for key, share in shares.items()}
        rows.append({"name": name, "n": int(n), "said": said[index], "right": pairs[index, index], **defined})
    wrong = sorted((-count, r, p) for (r, p), count in pairs.items() if p is not None and p != r)
    confusions = [{"true": names[r], "said": names[p], "n": -count} for count, r, p in wrong]
    return rows, confusions


def summary(
    ranked: Sequence[Sequence[int]], references: Sequence[int], names: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Everything about a classifier's answers.

    Args:
        ranked: for each of N pictures its most likely classes, the likeliest first; five, or as many as there are.
        references: N class indices.
        names: of the classes, in index order.

    Returns:
        ``accuracy``, ``f1_macro``, ``f1_weighted`` and, where there are more than five classes, ``top5``, all in
        [0, 1]; and ``classes`` and ``confusions`` of :func:`per_class`.

    Raises:
        DataError: there are none, or their number differs.
    """
    _check(ranked, references)
    first = [labels[0] for labels in ranked]
    figures = {"accuracy": accuracy(first, references)}
    figures |= {f"f1_{average}": f1(first, references, average) for average in ("macro", "weighted")}
    if len(names) > 5:
        figures["top5"] = top_k(ranked, references)
    classes, confusions = per_class(first, references, names)
    return figures, {"classes": classes, "confusions": confusions}


def _check(predictions: Sequence[object], references: Sequence[object]) -> None:
    if not references or len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions and {len(references)} references: expected as many, and some")
