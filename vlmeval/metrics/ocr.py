"""An ``evaluate.Metric`` for text read off pictures: ``evaluate.load(vlmeval.metrics.path("ocr"))``.

The figures of ``vlmeval ocr``: whole texts, or JSON field by field; nothing is downloaded.
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate

from vlmeval.metrics.judged import figures

__all__ = ["Ocr"]

_DESCRIPTION = "Exact match, ANLS, character and word error rate of transcriptions; of JSON answers also fields."
_INPUTS = """
Args:
    predictions: answers, strings; JSON is cut out of them where the reference is a JSON object.
    references: strings.
Returns:
    exact, anls, cer, wer, alike (right but for characters that look like the true ones); where a reference is a JSON
    object also fields (the share of fields that are right, recall), field_f1, json (answers that hold an object) and
    json_only (answers that are nothing else). cer and wer are edits over the references' length, so they may be more
    than 1; all others are in [0, 1].
"""


class Ocr(evaluate.Metric):
    """Transcriptions."""

    def _info(self) -> Any:
        features = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/1905.13648", "https://github.com/jitsi/jiwer"],
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        found = figures("ocr", predictions, [[one] for one in references])
        return {name: value for name, value in found.items() if not math.isnan(value)}
