"""An ``evaluate.Metric`` for class labels: ``evaluate.load(vlmeval.metrics.path("classification"))``.

The same figures as scikit-learn's ``accuracy_score`` and ``f1_score``; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from vlmeval.metrics.labels import AVERAGES, accuracy, f1

__all__ = ["Classification"]

_DESCRIPTION = "Accuracy, macro, micro and weighted F1 of class labels."
_INPUTS = """
Args:
    predictions: class indices.
    references: class indices.
Returns:
    accuracy, f1_macro, f1_micro, f1_weighted, all in [0, 1].
"""


class Classification(evaluate.Metric):
    """Class labels."""

    def _info(self) -> Any:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        averaged = {f"f1_{average}": f1(predictions, references, average) for average in AVERAGES}
        return {"accuracy": accuracy(predictions, references), **averaged}
