"""The weights that were best by ``eval_metric``: their checkpoint is written, kept, and what the run ends with.

transformers tracks the best figure and reads its weights back; it would have evaluations and checkpoints fall on the
same steps. Here a checkpoint is written at each evaluation that is better than all before, besides those of
``save_steps``, and the last step is evaluated, too, as it may be the best.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

__all__ = ["KeepBest"]


class KeepBest(TrainerCallback):
    """Asks for a checkpoint where an evaluation is the best so far."""

    def __init__(self, trainer: Any, metric: str, greater: bool) -> None:
        """Prepare a trainer.

        Args:
            trainer: of transformers or TRL.
            metric: figure of an evaluation, without ``eval_``.
            greater: whether more of it is better.
        """
        self.key, self.greater = f"eval_{metric}", greater
        args = trainer.args
        args.metric_for_best_model, args.greater_is_better, args.load_best_model_at_end = metric, greater, True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that goes on may stand elsewhere than it stood."""
        if state.best_global_step:
            place = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(place) if place.is_dir() else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step is evaluated; with evaluations by epoch it is anyway."""
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Write a checkpoint of what is better; the weights before the first step have none."""
        value, best = metrics.get(self.key), state.best_metric
        if value is None or not state.global_step:
            return
        if best is None or (value > best if self.greater else value < best):
            control.should_save = True
