"""Stand-ins for a model that TRL's losses call: they change what goes in or comes out, or remember it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Recorder", "weigh_rows"]


def weigh_rows(model: Any, weights: torch.Tensor) -> Callable[..., Any]:
    """A model whose token log-probabilities TRL sums up with a weight for each row.

    Args:
        model: as TRL's ``compute_loss`` takes it.
        weights: ``[B]``.
    """

    def forward(**inputs: Any) -> Any:
        outputs = model(**inputs)
        outputs.log_probs = outputs.log_probs * weights[:, None]
        return outputs

    return forward


class Recorder:
    """A model that remembers what its forwards gave, for losses that need more of them than TRL hands out.

    Attributes:
        model: called with what comes in, or with what ``change`` makes of it.
        outputs: of each call, in order.
    """

    def __init__(self, model: Any, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
        """Stand in for the model as TRL's ``compute_loss`` takes it."""
        self.model, self.change = model, change
        self.outputs: list[Any] = []

    def __call__(self, **inputs: Any) -> Any:
        """Forward."""
        self.outputs.append(self.model(**(self.change(inputs) if self.change else inputs)))
        return self.outputs[-1]
