"""An ``evaluate.Metric`` for captions: ``evaluate.load(vlmeval.metrics.path("caption"))``.

The figures of ``vlmeval caption``, see ``vlmeval.metrics.caption_scores``; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from vlmeval.metrics.judged import figures

__all__ = ["Caption"]

_DESCRIPTION = "BLEU-1 to 4, ROUGE-L and CIDEr-D of captions as coco-caption has them, without Java, and repetition."
_INPUTS = """
Args:
    predictions: captions, strings.
    references: for each its reference, a string, or several, a list of strings.
Returns:
    bleu1 to bleu4, rouge_l in [0, 1]; cider, times 100; words, their mean number; repeats and loops in [0, 1].
"""
_CITATION = """@inproceedings{vedantam2015cider, title={CIDEr: Consensus-based Image Description Evaluation},
author={Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi}, booktitle={CVPR}, year={2015}}"""


class Caption(evaluate.Metric):
    """Captions against those people wrote."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
            reference_urls=["https://github.com/tylin/coco-caption"],
        )

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
        return figures("caption", predictions, [[one] if isinstance(one, str) else one for one in references])
