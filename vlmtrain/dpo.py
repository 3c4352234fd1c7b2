"""Direct preference optimization: TRL's DPOTrainer on our rows and batches, one adapter in and one adapter out.

Paper: https://arxiv.org/abs/2305.18290

The reference is the model before the first step: the base for a new adapter, the SFT model when ``adapter`` is given.
It does not change, so its log-probabilities are computed once, before training (``reference: precompute``), and no
second adapter is kept. TRL refuses its own option of that name for images. ``reference: live`` is TRL's plain way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer

from vlmdata.atomic import write_json
from vlmtrain.arguments import arguments
from vlmtrain.collate import PreferenceCollator
from vlmtrain.job import Job
from vlmtrain.model import quiet
from vlmtrain.runs import RunResult
from vlmtrain.training import attach, begin, run
from vlmtrain.trl_seam import TrainerSeam, compact_lm_head, drop_reference_copy, reference_is_precomputed

__all__ = ["Trainer", "make_trainer", "train"]


class Trainer(TrainerSeam, DPOTrainer):
    """DPOTrainer behind the seam."""


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
    job = begin(
        "dpo",
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
    """The trainer of a prepared job, ready to ``train``; reference log-probabilities are computed here."""
    preference = job.config.preference
    assert preference is not None
    with quiet():
        trainer = Trainer(
            model=job.loaded.model,
            args=DPOConfig(
                **arguments(job),
                beta=preference.beta,
                loss_type=list(preference.loss_type),
                loss_weights=list(preference.loss_weights) or None,
                label_smoothing=preference.label_smoothing,
            ),
            train_dataset=job.rows,
            eval_dataset=job.eval_rows,
            data_collator=PreferenceCollator(job.loaded.processor, job.loaded.family),
            processing_class=job.loaded.processor,
            peft_config=job.lora,
        )
        attach(trainer, job)
        if preference.reference == "precompute":
            with compact_lm_head(job.config.training.compact_head):
                trainer.data_collator.reference = _reference(trainer, job)
            reference_is_precomputed(trainer)
            drop_reference_copy(trainer)
    return trainer


def _reference(trainer: Trainer, job: Job) -> dict[int, tuple[float, float]]:
    """The reference's log-probabilities by row number; a killed run finds those it had computed."""
    file = job.folder.checkpoints / "reference.json"
    parts = [rows for rows in (job.rows, job.eval_rows) if rows is not None]
    key = hashlib.sha256(json.dumps([job.identity, [list(rows["row"]) for rows in parts]]).encode()).hexdigest()
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["key"] == key:
            return {row: (chosen, rejected) for row, chosen, rejected in known["logps"]}
    logps: dict[int, tuple[float, float]] = {}
    job.reporter.open("reference", sum(map(len, parts)))
    try:
        for rows in parts:
            for numbers, chosen, rejected in _passes(trainer, job, rows):
                logps |= zip(numbers, zip(chosen, rejected, strict=True), strict=True)
                job.reporter.advance(len(logps))
    finally:
        job.reporter.close()
    write_json(file, {"key": key, "logps": [[row, *pair] for row, pair in sorted(logps.items())]})
    return logps


def _passes(trainer: Trainer, job: Job, rows: Dataset) -> Iterator[tuple[list[int], list[float], list[float]]]:
    """Row numbers of a batch and their log-probabilities; rows of like length together."""
    lengths, numbers = list(rows["length"]), list(rows["row"])
    order = sorted(range(len(rows)), key=lambda place: lengths[place])
    size = job.config.training.batch_size
    loader = DataLoader(
        rows,
        batch_size=size,
        sampler=order,
        collate_fn=trainer.data_collator,
        num_workers=trainer.args.dataloader_num_workers,
    )
    for start, batch in zip(range(0, len(order), size), loader, strict=True):
        moved = {key: value.to(trainer.args.device) for key, value in batch.items()}
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, moved)
        yield [numbers[place] for place in order[start : start + size]], chosen.tolist(), rejected.tolist()
