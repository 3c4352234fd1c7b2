"""The reference's log-probabilities, computed once before training and kept for a run that is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.utils.data import DataLoader

from vlmdata.atomic import write_json
from vlmtrain import distributed
from vlmtrain.job import Job

__all__ = ["precompute"]


def precompute(trainer: Any, job: Job) -> dict[int, tuple[float, ...]]:
    """What the reference thinks of every row, by row number; a killed run finds what it had computed.

    Args:
        trainer: has ``reference_columns``, which gives one ``[B]`` tensor per figure for a batch of B rows.
        job: what it was made from.

    Returns:
        Row number -> the row's figures, in the order of ``reference_columns``.
    """
    file = job.folder.checkpoints / "reference.json"
    parts = [rows for rows in (job.rows, job.eval_rows) if rows is not None]
    key = hashlib.sha256(json.dumps([job.identity, [list(rows["row"]) for rows in parts]]).encode()).hexdigest()
    known = distributed.first(lambda: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
    if known.get("key") == key:
        return {row: tuple(figures) for row, *figures in known["logps"]}
    logps: dict[int, tuple[float, ...]] = {}
    job.reporter.open("reference", sum(map(len, parts)))
    try:
        for rows, training in zip(parts, (True, False), strict=False):
            _as_in_training(trainer.model, training)
            for numbers, columns in _passes(trainer, job, rows):
                logps |= zip(numbers, zip(*columns, strict=True), strict=True)
                job.reporter.advance(len(logps))
    finally:
        job.reporter.close()
    logps = {row: figures for share in distributed.gathered(logps) for row, figures in share.items()}
    if distributed.is_first():
        write_json(file, {"key": key, "logps": [[row, *figures] for row, figures in sorted(logps.items())]})
    return logps


def _as_in_training(model: Any, training: bool) -> None:
    """The mode in which the policy will see these rows, but for dropout: an int8 product rounds by it."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()


def _passes(trainer: Any, job: Job, rows: Dataset) -> Iterator[tuple[list[int], list[list[float]]]]:
    """Row numbers of a batch and their figures; rows of like length together. Each process has its own batches."""
    lengths, numbers = list(rows["length"]), list(rows["row"])
    order = sorted(range(len(rows)), key=lambda place: lengths[place])
    size = job.config.training.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    mine = batches[distributed.rank() :: job.processes]
    loader = DataLoader(
        rows,
        batch_sampler=mine,
        collate_fn=trainer.data_collator,
        num_workers=trainer.args.dataloader_num_workers,
    )
    for places, batch in zip(mine, loader, strict=True):
        others = set(job.ledger.take(batch)) if job.ledger else set()
        columns = [column.tolist() for column in trainer.reference_columns(send_to_device(batch, trainer.args.device))]
        # A row that stands for one that cannot be read has its own turn.
        kept = [at for at in range(len(places)) if at not in others]
        yield [numbers[places[at]] for at in kept], [[column[at] for at in kept] for column in columns]
