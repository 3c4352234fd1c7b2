"""The reference's log-probabilities, computed once before training, and kept for other runs and for a killed one.

A run first looks for its rows in the user's cache folder (``vlmtrain.caches.reference_cache``), and writes down in its
own folder which it found there: which rows share a batch follows from that, so that a run that is killed on its way
goes on with the same batches to the same figures, whatever others have added meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.utils.data import DataLoader

from vlmdata.atomic import write_json
from vlmtrain import distributed
from vlmtrain.caches.reference_cache import (
    Figures,
    Journal,
    Shared,
    by_batch,
    describe,
    open_shared,
    row_keys,
    together,
)
from vlmtrain.checkpoints import writable
from vlmtrain.image_order import image_keys, pack
from vlmtrain.job import Job
from vlmtrain.runs import FREE

__all__ = ["precompute"]


@dataclass(slots=True)
class _Part:
    """The rows to train or to evaluate on, in batches of places in the dataset, those of like length together.

    Attributes:
        numbers: the ``row`` of each place.
        keys: of each place, by which other runs know it; empty where nothing is kept for them.
        batches: what is to be computed.
    """

    rows: Dataset
    training: bool
    numbers: list[int]
    batches: list[list[int]]
    keys: list[str] = field(default_factory=list)


def precompute(trainer: Any, job: Job) -> dict[int, tuple[float, ...]]:
    """What the reference thinks of every row, by row number; what is known already is not asked for again.

    Args:
        trainer: has ``reference_columns``, which gives one ``[B]`` tensor per figure for a batch of B rows, and
            ``reference_inputs``, which gives what a row's figures depend on besides weights and images.
        job: what it was made from.

    Returns:
        Row number -> the row's figures, in the order of ``reference_columns``.
    """
    with writable(job.folder.path):
        return _precomputed(trainer, job)


def _precomputed(trainer: Any, job: Job) -> dict[int, tuple[float, ...]]:
    file = job.folder.checkpoints / "reference.json"
    given = [rows for rows in (job.rows, job.eval_rows) if rows is not None]
    config = {key: value for key, value in job.identity["config"].items() if key not in FREE}
    said = [{**job.identity, "config": config}, [list(rows["row"]) for rows in given]]
    key = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    known = distributed.first(lambda: _read(file))
    if known.get("key") == key:
        return {row: tuple(figures) for row, *figures in known["logps"]}
    size = job.config.training.batch_size
    grouped = job.config.groups_images
    parts = [_part(rows, training, size, grouped) for rows, training in zip(given, (True, False), strict=False)]
    shared = _open(trainer, job, parts)
    folder = file.with_name("reference")
    found, computed = distributed.first(lambda: _start(job, folder, key, parts, shared))
    for part in parts:
        _leave_out(part, found, size, whole=by_batch(trainer.net))
    devices = [torch.cuda.current_device()] if job.device == "cuda" else []
    # What is drawn meanwhile must not tell a run that computes from one that finds.
    with torch.random.fork_rng(devices):
        logps = _compute(trainer, job, parts, folder, shared, computed)
    logps |= {int(row): figures for row, figures in found.items()}
    logps = {row: figures for share in distributed.gathered(logps) for row, figures in share.items()}
    if distributed.is_first():
        rows_of = [[row, *figures] for row, figures in sorted(logps.items())]
        write_json(file, {"key": key, "found": len(found), "logps": rows_of})
        shutil.rmtree(folder, ignore_errors=True)
    return logps


def _read(file: Path) -> dict[str, Any]:
    """A file of this run; one that is missing or damaged says nothing."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _part(rows: Dataset, training: bool, size: int, grouped: bool) -> _Part:
    lengths = list(rows["length"])
    order = sorted(range(len(rows)), key=lambda place: lengths[place])
    if grouped:
        keys = image_keys(rows["image_sha256"])
        by_image = sorted(order, key=lambda place: keys[place])
        full, rest = pack([(place, lengths[place]) for place in by_image], keys, size, sort=True)
        order = [place for place, _ in [*full, *rest]]
    return _Part(rows, training, list(rows["row"]), _chunks(order, size))


def _chunks(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[start : start + size]) for start in range(0, len(places), size)]


