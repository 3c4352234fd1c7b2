"""An ``evaluate.Metric`` for POPE's figures: ``evaluate.load(vlmeval.metrics.path("pope"))``.

Source: https://github.com/AoiDragon/POPE at f3ec604, ``evaluate.py``; paper https://arxiv.org/abs/2305.10355.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from vlmdata.errors import ConfigError
from vlmeval.metrics.sums import total
from vlmeval.metrics.yesno import by_sentence, by_word, polled, script

__all__ = ["Pope"]

_DESCRIPTION = (
    'Accuracy, precision, recall, F1 and yes ratio of yes/no answers with "yes" as the positive class, as POPE.'
)
_INPUTS = """
Args:
    predictions: answers, strings.
    references: "yes" or "no".
    read_answers: "official" takes every answer for yes whose first sentence has no "No", "no" or "not"; "word" reads
        the exclusive word yes or no from the text, and an answer that is neither is wrong.
Returns:
    accuracy, precision, recall, f1, yes_ratio, no_answer_ratio, all in [0, 1] and unrounded; 0 where nothing was said
    or asked that they are shares of.
"""
_CITATION = """@inproceedings{li2023evaluating, title={Evaluating Object Hallucination in Large Vision-Language Models},
author={Li, Yifan and Du, Yifan and Zhou, Kun and Wang, Jinpeng and Zhao, Wayne Xin and Wen, Ji-Rong},
booktitle={EMNLP}, year={2023}}"""


class Pope(evaluate.Metric):
    """Yes/no answers, "yes" positive."""

    def _info(self) -> Any:
        features = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://github.com/AoiDragon/POPE"],
        )

    def _compute(
        self, predictions: list[str], references: list[str], read_answers: str = "official"
    ) -> dict[str, float]:
        if read_answers not in ("official", "word"):
            raise ConfigError(f"read_answers is {read_answers!r}; valid: official, word")
        strange = sorted(set(references) - {"yes", "no"})
        if strange:
            raise ConfigError(f"a reference is {strange[0]!r}, expected yes or no")
        read = by_sentence if read_answers == "official" else by_word
        rows = [polled(read(answer), truth) for answer, truth in zip(predictions, references, strict=True)]
        sums = total(rows, polled(None, ""))
        return {**script(sums), "no_answer_ratio": sums["unread"] / len(rows)}
