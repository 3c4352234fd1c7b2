"""Raw files to rows: Parquet, Arrow, JSON, JSON Lines, CSV, TSV and image folders; streamed, from any row on."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata import delimited, image_folder, json_rows
from vlmdata.ahead import ahead
from vlmdata.errors import DataError, RecordError, VlmError
from vlmdata.hub import open_remote
from vlmdata.places import is_remote, open_parquet, place
from vlmdata.rejects import RawRow, unpack_row

__all__ = ["Contents", "Format", "Input", "Piece", "inspect", "read"]

Format = Literal["parquet", "arrow", "json", "jsonl", "csv", "folder", "rejects"]

_BATCH_BYTES = 4 << 20
_REMOTE_BUFFER_BYTES = 4 << 20
_IMAGE_ALLOWANCE = 128 << 10
_LOOK = 1000


@dataclass(frozen=True, slots=True)
class Input:
    """One raw file, or a folder of pictures.

    Attributes:
        path: where it is: a local path, or ``hf://`` for a file on the hub.
        name: what it is called in row ids and in the manifest.
        format: how it is read.
        bytes: its size.
        images: folder that image paths in its rows start from; None where images should come as bytes.
    """

    path: str
    name: str
    format: Format
    bytes: int
    images: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a raw file holds, known without reading its images.

    Attributes:
        segments: ``(rows, bytes)`` of each part in order; bytes are estimates where images lie outside.
        columns: field names; for JSON those of the first rows, one set each.
        label_names: class names, where the file tells them.
        offsets: byte offset of each row, for JSON.
    """

    segments: tuple[tuple[int, int], ...]
    columns: tuple[frozenset[str], ...]
    label_names: tuple[str, ...] = ()
    offsets: array[int] | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(rows for rows, _ in self.segments)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``start`` to ``stop`` of an input; ``offset`` is the byte where row ``start`` begins, for JSON."""

    input: int
    start: int
    stop: int
    offset: int = 0


def inspect(source: Input) -> Contents:
    """What the file holds.

    Raises:
        DataError: it cannot be read as what it seems to be.
    """
    with _readable(source):
        match source.format:
            case "parquet" | "rejects":
                return _inspect_parquet(source)
            case "arrow":
                return _inspect_arrow(source)
            case "json" | "jsonl":
                return _inspect_json(source)
            case "csv":
                return _inspect_csv(source)
            case "folder":
                folder = place(source.path)
                images = image_folder.list_images(folder)
                size = sum((folder / path).stat().st_size for path in images)
                columns = image_folder.folder_columns(folder, images)
                return Contents(((len(images), size),), (columns,), image_folder.folder_labels(images))


def read(source: Input, pieces: Sequence[Piece]) -> Iterator[tuple[int, Any]]:
    """Rows of pieces of one file as (number in the file, row), in one pass over the file.

    Args:
        source: the file.
        pieces: what to read of it, ascending.

    Yields:
        Numbers and rows; a row that cannot be read is a RecordError in its place.

    Raises:
        DataError: the file cannot be read on.
    """
    path = place(source.path)
    ranges = [(piece.start, piece.stop) for piece in pieces]
    with _readable(source):
        rows: Iterator[tuple[int, Any]]
        match source.format:
            case "parquet":
                rows = _parquet_rows(source, ranges)
            case "rejects":
                rows = ((number, _raw_row(row)) for number, row in _parquet_rows(source, ranges))
            case "arrow":
                rows = _arrow_rows(source, ranges)
            case "json" | "jsonl" | "csv":
                rows = _text_rows(source, pieces)
            case "folder":
                rows = image_folder.folder_rows(path, ranges)
        is_captions = path.name in image_folder.CAPTION_FILES
        for number, row in rows:
            yield number, _caption_row(row) if is_captions else row


@contextmanager
def _readable(source: Input) -> Iterator[None]:
    """Turn what goes wrong with a file as a whole into one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, VlmError):
            raise
        problem = " ".join(str(error).split())[:200]
        raise DataError(f"{source.path} cannot be read as {source.format}: {problem}; {_advice(source)}") from None


def _advice(source: Input) -> str:
    if source.path.startswith("hf://"):
        return "if the connection was lost, run it again with --resume"
    if not place(source.path).is_file():
        return "it is no longer there"
    with place(source.path).open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the file itself: run git lfs pull"
    if not start:
        return "it is empty: get it again"
    return "get it again, or name the file by what it is (.parquet, .arrow, .json, .jsonl)"


@contextmanager
def _parquet(source: Input) -> Iterator[pq.ParquetFile]:
    if source.path.startswith("hf://"):
        with open_remote(source.path) as remote, open_parquet(remote, buffer_size=_REMOTE_BUFFER_BYTES) as file:
            yield file
    else:
        with open_parquet(place(source.path)) as file:
            yield file


def _inspect_parquet(source: Input) -> Contents:
    with _parquet(source) as file:
        meta = file.metadata
        groups = (meta.row_group(index) for index in range(meta.num_row_groups))
        segments = tuple((group.num_rows, group.total_byte_size) for group in groups)
        schema = file.schema_arrow
    return Contents(segments, (frozenset(schema.names),), _label_names(schema))


def _parquet_rows(source: Input, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Any]]:
    with _parquet(source) as file, closing(ahead(_wanted_batches(file, ranges))) as batches:
        for first, batch in batches:
            yield from _pick(iter((batch,)), first, ranges)