def _open(trainer: Any, job: Job, parts: Sequence[_Part]) -> Shared | None:
    """What other runs left; each part gets its rows' keys. For all processes to call."""
    group = job.config.preference or job.config.unpaired
    if group is None or not group.reference_cache:
        return None

    def look() -> tuple[dict[str, Any] | None, list[list[str]]]:
        about = describe(trainer, job)
        if about is None:
            return None, []
        keys = [row_keys(part.rows, trainer.reference_inputs) for part in parts]
        if by_batch(trainer.net):
            for part, own in zip(parts, keys, strict=True):
                for batch in part.batches:
                    for place, key in zip(batch, together([own[at] for at in batch], part.training), strict=True):
                        own[place] = key
        return about, keys

    about, keys = distributed.first(look)
    if about is None:
        return None
    for part, own in zip(parts, keys, strict=True):
        part.keys = own
    return open_shared(about, job.reporter.say)


def _start(job: Job, folder: Path, key: str, parts: Sequence[_Part], shared: Shared | None) -> tuple[Figures, Figures]:
    """Figures by row number: those that other runs left, and those that this run had computed before it was killed."""
    plan = folder / "found.json"
    before = _read(plan)
    total = sum(len(part.rows) for part in parts)
    if before.get("key") == key:
        found: Figures = {row: tuple(figures) for row, figures in before["found"].items()}
        computed: Figures = {}
        for file in sorted(folder.glob("*.jsonl")):
            computed |= Journal(file).read()[0]
        job.reporter.say(f"reference {len(found) + len(computed):,} of {total:,} rows known, the rest is computed")
        return found, computed
    shutil.rmtree(folder, ignore_errors=True)
    found = {}
    if shared is not None:
        known = shared.find(key for part in parts for key in part.keys)
        places = [(str(row), key) for part in parts for row, key in zip(part.numbers, part.keys, strict=True)]
        found = {row: known[key] for row, key in places if key in known}
        if found:
            job.reporter.say(f"reference {len(found):,} of {total:,} rows known")
    folder.mkdir(parents=True)
    write_json(plan, {"key": key, "found": found})
    return found, {}


def _leave_out(part: _Part, found: Figures, size: int, *, whole: bool) -> None:
    """Of a part's batches what other runs have not left; batches stay as they are where they are known whole."""
    new = [[place for place in batch if str(part.numbers[place]) not in found] for batch in part.batches]
    part.batches = [batch for batch in new if batch] if whole else _chunks([at for batch in new for at in batch], size)


def _compute(
    trainer: Any, job: Job, parts: Sequence[_Part], folder: Path, shared: Shared | None, computed: Figures
) -> dict[int, tuple[float, ...]]:
    """This process's share of what is left to be computed, by row number; written down batch by batch."""
    own = Journal(folder / f"{distributed.rank()}.jsonl")
    logps = {int(row): figures for row, figures in computed.items()}
    job.reporter.open("reference", sum(len(batch) for part in parts for batch in part.batches))
    done = 0
    try:
        for part in parts:
            _as_in_training(trainer.model, part.training)
            # A batch is written in one line: of one that was begun all rows are there that can be read.
            mine = part.batches[distributed.rank() :: job.processes]
            left = [batch for batch in mine if not any(part.numbers[place] in logps for place in batch)]
            done += sum(map(len, mine)) - sum(map(len, left))
            for places, columns in _passes(trainer, job, part.rows, left):
                figures = list(zip(*columns, strict=True))
                numbers = [part.numbers[place] for place in places]
                own.append({str(row): one for row, one in zip(numbers, figures, strict=True)})
                if shared is not None:
                    keys = [part.keys[place] for place in places]
                    shared.add(dict(zip(keys, figures, strict=True)))
                logps |= zip(numbers, figures, strict=True)
                done += len(places)
                job.reporter.advance(done * job.processes)
    finally:
        job.reporter.close()
    return logps


def _as_in_training(model: Any, training: bool) -> None:
    """The mode in which the policy will see these rows, but for dropout: an int8 product rounds by it."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()


def _passes(
    trainer: Any, job: Job, rows: Dataset, batches: Sequence[list[int]]
) -> Iterator[tuple[list[int], list[list[float]]]]:
    """Places of the rows of each batch and, for each figure, its values; without rows that cannot be read."""
    loader = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=trainer.worker_collator,
        num_workers=trainer.args.dataloader_num_workers,
    )
    for places, batch in zip(batches, loader, strict=True):
        others = set(job.ledger.take(batch)) if job.ledger else set()
        # A row that stands for one that cannot be read has its own turn.
        kept = [at for at in range(len(places)) if at not in others]
        if not kept:
            continue
        columns = [column.tolist() for column in trainer.reference_columns(send_to_device(batch, trainer.args.device))]
        yield [places[at] for at in kept], [[column[at] for at in kept] for column in columns]
