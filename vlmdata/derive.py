"""Datasets made from rows of converted ones: rows are copied as Arrow, images as the bytes they are.

``DatasetWriter`` writes the shards of one new dataset; ``copy_rows`` deals the rows of a dataset out to writers;
``write_manifest`` finishes a folder. Memory holds a few row groups, however large the datasets are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import vlmdata
from vlmdata.atomic import replacing, sha256_file, write_lines
from vlmdata.card import card
from vlmdata.manifest import CARD, MANIFEST, ImageCounts, Manifest, Parent, RowCounts, ShardInfo, add_counts
from vlmdata.rejects import REJECTS_FILE
from vlmdata.shards import ROW_GROUP_BYTES, Shards, ShardWriter, shard_schema
from vlmdata.tables import count_images, images_compressed, row_bytes, row_groups

__all__ = [
    "DROPPED",
    "DatasetWriter",
    "Derived",
    "Drop",
    "copy_rows",
    "derived_lines",
    "write_manifest",
]

DROPPED = -1
"""In the numbers that ``copy_rows`` deals by: the row goes nowhere."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a row of the parent is not in the new dataset.

    Attributes:
        row: its number in the parent, from 0.
        id: its id.
        reason: a word of ``vlmdata.reasons.REASONS``.
        detail: what was found.
    """

    row: int
    id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Derived:
    """A dataset made from others.

    Attributes:
        out: its folder.
        manifest: what it is.
    """

    out: Path
    manifest: Manifest


class DatasetWriter:
    """Writes tables of rows as shards of limited size. The same rows give the same bytes."""

    def __init__(self, folder: Path, parents: Sequence[Shards], shard_bytes: int) -> None:
        """Prepare; a file is opened with the first row.

        Args:
            folder: where the shards go.
            parents: whose rows will come.
            shard_bytes: images and texts for one shard.
        """
        self._folder, self._limit = folder, shard_bytes
        self._schema = shard_schema(parents[0].kind, parents[0].manifest.label_names)
        self._shared = any(images_compressed(parent) for parent in parents)
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = self._shard_bytes = 0
        self._images = ImageCounts()
        self._writer: ShardWriter | None = None
        self._closed: list[ShardInfo] = []
        self._syncing: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(1)

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        ends = np.cumsum(row_bytes(table))
        limit = min(ROW_GROUP_BYTES, self._limit)
        start = 0
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            fits = int(np.searchsorted(ends, before + limit - self._waiting_bytes, side="right"))
            if fits <= start and self._waiting:
                self._flush()
                continue
            stop = max(fits, start + 1)
            self._waiting.append(table.slice(start, stop - start))
            self._waiting_bytes += int(ends[stop - 1]) - before
            start = stop

    def finish(self) -> tuple[ShardInfo, ...]:
        """Close and name the shards; what they are, in order."""
        if self._waiting:
            self._flush()
        self._close()
        for synced in self._syncing:
            synced.result()
        infos = []
        for index, info in enumerate(self._closed):
            name = f"data-{index:05d}-of-{len(self._closed):05d}.parquet"
            os.replace(self._folder / info.name, self._folder / name)
            infos.append(replace(info, name=name))
        return tuple(infos)

    def __enter__(self) -> DatasetWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of files and threads."""
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
        self._thread.shutdown()

    def _flush(self) -> None:
        """Write the waiting rows as one row group, into the next shard if this one is full."""
        if self._writer is not None and self._shard_bytes + self._waiting_bytes > self._limit:
            self._close()
        # Where page ends fall depends on chunks; as one chunk the bytes depend on the rows only.
        table = pa.concat_tables(self._waiting).combine_chunks().replace_schema_metadata(self._schema.metadata)
        if self._writer is None:
            name = f"data-{len(self._closed):05d}.tmp"
            self._writer = ShardWriter(self._folder / name, self._schema, shared_images=self._shared)
        self._writer.write_table(table)
        self._images.add(count_images(table))
        self._shard_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0

    def _close(self) -> None:
        if self._writer is None:
            return
        name = f"data-{len(self._closed):05d}.tmp"
        writer, self._writer = self._writer, None
        writer.__exit__(None, None, None)
        self._closed.append(ShardInfo(name, writer.rows, writer.bytes, writer.sha256, self._images))
        self._syncing.append(self._thread.submit(_sync, self._folder / name))
        self._images, self._shard_bytes = ImageCounts(), 0


