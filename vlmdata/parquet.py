"""Writing Parquet as this project writes it: row groups of limited size, hashed as it goes, a thread behind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.columns import to_batch

__all__ = ["ROW_GROUP_BYTES", "RowWriter"]

ROW_GROUP_BYTES = 16 << 20
"""A row group is closed when its images and texts reach this size, so readers need no more memory than that."""

_ROW_GROUP_ROWS = 20_000
_SETTLE_BYTES = 8 << 20


class RowWriter:
    """Writes rows to one Parquet file. The same rows give the same bytes.

    One row group is written in a thread while the next is being collected.

    Attributes:
        rows: written so far.
        sha256: of the whole file, once it is closed.
        bytes: size of the file, once it is closed.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, encoded: Sequence[str] = (), statistics: str = "id") -> None:
        """Open the file.

        Args:
            path: the file to write.
            schema: of the rows.
            encoded: column paths (``images.list.element.bytes``) of data that is compressed already.
            statistics: the one column that gets minima and maxima; those of images would put whole ones into the
                footer.
        """
        leaves = [path for field in schema for path in _leaf_paths(field.name, field.type)]
        plain = [leaf for leaf in leaves if leaf not in encoded]
        self._schema = schema
        self._waiting: list[Mapping[str, Any]] = []
        self._size = 0
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parquet")
        self._file = _HashedFile(path)
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression={leaf: "ZSTD" if leaf in plain else "NONE" for leaf in leaves},
            compression_level=dict.fromkeys(plain, 1),
            use_dictionary=plain,
            write_statistics=[statistics],
        )
        self.rows = 0
        self.sha256 = ""
        self.bytes = 0

    def write(self, row: Mapping[str, Any], size: int) -> None:
        """Add one row of about ``size`` bytes."""
        full = self._size + size > ROW_GROUP_BYTES or len(self._waiting) == _ROW_GROUP_ROWS
        if self._waiting and full:
            self._flush()
        self._waiting.append(row)
        self._size += size
        self.rows += 1

    def write_table(self, table: pa.Table) -> None:
        """Add rows that are Arrow already, as one row group."""
        self._flush()
        self._hand_over(table)
        self.rows += table.num_rows

    def _flush(self) -> None:
        if self._waiting:
            self._hand_over(self._waiting)
            self._waiting, self._size = [], 0

    def _hand_over(self, rows: list[Mapping[str, Any]] | pa.Table) -> None:
        self._settle()
        self._pending = self._thread.submit(self._write, rows)

    def _write(self, rows: list[Mapping[str, Any]] | pa.Table) -> None:
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([to_batch(rows, self._schema)])
        self._writer.write_table(table)
        self._file.settle()

    def _settle(self) -> None:
        """Wait for the row group that is being written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last row group and the footer."""
        try:
            if error is None:
                self._flush()
                self._settle()
                self._writer.close()
                self.sha256, self.bytes = self._file.digest.hexdigest(), self._file.size
        finally:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._file.close()
            self._writer.close()


class _HashedFile:
    """A file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.digest = hashlib.sha256()
        self.size = self._settled = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view and not self.closed:  # what a writer that is given up has left to say goes nowhere
            view = view[self._file.write(view) :]
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def settle(self) -> None:
        """Have the disk begin with what is written, while the next rows are made, so that little is left for the end.

        The advice starts the writing without waiting for it; pages that are not written yet stay in memory.
        """
        if self.size - self._settled >= _SETTLE_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), self._settled, self.size - self._settled, os.POSIX_FADV_DONTNEED)
            self._settled = self.size

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self.closed = True
        self._file.close()


def _leaf_paths(name: str, kind: pa.DataType) -> Iterator[str]:
    """The Parquet column paths of a field."""
    if pa.types.is_list(kind):
        yield from _leaf_paths(f"{name}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for part in kind:
            yield from _leaf_paths(f"{name}.{part.name}", part.type)
    else:
        yield name
