"""Direct preference optimization: TRL's DPOTrainer on our rows and batches, one adapter in and one adapter out.

Paper: https://arxiv.org/abs/2305.18290

The reference is the model before the first step: the base for a new adapter, the SFT model when ``adapter`` is given.
It does not change, so its log-probabilities are computed once, before training (``reference: precompute``), and no
second adapter is kept. TRL refuses its own option of that name for images. ``reference: live`` is TRL's plain way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from vlmtrain.arguments import arguments
from vlmtrain.auto_batch import attempts
from vlmtrain.collate import PreferenceCollator, rendered
from vlmtrain.job import Job
from vlmtrain.keys import Preference
from vlmtrain.lean.folded import share
from vlmtrain.mdpo import ConditionalCollator, ConditionalLoss, is_conditional
from vlmtrain.model import quiet
from vlmtrain.reference import precompute
from vlmtrain.runs import RunResult
from vlmtrain.training import attach, begin, run
from vlmtrain.trl_seam import (
    TrainerSeam,
    compact_lm_head,
    drop_reference_copy,
    no_reference_model,
    reference_is_precomputed,
)

__all__ = ["ConditionalTrainer", "Trainer", "make_trainer", "train"]


class Trainer(TrainerSeam, DPOTrainer):
    """DPOTrainer behind the seam."""

    sides = 2

    def reference_columns(self, batch: dict[str, Any]) -> list[torch.Tensor]:
        """Log-probabilities of chosen and rejected under the reference, each ``[B]``."""
        return list(self.compute_ref_log_probs(self.model, batch))

    def reference_inputs(self, row: Mapping[str, Any]) -> list[Any]:
        """What the reference's figures of a row depend on besides weights and images."""
        return [self.ld_alpha, *(rendered(self.processing_class, row, side) for side in ("chosen", "rejected"))]


class ConditionalTrainer(ConditionalLoss, Trainer):
    """DPOTrainer behind the seam, with the terms of mDPO."""


def train(
    data: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    eval_data: Sequence[str | Path] = (),
    recipe: str | None = None,
    sets: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> RunResult:
    """Train on converted preferences; everything ``vlmtrain dpo`` does.

    Args:
        data: shards folders of kind preference.
        out: the run folder.
        eval_data: shards folders to evaluate on; or use the option ``eval_fraction``.
        recipe: packaged recipe or YAML file to start from.
        sets: ``key=value`` strings, as on the command line.
        resume: go on with a run that was killed.
        overwrite: replace a run that is there.
        progress: show what goes on, on stderr.
        options: configuration keys (``vlmtrain.config``): model, adapter, beta, epochs, learning_rate ...

    Raises:
        VlmError: anything the caller can put right, before training starts.
    """
    sets = tuple(sets)

    def prepare(batch: tuple[int, int] | None) -> Job | RunResult:
        return begin(
            "dpo",
            data=[data] if isinstance(data, str | Path) else data,
            out=out,
            eval_data=eval_data,
            recipe=recipe,
            sets=sets,
            resume=resume and batch is None,
            overwrite=overwrite or batch is not None,
            progress=progress,
            batch=batch,
            options=options,
        )

    return attempts(prepare, lambda job: run(make_trainer(job), job))


def make_trainer(job: Job) -> Trainer:
    """The trainer of a prepared job, ready to ``train``; reference log-probabilities are computed here."""
    preference = job.config.preference
    assert preference is not None
    collator = _collator(job, preference)
    live = preference.reference == "live"
    whole = job.config.lora.tuner == "full"
    with quiet(), no_reference_model():
        trainer = (ConditionalTrainer if is_conditional(preference) else Trainer)(
            model=job.loaded.model,
            ref_model=copy.deepcopy(job.loaded.model).requires_grad_(False) if whole and live else None,
            args=DPOConfig(
                **arguments(job),
                beta=preference.beta,
                loss_type=list(preference.loss_type),
                loss_weights=list(preference.loss_weights) or None,
                label_smoothing=preference.label_smoothing,
                ld_alpha=preference.ld_alpha,
                f_divergence_type=preference.f_divergence_type,
                f_alpha_divergence_coef=preference.f_alpha_divergence_coef,
                discopop_tau=preference.discopop_tau,
                use_weighting=preference.use_weighting,
            ),
            train_dataset=job.rows,
            eval_dataset=job.eval_rows,
            data_collator=collator,
            processing_class=job.loaded.processor,
            peft_config=job.lora,
        )
        attach(trainer, job)
        if preference.share_prefix:
            collator.share = share(trainer, job)
        if not live:
            with compact_lm_head(job.config.training.compact_head):
                found = precompute(trainer, job)
            collator.reference = {row: (figures[0], figures[1]) for row, figures in found.items()}
            if isinstance(collator, ConditionalCollator):
                collator.corrupted_reference = {row: figures[2] for row, figures in found.items()}
            drop_reference_copy(trainer)
        if isinstance(trainer, ConditionalTrainer):
            trainer.preference, trainer.live = preference, live
        if not live or is_conditional(preference):
            reference_is_precomputed(trainer)
    return trainer


def _collator(job: Job, preference: Preference) -> PreferenceCollator:
    processor, family = job.loaded.processor, job.loaded.family
    if preference.image_weight:
        return ConditionalCollator(processor, family, preference.image_corruption, job.config.training.seed)
    return PreferenceCollator(processor, family)