def _wanted_batches(
    file: pq.ParquetFile, ranges: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches that hold rows of the ranges, each with the number of its first row."""
    first = 0
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        wanted = _clip(ranges, first, first + group.num_rows)
        if wanted:
            size = max(1, min(1000, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
            at = first
            for batch in file.iter_batches(batch_size=size, row_groups=[index]):
                if _clip(wanted, at, at + batch.num_rows):
                    yield at, batch
                at += batch.num_rows
                if at >= wanted[-1][1]:
                    break
        first += group.num_rows


def _raw_row(row: Mapping[str, Any]) -> RawRow:
    """A row of a file of rejects: the raw row, under the name it had."""
    value = unpack_row(row["raw"], row["blobs"])
    if isinstance(value, RecordError):  # no line of JSON, or none of a table: as it was
        value = RecordError(row["reason"], row["detail"], value.raw)
    return RawRow(row["file"], row["row"], value)


def _clip(ranges: Sequence[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """What of the ranges lies in rows ``first`` to ``last``."""
    return [(max(start, first), min(stop, last)) for start, stop in ranges if start < last and stop > first]


def _pick(
    batches: Iterator[pa.RecordBatch], first: int, ranges: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Any]]:
    """The rows of the ranges out of batches that begin with row ``first``."""
    for batch in batches:
        # A few rows at a time, so that no more than those are Python values at once.
        size = max(1, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes))
        for start, stop in _clip(ranges, first, first + batch.num_rows):
            for at in range(start, stop, size):
                rows = batch.slice(at - first, min(size, stop - at))
                try:
                    held = rows.to_pylist()
                except (ValueError, OverflowError):
                    held = [{name: _value(rows[name][row]) for name in rows.schema.names} for row in range(len(rows))]
                yield from enumerate(held, at)
        first += batch.num_rows
        if first >= ranges[-1][1]:
            return


def _value(cell: Any) -> Any:
    """A value Python may have no object for: text that is not UTF-8 has surrogates, a date out of range is a number."""
    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        if isinstance(cell, pa.StructScalar):
            return {name: _value(cell[name]) for name in cell}
        if isinstance(cell, pa.ListScalar):
            return [_value(part) for part in cell.values]
        if isinstance(cell, pa.StringScalar):
            return cell.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
        return _value(cell.value) if isinstance(cell.value, pa.Scalar) else cell.value


@contextmanager
def _arrow(source: Input) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    path = place(source.path)
    with pa.PythonFile(path.open("rb"), mode="r") if is_remote(path) else pa.memory_map(source.path) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        if is_file:
            table = pa.ipc.open_file(mapped)
            yield table.schema, (table.get_batch(index) for index in range(table.num_record_batches))
        else:
            stream = pa.ipc.open_stream(mapped)
            yield stream.schema, iter(stream)


def _inspect_arrow(source: Input) -> Contents:
    with _arrow(source) as (schema, batches):
        segments = tuple((batch.num_rows, batch.nbytes) for batch in batches)
        return Contents(segments, (frozenset(schema.names),), _label_names(schema))


def _arrow_rows(source: Input, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Any]]:
    with _arrow(source) as (_, batches):
        yield from _pick(batches, 0, ranges)


def _inspect_json(source: Input) -> Contents:
    path = place(source.path)
    offsets = json_rows.line_offsets(path) if source.format == "jsonl" else json_rows.array_offsets(path)
    count = len(offsets) - 1
    first = json_rows.line_rows if source.format == "jsonl" else json_rows.array_rows
    rows: Iterator[Any] = first(path, offsets[0], min(count, _LOOK))
    if path.name in image_folder.CAPTION_FILES:
        rows = map(_caption_row, rows)
    size = offsets[-1] - offsets[0] + count * _IMAGE_ALLOWANCE
    return Contents(((count, size),), _columns(list(rows)), offsets=offsets)


def _inspect_csv(source: Input) -> Contents:
    path = place(source.path)
    names = dict.fromkeys(delimited.header(path))
    columns = _columns([_caption_row(names) if path.name in image_folder.CAPTION_FILES else names])
    offsets = delimited.row_offsets(path)
    count = len(offsets) - 1
    return Contents(((count, offsets[-1] - offsets[0] + count * _IMAGE_ALLOWANCE),), columns, offsets=offsets)


def _text_rows(source: Input, pieces: Sequence[Piece]) -> Iterator[tuple[int, Any]]:
    rows_of = {"json": json_rows.array_rows, "jsonl": json_rows.line_rows, "csv": delimited.rows}
    for piece in pieces:
        rows = rows_of[source.format](place(source.path), piece.offset, piece.stop - piece.start)
        yield from enumerate(rows, piece.start)


def _caption_row(row: Any) -> Any:
    """A row of a caption file: its ``file_name`` is the image."""
    if isinstance(row, Mapping) and "file_name" in row and "image" not in row:
        return {"image": row["file_name"], **{name: value for name, value in row.items() if name != "file_name"}}
    return row


def _columns(rows: Sequence[Any]) -> tuple[frozenset[str], ...]:
    found = dict.fromkeys(frozenset(map(str, row)) for row in rows if isinstance(row, Mapping))
    return tuple(found)


def _label_names(schema: pa.Schema) -> tuple[str, ...]:
    """Class names of a ``label`` column, from the features that ``datasets`` leaves in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
