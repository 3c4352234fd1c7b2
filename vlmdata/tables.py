"""The rows of converted datasets as Arrow tables: reading them by row group, what they weigh, how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlmdata.errors import DataError
from vlmdata.manifest import ImageCounts, add_counts
from vlmdata.shards import Shards, shard_schema

__all__ = ["column", "count_images", "images_compressed", "row_bytes", "row_groups"]

_IMAGE_BYTES = "images.list.element.bytes"
_FORMATS = {b"\xff\xd8\xff": "JPEG", b"\x89PN": "PNG", b"RIF": "WEBP"}
_TEXTS = ("messages", "prompt", "chosen", "rejected")


def row_groups(
    shards: Shards, columns: Sequence[str] | None = None, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """The row groups of a dataset with the number of their first row; the next one is read meanwhile.

    Args:
        shards: the dataset.
        columns: which columns to read; all unless given.
        wanted: for each row, whether it is needed; groups without such a row are passed over.

    Raises:
        DataError: a file has not the columns its manifest stands for, or cannot be read.
    """
    schema = shard_schema(shards.kind, shards.manifest.label_names)
    start = 0
    for file in shards.files:
        # The thread ends before its file is closed, also when the caller wants no more.
        with _open(file, schema) as parquet, ThreadPoolExecutor(1) as reader:
            waiting: tuple[int, Future[pa.Table]] | None = None
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if rows and (wanted is None or wanted[start : start + rows].any()):
                    following = (start, reader.submit(_read, parquet, file, group, columns))
                    if waiting is not None:
                        yield waiting[0], waiting[1].result()
                    waiting = following
                start += rows
            if waiting is not None:
                yield waiting[0], waiting[1].result()


def row_bytes(table: pa.Table) -> NDArray[np.int64]:
    """Bytes of the images and texts of each row."""
    total = np.zeros(table.num_rows, np.int64)
    if not table.num_rows:
        return total
    images = column(table, "images")
    total += _list_sums(images, _lengths(pc.struct_field(images.flatten(), "bytes")))
    total += _lengths(column(table, "meta"))
    for name in _TEXTS:
        if name in table.column_names:
            messages = column(table, name)
            contents = pc.struct_field(messages.flatten(), "content")
            texts = _lengths(pc.struct_field(contents.flatten(), "text"))
            total += _list_sums(messages, _list_sums(contents, texts))
    return total


def count_images(table: pa.Table) -> ImageCounts:
    """What the images of a table are."""
    data = pc.struct_field(column(table, "images").flatten(), "bytes")
    sizes = column(table, "image_size").flatten()
    counts = ImageCounts(count=len(data), bytes_out=int(_lengths(data).sum()))
    for found in pc.value_counts(pc.binary_slice(data, 0, 3)).to_pylist():
        add_counts(counts.formats, {_FORMATS.get(found["values"], "other"): found["counts"]})
    if len(sizes):
        counts.widest = pc.max(pc.struct_field(sizes, "width")).as_py()
        counts.highest = pc.max(pc.struct_field(sizes, "height")).as_py()
    return counts


def images_compressed(shards: Shards) -> bool:
    """Whether the images are compressed once more, as where neighbouring rows share them."""
    with _open(shards.files[0], shard_schema(shards.kind, shards.manifest.label_names)) as parquet:
        columns = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        found = parquet.metadata.row_group(0).column(columns.index(_IMAGE_BYTES))
        return bool(found.compression != "UNCOMPRESSED")


def column(table: pa.Table, name: str) -> pa.Array:
    """One column as one array."""
    found = table.column(name)
    return found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()


def _lengths(values: pa.Array) -> NDArray[np.int64]:
    found: NDArray[np.int64] = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    return found.astype(np.int64)


def _list_sums(lists: pa.Array, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of flat values over the lists they came from."""
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    ends = np.cumsum(counts)
    found: NDArray[np.int64] = sums[ends] - sums[ends - counts]
    return found


def _read(parquet: pq.ParquetFile, file: Path, group: int, columns: Sequence[str] | None) -> pa.Table:
    try:
        return parquet.read_row_group(group, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:120]
    return DataError(f"{file} cannot be read ({reason}); vlmdata validate tells more")


def _open(file: Path, schema: pa.Schema) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from None
    if not parquet.schema_arrow.equals(schema):
        parquet.close()
        raise DataError(f"{file} has other columns than its manifest stands for; vlmdata validate tells more")
    return parquet
