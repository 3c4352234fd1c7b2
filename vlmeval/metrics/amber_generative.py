"""An ``evaluate.Metric`` for AMBER's caption figures: ``evaluate.load(vlmeval.metrics.path("amber_generative"))``.

Source: https://github.com/junyangwang0410/AMBER at 534babf, ``inference.py``; paper https://arxiv.org/abs/2311.07397.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from vlmeval.metrics.chair import Lexicon, captioned, official
from vlmeval.metrics.nouns import build
from vlmeval.metrics.sums import total

__all__ = ["AmberGenerative"]

_DESCRIPTION = "CHAIR, Cover, Hal and Cog of captions, with AMBER's bookkeeping and the embedded noun engine."
_INPUTS = """
Args:
    predictions: captions.
    truth: for each caption the words that are in the image.
    hallu: for each caption the words models like to invent for it.
    association: AMBER's relation.json: word to the words that count as it.
    safe: AMBER's safe words; none when left out.
Returns:
    chair, cover, hal, cog (percent, rounded as the official script does), words (mean caption length).
"""
_CITATION = """@article{wang2023amber, title={AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination
Evaluation}, author={Wang, Junyang and others}, journal={arXiv:2311.07397}, year={2023}}"""
_START = 0.001


class AmberGenerative(evaluate.Metric):
    """Captions, scored for what they invent and what they cover."""

    def _info(self) -> Any:
        words = datasets.Sequence(datasets.Value("string"))
        features = {"predictions": datasets.Value("string"), "truth": words, "hallu": words}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://github.com/junyangwang0410/AMBER"],
        )

    def _compute(
        self,
        predictions: list[str],
        truth: list[list[str]],
        hallu: list[list[str]],
        association: Mapping[str, Sequence[str]],
        safe: Sequence[str] = (),
    ) -> dict[str, float]:
        lexicon = Lexicon(association, frozenset(safe))
        find = build(lexicon.vocabulary)
        rows = zip(predictions, truth, hallu, strict=True)
        sums = total(captioned(find(text), there, invented, lexicon)[0] for text, there, invented in rows)
        starts = dict.fromkeys(("chair", "safe_cover", "hallu_cover", "non_hallu"), _START)
        words = sum(len(text.split()) for text in predictions) / len(predictions)
        return {**official(sums, starts), "words": words}
