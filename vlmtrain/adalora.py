"""AdaLoRA in a trainer: ranks move to the layers that need them while the run goes.

Paper: https://arxiv.org/abs/2303.10512; peft's ``AdaLoraModel`` holds the layers and the allocator.

TRL 1.16 never calls the allocator, and makes its loss of log-probabilities, so that the orthogonality term peft adds to
``outputs.loss`` is lost. Both are put back here. peft also shrinks what it saves as soon as there is a rank pattern,
which a half-way run cannot load again: checkpoints keep every rank, and the allocator's averages beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["RankUpdates", "all_ranks", "orthogonality", "ranks_of_best", "schedule_ranks"]

_FILE = "adalora.pt"
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankUpdates(TrainerCallback):
    """Moves ranks after every optimizer step, and keeps the allocator's memory with each checkpoint."""

    def __init__(self, model: Any, checkpoint: Path | None) -> None:
        """Take a ``PeftModel`` with an AdaLoRA adapter, and the checkpoint the run goes on from."""
        self.tuner = model.base_model
        self.checkpoint = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Learn how long the run is, and what was known at the checkpoint."""
        schedule_ranks(self.tuner.peft_config["default"], state.max_steps)
        if self.checkpoint is None:
            return
        known = torch.load(self.checkpoint / _FILE, weights_only=True)
        for name in _AVERAGES:
            setattr(self.tuner.rankallocator, name, {k: v.to(args.device) for k, v in known[name].items()})
        self.tuner.peft_config["default"].rank_pattern = known["rank_pattern"]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Between the step and the clearing of the gradients, as peft asks; the step counted is the one just done."""
        config = self.tuner.peft_config["default"]
        # A run of one step ends before any layer has shown what it is worth.
        if config.total_step - config.tfinal > 1:
            self.tuner.update_and_allocate(state.global_step + 1)

    def beside(self, save: Callable[..., None]) -> Callable[..., None]:
        """What writes a checkpoint, made to write the allocator's averages into its folder too."""

        def both(checkpoint: Path, *rest: Any) -> None:
            save(checkpoint, *rest)
            allocator = self.tuner.rankallocator
            known = {name: dict(getattr(allocator, name)) for name in _AVERAGES}
            torch.save({**known, "rank_pattern": self.tuner.peft_config["default"].rank_pattern}, checkpoint / _FILE)

        return both


def schedule_ranks(config: Any, steps: int) -> None:
    """A tenth of the run to warm up, a fifth at its end with the ranks that were found; between, at most 100 changes.

    Args:
        config: peft's ``AdaLoraConfig``.
        steps: optimizer steps of the whole run.
    """
    config.total_step = steps
    config.tinit, config.tfinal, config.deltaT = steps // 10, steps // 5, max(1, steps // 100)


def orthogonality(model: Any) -> torch.Tensor:
    """The weighted mean distance of every P and Q from orthogonality, equation 3 of the paper.

    Args:
        model: a ``PeftModel`` with an AdaLoRA adapter named ``default``.

    Returns:
        A scalar with a graph.
    """
    distances = []
    for name, parameter in model.named_parameters():
        if "lora_A.default" in name or "lora_B.default" in name:
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
    weight: float = model.peft_config["default"].orth_reg_weight
    return weight * torch.stack(distances).mean()


@contextlib.contextmanager
def ranks_of_best(trainer: Any) -> Iterator[None]:
    """Load a trainer's best checkpoint whole while this lasts; then take over which ranks it had kept.

    Does nothing for other adapters and whole models.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    with all_ranks(model) if hasattr(model, "peft_config") else contextlib.nullcontext():
        yield
    file = Path(trainer.state.best_model_checkpoint) / _FILE
    if file.is_file():
        model.peft_config["default"].rank_pattern = torch.load(file, weights_only=True)["rank_pattern"]


@contextlib.contextmanager
def all_ranks(model: Any) -> Iterator[None]:
    """Save every rank while this lasts, not only those the pattern keeps."""
    config = model.peft_config["default"]
    pattern = getattr(config, "rank_pattern", None)
    if not hasattr(config, "target_r"):
        yield
        return
    config.rank_pattern = None
    try:
        yield
    finally:
        config.rank_pattern = pattern
