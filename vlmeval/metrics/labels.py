"""Accuracy and F1 of class labels. Plain Python: labels are counted, not looped over in pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from vlmdata.errors import ConfigError, DataError

__all__ = ["AVERAGES", "accuracy", "f1"]

AVERAGES = ("macro", "micro", "weighted")


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """The share of predictions that are right, in [0, 1].

    Raises:
        DataError: there are none, or their number differs.
    """
    _check(predictions, references)
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def f1(predictions: Sequence[Hashable], references: Sequence[Hashable], average: str = "macro") -> float:
    """F1 over the classes that occur in either list, in [0, 1]; as scikit-learn's ``f1_score``, undefined ones 0.

    Args:
        predictions: N labels.
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
    hits = Counter(p for p, r in zip(predictions, references, strict=True) if p == r)
    said, true = Counter(predictions), Counter(references)
    if average == "micro":
        return sum(hits.values()) / len(references)
    scores = {label: 2 * hits[label] / (said[label] + true[label]) for label in said.keys() | true.keys()}
    if average == "weighted":
        return sum(scores[label] * count for label, count in true.items()) / len(references)
    return sum(scores.values()) / len(scores)


def _check(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> None:
    if not references or len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions and {len(references)} references: expected as many, and some")
