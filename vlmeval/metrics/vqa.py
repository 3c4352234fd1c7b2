"""An ``evaluate.Metric`` for short answers: ``evaluate.load(vlmeval.metrics.path("vqa"))``.

See ``vlmeval.metrics.short_answers`` for the formulas and their sources; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from vlmeval.metrics import edits, short_answers

__all__ = ["Vqa"]

_DESCRIPTION = "VQA accuracy, relaxed accuracy, exact match, ANLS and word F1 of short answers to questions."
_INPUTS = """
Args:
    predictions: answers, strings.
    references: for each the right answer, a string, or several (VQA has ten), a list of strings.
    tolerance: how far a number may be off in relaxed accuracy, as a part of the true one.
    read_numbers: whether relaxed accuracy finds the numbers in sentences, with units, LaTeX and fractions.
Returns:
    accuracy, relaxed, exact, anls, f1, all in [0, 1].
"""


class Vqa(evaluate.Metric):
    """Short answers."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
            reference_urls=["https://visualqa.org/evaluation.html", "https://arxiv.org/abs/2203.10244"],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str] | list[list[str]],
        tolerance: float = 0.05,
        read_numbers: bool = False,
    ) -> dict[str, float]:
        sums = dict.fromkeys(("accuracy", "relaxed", "exact", "anls", "f1"), 0.0)
        for said, given in zip(predictions, references, strict=True):
            right = [given] if isinstance(given, str) else given
            sums["accuracy"] += short_answers.vqa_accuracy(said, right)
            sums["relaxed"] += any(short_answers.relaxed(said, one, tolerance, read=read_numbers) for one in right)
            sums["exact"] += edits.collapsed(said) in map(edits.collapsed, right)
            sums["anls"] += edits.anls(said, right)
            sums["f1"] += max((short_answers.word_f1(said, one) for one in right), default=0.0)
        return {name: value / len(predictions) for name, value in sums.items()}
