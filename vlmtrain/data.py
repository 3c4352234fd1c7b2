"""Shards to datasets: opened, checked, split, and put in an order that seed and epoch alone decide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetInfo, Features, Image, List, concatenate_datasets
from torch.utils.data import Sampler

from vlmdata.errors import ConfigError, DataError
from vlmdata.manifest import MANIFEST
from vlmdata.shards import open_shards

__all__ = ["Grouped", "Opened", "hold_out", "open_data"]

COLUMNS = {"messages": ("messages",), "preference": ("prompt", "chosen", "rejected")}
METHODS = {"messages": "sft", "preference": "dpo"}
# Above this, rows are memory-mapped from an Arrow cache that datasets writes once.
IN_MEMORY_BYTES = 1 << 31


@dataclass(slots=True)
class Opened:
    """Rows of one or several converted datasets.

    Attributes:
        rows: columns ``id``, ``images``, ``image_size``, ``image_sha256`` and the messages of the kind.
        origin: per dataset what a run folder records: name, hash of its manifest, source, licence, rows. No path.
    """

    rows: Dataset
    origin: list[dict[str, Any]]


def open_data(folders: Sequence[str | Path], kind: str) -> Opened:
    """Open converted datasets and join them.

    Args:
        folders: shards folders.
        kind: ``messages`` or ``preference``.

    Raises:
        MissingError: no such folder.
        DataError: unfinished, empty, or of the other kind.
    """
    if not folders:
        raise ConfigError("no data given: expected --data with a folder that vlmdata convert wrote")
    parts, origin = [], []
    for folder in folders:
        shards = open_shards(Path(folder))
        if shards.kind != kind:
            other = METHODS.get(shards.kind, "another command")
            raise DataError(f"{folder} holds {shards.kind} rows, expected {kind}: train on it with vlmtrain {other}")
        if not len(shards):
            raise DataError(f"{folder} holds no rows")
        parts.append(_read([str(path) for path in shards.files], kind))
        manifest = (Path(folder) / MANIFEST).read_bytes()
        origin.append(
            {
                "name": Path(folder).resolve().name,
                "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
                "source": shards.manifest.source,
                "licence": shards.manifest.licence,
                "rows": len(shards),
            }
        )
    return Opened(concatenate_datasets(parts) if len(parts) > 1 else parts[0], origin)


def hold_out(rows: Dataset, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers for training and for evaluation; rows that share their first image stay on one side.

    Raises:
        DataError: one side would be empty.
    """
    keys = [hashes[0] if hashes else row for hashes, row in zip(rows["image_sha256"], rows["id"], strict=True)]
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    held: list[int] = []
    for key in order:
        if len(held) >= fraction * len(keys):
            break
        held += groups[key]
    train = sorted(set(range(len(keys))) - set(held))
    if not train or not held:
        found = f"{len(keys)} rows on {len(order)} images"
        raise DataError(f"--eval-fraction {fraction:g} of {found} leaves one side empty")
    return train, sorted(held)


class Grouped(Sampler[int]):
    """Row order of an epoch, decided by seed and epoch; rows of like length stand together.

    Rows are shuffled, cut into runs of 50 batches, sorted by length inside each run, and the batches are shuffled
    again: as random as it can be at nearly no padding. A last, smaller batch stays last. Without lengths, a plain
    shuffle.
    """

    def __init__(self, size: int, batch: int, seed: int, lengths: Sequence[int] | None) -> None:
        """Take rows by number, ``batch`` of which share an optimizer forward."""
        self.size, self.batch, self.seed, self.lengths, self.epoch = size, batch, seed, lengths, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order is to come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Rows in an epoch."""
        return self.size

    def __iter__(self) -> Iterator[int]:
        """Row numbers."""
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        if self.lengths is None or self.batch >= self.size:
            yield from order
            return
        lengths, run = self.lengths, 50 * self.batch
        batches: list[list[int]] = []
        for start in range(0, self.size, run):
            part = sorted(order[start : start + run], key=lambda row: lengths[row], reverse=True)
            batches += [part[i : i + self.batch] for i in range(0, len(part), self.batch)]
        last = batches.pop() if len(batches[-1]) < self.batch else []
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[place]
        yield from last


def _read(files: list[str], kind: str) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["id", "images", "image_size", "image_sha256", *COLUMNS[kind]]
    schema = pq.read_schema(files[0])
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise DataError(f"{files[0]} has no column {', '.join(missing)}: convert it again")
    # Images stay encoded: they are decoded in the collator. Casting afterwards would copy them all.
    known = Features.from_arrow_schema(schema)
    features = Features({name: known[name] for name in columns} | {"images": List(Image(decode=False))})
    if sum(Path(file).stat().st_size for file in files) > IN_MEMORY_BYTES:
        return Dataset.from_parquet(files, columns=columns, features=features)
    # Tables stay apart: joining their columns into one chunk could pass the 2 GiB of 32-bit offsets.
    table = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    return Dataset(table.cast(features.arrow_schema), info=DatasetInfo(features=features))
