"""Supervised fine-tuning: TRL's SFTTrainer on our rows and batches, loss on the tokens ``vlmtrain.supervision`` says.

``loss_type: dft`` is Dynamic Fine-Tuning (https://arxiv.org/abs/2508.05629), ``neftune_noise_alpha`` NEFTune
(https://arxiv.org/abs/2310.05914); both are TRL's and transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from vlmtrain.arguments import arguments
from vlmtrain.auto_batch import attempts
from vlmtrain.forwards import weigh_rows
from vlmtrain.job import Job
from vlmtrain.lean.folded import share
from vlmtrain.model import quiet
from vlmtrain.runs import RunResult
from vlmtrain.supervision import SupervisedCollator
from vlmtrain.training import attach, begin, run
from vlmtrain.trl_seam import TrainerSeam
from vlmtrain.weights import read_weights

__all__ = ["Trainer", "make_trainer", "train"]


class Trainer(TrainerSeam, SFTTrainer):
    """SFTTrainer behind the seam, for rows that weigh more or less."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of an optimizer step and what their losses are divided by: the tokens, or their weights."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        if items is not None and batches and "weight" in batches[0]:
            kept = [{name: batch[name] for name in ("labels", "weight")} for batch in batches]
            weighed = torch.stack([_weighed(self.moved(part)) for part in kept]).sum()
            items = self.accelerator.gather(weighed).sum()
        return batches, items

    def loss_of(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; with weights, those of the rows' tokens."""
        weights = inputs.pop("weight", None)
        if weights is None:
            return super().loss_of(model, inputs, *args, **kwargs)
        items = kwargs.get("num_items_in_batch")
        if items is None:
            # TRL divides by the tokens of the batch then.
            weights = weights * (inputs["labels"][:, 1:] >= 0).sum() / _weighed({**inputs, "weight": weights})
        else:
            # TRL divides by 1 at least.
            less = torch.where((items > 0) & (items < 1), items, torch.ones_like(items))
            weights, kwargs["num_items_in_batch"] = weights / less, items / less
        return super().loss_of(weigh_rows(model, weights), inputs, *args, **kwargs)


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
    """Fine-tune on converted conversations; everything ``vlmtrain sft`` does.

    Args:
        data: shards folders of kind messages.
        out: the run folder.
        eval_data: shards folders to evaluate on; or use the option ``eval_fraction``.
        recipe: packaged recipe or YAML file to start from.
        sets: ``key=value`` strings, as on the command line.
        resume: go on with a run that was killed.
        overwrite: replace a run that is there.
        progress: show what goes on, on stderr.
        options: configuration keys (``vlmtrain.config``): model, epochs, learning_rate, lora_r, parts ...

    Raises:
        VlmError: anything the caller can put right, before training starts.
    """
    sets = tuple(sets)

    def prepare(batch: tuple[int, int] | None) -> Job | RunResult:
        return begin(
            "sft",
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
    """The trainer of a prepared job, ready to ``train``."""
    supervision = job.config.supervision
    assert supervision is not None
    heaviest = max(read_weights(job.rows, supervision.weight_by)) if supervision.weight_by else 1.0
    collator = SupervisedCollator(job.loaded.processor, job.loaded.family, supervision, heaviest)
    with quiet():
        trainer = Trainer(
            model=job.loaded.model,
            args=SFTConfig(
                **arguments(job),
                dataset_kwargs={"skip_prepare_dataset": True},
                loss_type=supervision.loss_type,
                neftune_noise_alpha=supervision.neftune_noise_alpha,
            ),
            train_dataset=job.rows,
            eval_dataset=job.eval_rows,
            data_collator=collator,
            processing_class=job.loaded.processor,
            peft_config=job.lora,
        )
        attach(trainer, job)
    beginnings, packs = supervision.share_prefix, supervision.packing
    if not (beginnings or packs):
        return trainer
    if supervision.neftune_noise_alpha:
        job.reporter.say("rows are padded and share nothing: NEFTune's noise depends on the length of a row of its own")
    else:
        collator.share = share(trainer, job, beginnings=beginnings, packs=packs)
    return trainer


def _weighed(batch: dict[str, Any]) -> torch.Tensor:
    """Tokens of a batch with a loss, each counted with its row's weight."""
    tokens = (batch["labels"][:, 1:] >= 0).sum(1)
    total: torch.Tensor = (batch["weight"] * tokens).sum()
    return total
