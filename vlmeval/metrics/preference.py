"""An ``evaluate.Metric`` for pairs of answers: ``evaluate.load(vlmeval.metrics.path("preference"))``.

The figures of ``vlmeval preference`` from log-likelihoods reckoned elsewhere; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from vlmdata.errors import DataError

__all__ = ["PreferencePairs"]

_DESCRIPTION = "How often the better of two answers is the likelier, and by how much."
_INPUTS = """
Args:
    chosen: log-likelihoods of the better answers, sums over their tokens.
    rejected: those of the worse answers.
    chosen_tokens, rejected_tokens: numbers of tokens, at least 1 each; may be left out.
Returns:
    accuracy (a tie is not right), ties in [0, 1], margin in nats; with tokens also accuracy_per_token and
    margin_per_token.
Raises:
    DataError: numbers of tokens are not as many as the answers, or below 1.
"""


class PreferencePairs(evaluate.Metric):
    """Pairs of answers."""

    def _info(self) -> Any:
        features = {"chosen": datasets.Value("float64"), "rejected": datasets.Value("float64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2305.18290"],
        )

    def _compute(
        self,
        chosen: Sequence[float],
        rejected: Sequence[float],
        chosen_tokens: Sequence[int] | None = None,
        rejected_tokens: Sequence[int] | None = None,
    ) -> dict[str, float]:
        margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
        found = {
            "accuracy": _mean([margin > 0 for margin in margins]),
            "ties": _mean([margin == 0 for margin in margins]),
            "margin": _mean(margins),
        }
        if chosen_tokens is None or rejected_tokens is None:
            return found
        if not len(chosen_tokens) == len(rejected_tokens) == len(margins) or min(*chosen_tokens, *rejected_tokens) < 1:
            raise DataError(
                f"{len(margins)} pairs, {len(chosen_tokens)} and {len(rejected_tokens)} numbers of tokens: expected as "
                "many, each at least 1"
            )
        pairs = zip(chosen, chosen_tokens, rejected, rejected_tokens, strict=True)
        means = [better / size - worse / other for better, size, worse, other in pairs]
        return {**found, "accuracy_per_token": _mean([one > 0 for one in means]), "margin_per_token": _mean(means)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