def copy_rows(
    shards: Shards,
    parts: NDArray[np.int16],
    writers: Sequence[DatasetWriter],
    report: Callable[[int], None] = lambda rows: None,
) -> None:
    """Deal the rows of a dataset out to writers, in their order.

    Args:
        shards: the dataset.
        parts: for each row the number of its writer, or ``DROPPED``.
        writers: one for each number.
        report: told how many rows more are done.
    """
    told = 0
    for start, table in row_groups(shards, wanted=parts != DROPPED):
        here = parts[start : start + table.num_rows]
        for number, writer in enumerate(writers):
            chosen = np.flatnonzero(here == number)
            if len(chosen) == table.num_rows:
                writer.write(table)
            elif len(chosen):
                writer.write(table.take(pa.array(chosen)))
        report(start + table.num_rows - told)
        told = start + table.num_rows
    report(len(parts) - told)


def write_manifest(
    folder: Path,
    command: str,
    parents: Sequence[tuple[Shards, int]],
    shards: tuple[ShardInfo, ...],
    options: dict[str, Any],
    drops: Iterable[Drop] = (),
    split: str | None = None,
) -> Manifest:
    """Write ``rejects.jsonl``, the card and, last, ``manifest.json``.

    Args:
        folder: of the new dataset.
        command: that made it.
        parents: with how many rows of each were taken.
        shards: as ``DatasetWriter.finish`` gives them.
        options: all options, resolved.
        drops: rows of the parent that are in no part.
        split: name of the part; that of the parents unless given.
    """
    import PIL

    manifests = [parent.manifest for parent, _ in parents]
    rejected: dict[str, int] = {}
    images = ImageCounts()
    for shard in shards:
        images.add(shard.images)
    write_lines(folder / REJECTS_FILE, _reject_lines(parents[0][0], drops, rejected))
    records = sum(shard.rows for shard in shards)
    dropped = sum(rejected.values())
    manifest = Manifest(
        kind=manifests[0].kind,
        source=_joined(held.source for held in manifests),
        url=_joined(held.url for held in manifests),
        licence=_joined(held.licence for held in manifests),
        config=_same(held.config for held in manifests),
        split=split or _same(held.split for held in manifests),
        revision=_same(held.revision for held in manifests),
        options=options,
        rows=RowCounts(records + dropped, records, dropped),
        rejected=rejected,
        records=records,
        images=images,
        inputs=tuple(dict.fromkeys(file for held in manifests for file in held.inputs)),
        shards=shards,
        label_names=manifests[0].label_names,
        versions={"vlmdata": vlmdata.__version__, "pyarrow": pa.__version__, "pillow": PIL.__version__},
        command=command,
        parents=tuple(
            Parent(parent.path.resolve().name, sha256_file(parent.path / MANIFEST), len(parent), taken)
            for parent, taken in parents
        ),
    )
    with replacing(folder / CARD) as temporary:
        temporary.write_text(card(manifest), encoding="utf-8")
    manifest.write(folder)
    return manifest


def derived_lines(done: Derived) -> list[str]:
    """What was made, as lines that add up."""
    manifest = done.manifest
    lines = [
        f"input    {parent.records:,} records in {parent.name}, {parent.taken:,} taken" for parent in manifest.parents
    ]
    rows = manifest.rows
    lines.append(f"rows     {rows.read:,} read = {rows.kept:,} kept + {rows.rejected:,} dropped")
    lines += [f"         {count:,} {reason}" for reason, count in manifest.rejected.items()]
    if rows.rejected:
        lines.append(f"         each with its detail in {done.out / REJECTS_FILE}")
    size = sum(shard.bytes for shard in manifest.shards)
    lines.append(f"shards   {len(manifest.shards):,} files, {size / 1e6:,.1f} MB in {done.out}")
    return lines


def _sync(path: Path) -> None:
    """See to it that a written file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _reject_lines(parent: Shards, drops: Iterable[Drop], counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Lines of ``rejects.jsonl``; a row is named by the parent's file and its number there. Reasons are counted."""
    starts = np.cumsum([0, *(shard.rows for shard in parent.manifest.shards)])
    for drop in drops:
        add_counts(counts, {drop.reason: 1})
        file = int(np.searchsorted(starts, drop.row, side="right")) - 1
        name, row = parent.files[file].name, drop.row - int(starts[file])
        yield {"id": drop.id, "file": name, "row": row, "reason": drop.reason, "detail": drop.detail}


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _same(values: Iterable[str | None]) -> str | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None
