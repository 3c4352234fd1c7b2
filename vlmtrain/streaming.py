"""Rows read from Parquet shards by number, when they are asked for: for data larger than memory and disk cache.

A stream looks like any other dataset, so workers, processes and skipping at ``--resume`` need nothing special: the
order is made of row numbers (``vlmtrain.ordering``), and what is skipped is never read. Row groups are small (shards
are written so) and come in random order; their rows are shuffled in a buffer of ``shuffle_buffer`` rows. Whoever reads
keeps the row groups of one buffer, so memory does not depend on the size of the data. The length policy is applied as
rows are read, on their texts and stored image sizes.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features

from vlmdata.errors import DataError
from vlmdata.places import is_remote, open_parquet
from vlmtrain.mixing import Rows

__all__ = ["Fitting", "Stream"]

_BUFFER = 1000
# Turns a row without its images into what the length policy adds to it, or says why it is left out.
Policy = Callable[[Mapping[str, Any]], dict[str, Any] | tuple[str, str]]


class Stream:
    """Parquet files as one sequence of numbered rows.

    Attributes:
        groups: rows of each row group, in the order they are stored.
        files: the Parquet files, in order.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str], features: Features) -> None:
        """Look at the footers of all files; no row is read.

        Args:
            files: in order.
            columns: to read.
            features: of these columns.
        """
        self.files, self.columns, self.features = list(files), list(columns), features
        # Footers come one by one from a disk, but an object store takes its time for each.
        with ThreadPoolExecutor(16 if is_remote(self.files[0]) else 1) as pool:
            sizes = list(pool.map(_group_sizes, self.files))
        self.groups = [rows for found in sizes for rows in found]
        self._homes = [(number, group) for number, found in enumerate(sizes) for group in range(len(found))]
        self._ends = np.cumsum(self.groups)
        self._kept: OrderedDict[tuple[int, bool], pa.Table] = OrderedDict()
        self._process = os.getpid()
        self.reads = 0
        self.buffer = _BUFFER
        self.parts = 1

    def __len__(self) -> int:
        """Rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def groups_of(self, first: int, count: int) -> list[int]:
        """Rows of the row groups of one dataset: ``count`` rows from ``first`` on."""
        ends = self._ends
        begin, end = np.searchsorted(ends, [first, first + count - 1], side="right")
        return self.groups[begin : end + 1]

    def rows(self) -> Dataset:
        """A dataset of these rows, read when they are asked for."""
        numbers = Dataset(pa.table({"row": pa.array(np.arange(len(self), dtype=np.int64))}))
        return numbers.with_transform(lambda batch: self.table(batch["row"]).to_pydict())

    def texts(self, rows: Rows | Sequence[int]) -> list[dict[str, Any]]:
        """Rows without their images."""
        found: list[dict[str, Any]] = self.table(rows, images=False).to_pylist()
        return found

    def digests(self) -> Iterator[list[str]]:
        """The image hashes of all rows, in order."""
        for file in self.files:
            with open_parquet(file) as parquet:
                for batch in parquet.iter_batches(columns=["image_sha256"]):
                    yield from batch.column(0).to_pylist()

    def table(self, rows: Rows | Sequence[int], *, images: bool = True) -> pa.Table:
        """Rows in the order asked for.

        Args:
            rows: their numbers.
            images: whether the images come along; they are most of what there is to read.
        """
        wanted = np.asarray(rows, np.int64)
        homes = np.searchsorted(self._ends, wanted, side="right")
        pieces, places = [], []
        for home in np.unique(homes):
            at = np.flatnonzero(homes == home)
            inside = wanted[at] - (int(self._ends[home]) - self.groups[home])
            pieces.append(self._group(int(home), images).take(pa.array(inside)))
            places.append(at)
        joined = pa.concat_tables(pieces)
        return joined.take(pa.array(np.argsort(np.concatenate(places), kind="stable")))

    def _group(self, number: int, images: bool) -> pa.Table:
        if self._process != os.getpid():
            # A worker's memory is its own; what it was forked with is the parent's to keep.
            self._kept, self._process = OrderedDict(), os.getpid()
        key = (number, images)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        file, group = self._homes[number]
        columns = [name for name in self.columns if images or name != "images"]
        with open_parquet(self.files[file]) as parquet:
            table = parquet.read_row_group(group, columns=columns)
        schema = pa.schema([self.features.arrow_schema.field(name) for name in columns])
        self._kept[key] = table.cast(schema)
        self.reads += 1
        # A buffer's rows lie in so many groups, of which the first and the last of each dataset are not full.
        limit = self.buffer + 2 * self.parts * max(self.groups)
        while sum(len(held) for (_, with_images), held in self._kept.items() if with_images == images) > limit:
            oldest = next(one for one in self._kept if one[1] == images)
            del self._kept[oldest]
        return self._kept[key]

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows that are held."""
        return {**self.__dict__, "_kept": OrderedDict()}


class Fitting:
    """The length policy on a stream: lengths for the order, texts and image scales for the batches.

    Attributes:
        dropped: row number -> id, reason and detail of each row that was left out so far.
        shrunk: numbers of the rows whose images were made smaller so far.
        seen: which rows were looked at so far.
    """

    def __init__(self, stream: Stream, policy: Policy, *, fail: bool = False) -> None:
        """Apply ``policy`` to rows of ``stream``; ``fail`` makes a row that does not fit an error."""
        self.stream, self.policy, self.fail = stream, policy, fail
        self.dropped: dict[int, tuple[str, str, str]] = {}
        self.shrunk: set[int] = set()
        self.seen = np.zeros(len(stream), bool)

    def __call__(self, rows: Rows) -> list[int | None]:
        """Lengths in tokens, None for rows that are left out.

        Raises:
            DataError: a row does not fit, and that is to be an error.
        """
        lengths: list[int | None] = []
        for number, row in zip(rows.tolist(), self.stream.texts(rows), strict=True):
            found = self.policy(row)
            if isinstance(found, tuple):
                if self.fail:
                    raise DataError(f"row {row['id']!r} does not fit ({found[0]}: {found[1]}), and on_long is fail")
                self.dropped[number] = (row["id"], *found)
                lengths.append(None)
                continue
            if found["image_scale"] < 1:
                self.shrunk.add(number)
            lengths.append(found["length"])
        self.seen[rows] = True
        return lengths

    def rows(self) -> Dataset:
        """A dataset of the stream's rows with what the policy adds to each."""
        numbers = self.stream.rows()

        def read(batch: Mapping[str, Any]) -> dict[str, list[Any]]:
            rows = self.stream.table(batch["row"]).to_pylist()
            for number, row in zip(batch["row"], rows, strict=True):
                found = self.policy({key: value for key, value in row.items() if key != "images"})
                # A row that does not fit is never asked for, but for the one that shows what columns there are.
                row |= {"row": number} if isinstance(found, tuple) else {**found, "row": number}
            names = dict.fromkeys(name for row in rows for name in row)
            return {name: [row.get(name) for row in rows] for name in names}

        return numbers.with_transform(read)


def _group_sizes(file: Path) -> list[int]:
    with open_parquet(file) as parquet:
        footer = parquet.metadata
        return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
