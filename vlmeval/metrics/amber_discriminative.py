"""An ``evaluate.Metric`` for AMBER's yes/no figures: ``evaluate.load(vlmeval.metrics.path("amber_discriminative"))``.

Source: https://github.com/junyangwang0410/AMBER at 534babf, ``inference.py``; paper https://arxiv.org/abs/2311.07397.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from vlmdata.errors import ConfigError
from vlmeval.metrics.sums import total
from vlmeval.metrics.yesno import as_written, by_word, counts, official

__all__ = ["AmberDiscriminative"]

_DESCRIPTION = 'Accuracy, precision, recall and F1 of yes/no answers with "No" as the positive class, as AMBER.'
_INPUTS = """
Args:
    predictions: answers, strings.
    references: "yes" or "no".
    read_answers: "none" takes exactly "Yes" and "No" as answers, like the official script; "word" reads the exclusive
        word yes or no from the text.
    epsilon: what the official script adds to F1's denominator: 0.0001; 0.001 for the existence questions.
Returns:
    accuracy, precision, recall, f1 (percent, rounded as the official script does), yes_rate, no_answer_rate (percent).
"""
_CITATION = """@article{wang2023amber, title={AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination
Evaluation}, author={Wang, Junyang and others}, journal={arXiv:2311.07397}, year={2023}}"""
_START = 0.001


class AmberDiscriminative(evaluate.Metric):
    """Yes/no answers, "No" positive."""

    def _info(self) -> Any:
        features = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://github.com/junyangwang0410/AMBER"],
        )

    def _compute(
        self, predictions: list[str], references: list[str], read_answers: str = "none", epsilon: float = 0.0001
    ) -> dict[str, float]:
        if read_answers not in ("none", "word"):
            raise ConfigError(f"read_answers is {read_answers!r}; valid: none, word")
        strange = sorted(set(references) - {"yes", "no"})
        if strange:
            raise ConfigError(f"a reference is {strange[0]!r}, expected yes or no")
        read = as_written if read_answers == "none" else by_word
        rows = [counts(read(answer), truth) for answer, truth in zip(predictions, references, strict=True)]
        sums = total(rows, counts(None, ""))
        starts = {"correct": _START, "ans_no": _START, "no": _START}
        share = 100 / len(rows)
        rates = {"yes_rate": sums["said_yes"] * share, "no_answer_rate": sums["unread"] * share}
        return {**official(sums, starts, epsilon), **rates}
