"""Supervised fine-tuning: TRL's SFTTrainer on our rows and batches, loss on the assistant's tokens only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trl import SFTConfig, SFTTrainer

from vlmtrain.arguments import arguments
from vlmtrain.collate import Collator
from vlmtrain.job import Job
from vlmtrain.model import quiet
from vlmtrain.runs import RunResult
from vlmtrain.training import attach, begin, run
from vlmtrain.trl_seam import TrainerSeam

__all__ = ["Trainer", "make_trainer", "train"]


class Trainer(TrainerSeam, SFTTrainer):
    """SFTTrainer behind the seam."""


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
    job = begin(
        "sft",
        data=[data] if isinstance(data, str | Path) else data,
        out=out,
        eval_data=eval_data,
        recipe=recipe,
        sets=sets,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        options=options,
    )
    return job if isinstance(job, RunResult) else run(make_trainer(job), job)


def make_trainer(job: Job) -> Trainer:
    """The trainer of a prepared job, ready to ``train``."""
    with quiet():
        trainer = Trainer(
            model=job.loaded.model,
            args=SFTConfig(**arguments(job), dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=job.rows,
            eval_dataset=job.eval_rows,
            data_collator=Collator(job.loaded.processor, job.loaded.family),
            processing_class=job.loaded.processor,
            peft_config=job.lora,
        )
        attach(trainer, job)
    return trainer
