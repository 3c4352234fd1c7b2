"""Rejected rows: a line for the reader in ``rejects.jsonl``, and the whole raw row in ``rejects/`` to try it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmdata.errors import RecordError
from vlmdata.parquet import RowWriter
from vlmdata.places import open_parquet

__all__ = [
    "REJECTS",
    "REJECTS_FILE",
    "REJECTS_SCHEMA",
    "RawRow",
    "open_rejects",
    "pack_row",
    "reject_lines",
    "reject_row",
    "unpack_row",
]

REJECTS = "rejects"
"""Folder of the raw rows in a dataset; a shard without rejects has no file there."""

REJECTS_FILE = "rejects.jsonl"

REJECTS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("raw", pa.string()),
        ("blobs", pa.list_(pa.binary())),
    ]
)
"""``raw`` is the row as JSON in which ``{"$blob": n}`` stands for the n-th of ``blobs``; it is null for a row that
could not be read at all, whose bytes are the only blob."""

_LINE = ("id", "file", "row", "reason", "detail")
_DETAIL = 500  # characters; an image given as text where a path should stand is no use to the reader
_BLOB, _OBJECT = "$blob", "$object"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A rejected row that is tried again, with the name it had."""

    file: str
    number: int
    value: Any


def open_rejects(path: Path) -> RowWriter:
    """A writer for the rejects of one shard; ``write(row, size)`` takes what ``reject_row`` gives."""
    return RowWriter(path, REJECTS_SCHEMA, encoded=("blobs.list.element",))


def reject_row(file: str, number: int, error: RecordError, value: Any, detail: str) -> tuple[dict[str, Any], int]:
    """A rejected row as it is kept, and about how many bytes that is."""
    if isinstance(value, RecordError):
        raw, blobs = None, [] if error.raw is None else [error.raw]
    else:
        try:
            raw, blobs = pack_row(value)
        except RecursionError:
            raw, blobs, detail = None, [], f"{detail} (nested too deeply to be kept here)"
    row = {
        "id": f"{file}:{number}",
        "file": file,
        "row": number,
        "reason": error.reason,
        "detail": detail if len(detail) <= _DETAIL else f"{detail[:_DETAIL]} ...",
        "raw": raw,
        "blobs": blobs,
    }
    return row, len(raw or "") + sum(map(len, blobs)) + len(detail) + 200


def pack_row(value: Any) -> tuple[str, list[bytes]]:
    """A raw row as JSON and the bytes taken out of it. What is neither JSON nor bytes (a date) becomes its text."""
    blobs: list[bytes] = []

    def packed(value: Any) -> Any:
        if isinstance(value, bytes | bytearray | memoryview):
            blobs.append(bytes(value))
            return {_BLOB: len(blobs) - 1}
        if isinstance(value, Mapping):
            held = {str(name): packed(part) for name, part in value.items()}
            return {_OBJECT: held} if held.keys() & {_BLOB, _OBJECT} else held
        if isinstance(value, list | tuple):
            return [packed(part) for part in value]
        return value

    return json.dumps(packed(value), default=str), blobs


def unpack_row(raw: str | None, blobs: list[bytes]) -> Any:
    """What was packed; a RecordError for a row that could not be read and still is no JSON."""

    def unpacked(value: Any) -> Any:
        if isinstance(value, list):
            return [unpacked(part) for part in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {_BLOB}:
            return blobs[value[_BLOB]]
        if value.keys() == {_OBJECT}:
            value = value[_OBJECT]
        return {name: unpacked(part) for name, part in value.items()}

    try:
        return unpacked(json.loads(b"".join(blobs).decode() if raw is None else raw))
    except (ValueError, RecursionError) as error:
        return RecordError("not_json", f"{type(error).__name__}: {error}", b"".join(blobs))


def reject_lines(paths: Iterator[Path]) -> Iterator[dict[str, Any]]:
    """The lines of ``rejects.jsonl`` for the files of rejected rows, in order."""
    for path in paths:
        with open_parquet(path) as parquet:
            for batch in parquet.iter_batches(columns=list(_LINE)):
                yield from batch.to_pylist()
