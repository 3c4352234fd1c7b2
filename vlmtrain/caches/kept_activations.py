"""What enters a classifier's first trained block is computed once a picture and kept, in memory or in a file.

Exact where a picture gives the same every time: no random view, no dropout and nothing trained below that block. As
many rows as there is room for go through the blocks below before the first step, in batches of the run's size, and what
comes out is kept in the type it was computed in; the others are computed whenever they are seen. The file stands next
to the checkpoints, so that a run that is resumed finds it; processes of one run write and read it together. In memory
each process keeps all of them.

Size: ``[tokens, width]`` a picture, 605 KB for a ViT-B/16 at 224 pixels in float32.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from vlmdata.errors import ConfigError
from vlmtrain import distributed
from vlmtrain.caches.block_features import Cut, cut, take_activations
from vlmtrain.caches.feature_cache import FOLDER
from vlmtrain.runs import FREE
from vlmtrain.watching.memory import machine_memory

if TYPE_CHECKING:
    from vlmtrain.config import Config
    from vlmtrain.job import Job

__all__ = ["KEPT", "KeptCollator", "KeptRows", "Shelf", "check", "use_activations"]

KEPT = "kept"
"""Key of a batch: (place in the batch, place on the shelf) of each row whose pixels are not wanted."""
_GIB = 2**30
_VALUES, _MARKS = "values", "marks"
# A process that is killed loses no more than that of a file.
_WRITE = 2**28


class Shelf:
    """Activations of the first rows there are, and their labels.

    Attributes:
        values: ``[N, ...]``; only those of marked rows mean anything.
        marks: ``[N]``: a row's label + 1, 0 where nothing is kept.
    """

    def __init__(self, rows: int, shape: Sequence[int], dtype: torch.dtype, folder: Path | None) -> None:
        """Room for ``rows`` rows, in memory or, with ``folder``, in two files that are found again.

        Args:
            rows: how many.
            shape: of the activation of one row.
            dtype: of its numbers.
            folder: where the files are; it is made.
        """
        self.file: Path | None = None
        self._waiting: dict[int, int] = {}
        if folder is None:
            self.values = torch.empty(rows, *shape, dtype=dtype)
            self.marks = torch.zeros(rows, dtype=torch.int64)
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / _VALUES
        flat = torch.from_file(str(self.file), shared=True, size=rows * math.prod(shape), dtype=dtype)
        self.values = flat.view(rows, *shape)
        self.marks = torch.from_file(str(folder / _MARKS), shared=True, size=rows, dtype=torch.int64)

    def put(self, places: Sequence[int], found: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep what was computed of rows; those of a file are marked when they are written."""
        self.values[list(places)] = found
        self._waiting |= dict(zip(places, labels.tolist(), strict=True))
        if self.file is None or len(self._waiting) * self.size >= _WRITE:
            self.write()

    def write(self) -> None:
        """Mark rows that wait for it, after their numbers are on the disk."""
        if self.file is not None and self._waiting:
            handle = os.open(self.file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        for place, label in self._waiting.items():
            self.marks[place] = label + 1
        self._waiting.clear()

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return self.values[0].numel() * self.values.element_size()

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with what is kept of its rows, for the model's forward.

        Args:
            inputs: of :class:`KeptCollator`.
        """
        inputs = dict(inputs)
        if pairs := inputs.pop(KEPT, None):
            inputs["activations"] = self.values[[row for _, row in pairs]].to(inputs["labels"].device)
            inputs["places"] = [place for place, _ in pairs]
        return inputs


class KeptRows(Dataset[dict[str, Any]]):
    """Rows of a dataset; of those that are kept their place on the shelf and their label alone."""

    def __init__(self, rows: Any, marks: torch.Tensor, first: int) -> None:
        """Take a dataset and the marks of all rows; ``first`` is the place of its first row."""
        self.rows, self.first = rows, first
        self.labels = [mark - 1 for mark in marks[first : first + len(rows)].tolist()]

    def __len__(self) -> int:
        """Rows of one pass."""
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Row ``number % len``; the number goes on from pass to pass."""
        place = int(number) % len(self)
        if place < len(self.labels) and self.labels[place] >= 0:
            return {KEPT: self.first + place, "label": self.labels[place]}
        row: dict[str, Any] = self.rows[number]
        return row


class KeptCollator:
    """Rows of :class:`KeptRows` to ``labels`` ``[B]``, :data:`KEPT`, and ``pixel_values`` of the others."""

    def __init__(self, collate: Any) -> None:
        """Take the collator of rows that are not kept."""
        self.collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; the labels stand first, where accelerate looks for its size."""
        kept = [(place, row[KEPT]) for place, row in enumerate(rows) if KEPT in row]
        if not kept:
            plain: dict[str, Any] = self.collate(rows)
            return plain
        labels = torch.tensor([row["label"] for row in rows])
        others = [place for place, row in enumerate(rows) if KEPT not in row]
        batch: dict[str, Any] = self.collate([rows[place] for place in others]) if others else {}
        if others:
            # Another row may have taken the place of one that cannot be read.
            labels[others] = batch.pop("labels")
        return {"labels": labels, **batch, KEPT: kept}


def check(config: Config) -> None:
    """Refuse settings of a cache that cannot be, before a model is loaded.

    Raises:
        ConfigError: nothing would be kept, or the limit has nothing to limit.
    """
    settings = config.classification
    assert settings is not None
    asked = sorted(config.asked & {"cache_in", "cache_gb"})
    if settings.cache_features and "cache_features" in config.asked:
        asked.insert(0, "cache_features")
    if not asked:
        return
    if not settings.cache_features:
        raise ConfigError(f"{asked[0]} says how cache_features keeps activations: not with cache_features=false")
    if settings.augment != "none":
        raise ConfigError(f"{asked[0]}: no picture looks the same in two passes with augment={settings.augment}: none")
    if settings.head_only and asked[-1] != "cache_features":
        raise ConfigError(f"{asked[-1]} is for trained blocks; head_only keeps what its head sees in memory")


def use_activations(trainer: Any, job: Job) -> None:
    """Compute what enters the first trained block for all rows, or find it, and go on from there in every pass.

    Args:
        trainer: of a prepared job, ready to ``train``; its datasets, collator and ``shelf`` change.
        job: what it was made from.
    """
    reason = "processes hold the weights in parts" if trainer.is_sharded else None
    if trainer.args.n_gpu > 1:
        reason = "one process trains on several GPUs"
    made = reason or cut(trainer.net, job.loaded.family.head)
    parts = [trainer.train_dataset, *([trainer.eval_dataset] if job.eval_rows is not None else [])]
    shelf = made if isinstance(made, str) else _shelf(trainer, job, made, parts)
    if isinstance(shelf, str):
        job.reporter.say(f"activations are computed in every pass: {shelf}")
        return
    assert isinstance(made, Cut)
    take_activations(trainer.net, made)
    first = [sum(map(len, parts[:number])) for number in range(len(parts))]
    datasets = [KeptRows(rows, shelf.marks, start) for rows, start in zip(parts, first, strict=True)]
    trainer.train_dataset = datasets[0]
    if len(datasets) > 1:
        trainer.eval_dataset = datasets[1]
    trainer.data_collator = KeptCollator(trainer.data_collator)
    trainer.shelf = shelf
    if int((shelf.marks > 0).sum()) == sum(map(len, parts)):
        # Nothing is left for workers to do.
        trainer.args.dataloader_num_workers = 0


def _shelf(trainer: Any, job: Job, made: Cut, parts: Sequence[Any]) -> Shelf | str:
    """The shelf, filled; or why there can be none."""
    model = trainer.model
    training = model.training
    model.eval()
    try:
        with trainer.accelerator.autocast():
            batch = next(_read(trainer, parts, [_batches(job, parts)[0]]))
            sample = made.tried(send_to_device(batch["pixel_values"], trainer.args.device))
            reasons = distributed.gathered(sample if isinstance(sample, str) else None)
            if reason := next((one for one in reasons if one), None):
                return reason
            assert isinstance(sample, torch.Tensor)
            shelf = _room(job, made, parts, sample)
            if isinstance(shelf, Shelf):
                _fill(trainer, job, made, parts, shelf, {0: (sample.cpu(), batch)})
            return shelf
    finally:
        model.train(training)


def _room(job: Job, made: Cut, parts: Sequence[Any], sample: torch.Tensor) -> Shelf | str:
    """A shelf for as many rows as fit; or why there is none.

    Raises:
        ConfigError: ``cache_gb`` is more than there is, and all of it is wanted.
    """
    settings, checkpoints = job.config.classification, job.folder.checkpoints
    assert settings is not None
    size, total = sample[0].numel() * sample.element_size(), sum(map(len, parts))
    folder = checkpoints / FOLDER / f"blocks-{_key(job, made, sample)}" if settings.cache_in == "disk" else None
    found, there = _there(folder, checkpoints) if folder is not None else (0, machine_memory() // job.processes)
    where = "memory" if folder is None else "files"
    limit = there // (4 if folder is None else 2) if settings.cache_gb is None else int(settings.cache_gb * _GIB)
    # The room that is left is another one when a run is resumed.
    rows = found // size if found and settings.cache_gb is None else min(total, limit // size)
    # All processes have the same rows on their shelves, and files their size.
    rows, there = distributed.gathered((rows, there))[0]
    if not rows:
        return f"{limit / _GIB:.2f} GiB of {where} has no room for one picture's"
    if settings.cache_gb is not None and rows * size > there:
        has = f"{where} has {there / _GIB:.2f} GiB"
        raise ConfigError(f"cache_gb is {settings.cache_gb:g}, {rows * size / _GIB:.2f} of it wanted; {has}: give less")
    before = f"before block {made.first + 1} of {made.count}"
    job.reporter.say(f"activations {before} are kept in {where}: {rows:,} pictures, {rows * size / _GIB:.2f} GiB")
    if rows < total:
        job.reporter.say(f"        no room for the other {total - rows:,}: they are computed in every pass")
    job.identity["activations"] = f"{before}: of {rows:,} of {total:,} pictures computed once"
    if folder is not None:
        distributed.first(lambda: _reserve(folder, rows, size))
    return Shelf(rows, sample.shape[1:], sample.dtype, folder)


def _there(folder: Path, checkpoints: Path) -> tuple[int, int]:
    """Bytes of a file of values that is there already, and bytes such a file can take."""
    file = folder / _VALUES
    stat = file.stat() if file.is_file() else None
    free = shutil.disk_usage(checkpoints).free
    return (stat.st_size, free + stat.st_blocks * 512) if stat else (0, free)


def _reserve(folder: Path, rows: int, size: int) -> None:
    """The files of values and marks, at their full size: a disk that fills up later would end the process wordless.

    Raises:
        ConfigError: they do not fit.
    """
    file = folder / _VALUES
    try:
        if file.is_file() and file.stat().st_size != rows * size:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, wanted in ((_VALUES, rows * size), (_MARKS, rows * 8)):
            with (folder / name).open("ab") as handle:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle.fileno(), 0, wanted)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        why = f"{file}: {error.strerror}, expected room for {rows * size / 2**20:,.1f} MiB"
        raise ConfigError(f"{why}: give less by cache_gb, or cache_in=ram") from error


def _fill(
    trainer: Any, job: Job, made: Cut, parts: Sequence[Any], shelf: Shelf, known: Mapping[int, tuple[Any, Any]]
) -> None:
    """Run what is missing through the blocks below; each process takes its share of batches."""
    room = len(shelf.marks)
    batches = [places for places in _batches(job, parts) if places[0] < room]
    kept = distributed.gathered((shelf.marks > 0).tolist())[0]
    missing = [number for number, places in enumerate(batches) if not all(kept[p] for p in places if p < room)]
    if not missing:
        return
    mine = missing[distributed.rank() :: job.processes]
    job.reporter.open("activations", sum(len(batches[number]) for number in mine))
    done = 0
    reads = _read(trainer, parts, [batches[number] for number in mine if number not in known])
    try:
        for turn in range(math.ceil(len(missing) / job.processes)):
            share = None
            if turn < len(mine):
                number = mine[turn]
                hidden, batch = known[number] if number in known else (None, next(reads))
                if job.ledger is not None:
                    job.ledger.take(batch)
                if hidden is None:
                    hidden = made.below(send_to_device(batch["pixel_values"], trainer.args.device)).cpu()
                places = [place for place in batches[number] if place < room]
                share = (places, hidden[: len(places)], batch["labels"][: len(places)])
                done += len(batches[number])
                job.reporter.advance(done)
            for one in distributed.gathered(share) if shelf.file is None else [share]:
                if one is not None:
                    shelf.put(*one)
        shelf.write()
    finally:
        job.reporter.close()
    distributed.gathered(None)


def _batches(job: Job, parts: Sequence[Any]) -> list[list[int]]:
    """Places of all rows in batches; none has rows of two datasets."""
    size, found, first = job.config.training.batch_size, list[list[int]](), 0
    for rows in parts:
        end = first + len(rows)
        found += [list(range(start, min(start + size, end))) for start in range(first, end, size)]
        first = end
    return found


class _All(Dataset[Any]):
    """The rows of several datasets, one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def __getitem__(self, place: int) -> Any:
        for rows in self.parts:
            if place < len(rows):
                return rows[place]
            place -= len(rows)
        raise IndexError(place)


def _read(trainer: Any, parts: Sequence[Any], batches: list[list[int]]) -> Iterator[dict[str, Any]]:
    workers = trainer.args.dataloader_num_workers if len(batches) > 1 else 0
    collate = trainer.worker_collator
    # With random numbers of its own: those of the run, which dropout draws from, stay where they are.
    own = torch.Generator()
    yield from DataLoader(_All(parts), batch_sampler=batches, collate_fn=collate, num_workers=workers, generator=own)


def _key(job: Job, made: Cut, sample: torch.Tensor) -> str:
    """What the numbers in a file depend on besides their number."""
    datasets = [rows for rows in (job.rows, job.eval_rows) if rows is not None]
    said = [
        {key: value for key, value in job.identity["config"].items() if key not in FREE},
        {name: job.identity[name] for name in ("base", "base_hash", "adapter", "data", "eval_data")},
        {name: metadata.version(name) for name in ("torch", "transformers")},
        job.loaded.processor.to_json_string(),
        [made.first, list(sample.shape[1:]), str(sample.dtype), job.device],
        [list(rows["row"]) for rows in datasets],
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
