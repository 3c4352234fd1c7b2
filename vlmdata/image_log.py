"""The image log: what happened to every image, as Parquet beside the shards (``images/`` and the shard's name)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmdata.images import StoredImage
from vlmdata.manifest import ImageCounts, add_counts
from vlmdata.parquet import RowWriter

__all__ = ["IMAGES", "LOG_SCHEMA", "count_image", "log_row", "open_log"]

IMAGES = "images"
"""Folder of the image logs in a dataset."""

_STRINGS, _LONGS, _INTS = pa.string(), pa.int64(), pa.int32()
LOG_SCHEMA = pa.schema(
    [
        ("id", _STRINGS),
        ("image", _INTS),
        ("action", _STRINGS),
        ("why", pa.list_(_STRINGS)),
        ("sha256_before", _STRINGS),
        ("sha256_after", _STRINGS),
        ("bytes_before", _LONGS),
        ("bytes_after", _LONGS),
        ("format_before", _STRINGS),
        ("format_after", _STRINGS),
        ("width_before", _INTS),
        ("height_before", _INTS),
        ("width_after", _INTS),
        ("height_after", _INTS),
    ]
)
"""``id`` is the raw row's (``file:row``), ``image`` the place among its distinct images; the other columns are those
of ``vlmdata.images.StoredImage``. A row's images are logged once, however many records share them."""

_ROW_BYTES = 300


def open_log(path: Path) -> RowWriter:
    """A writer for the log of one shard; ``write(row, size)`` takes what ``log_row`` gives."""
    return RowWriter(path, LOG_SCHEMA)


def log_row(row_id: str, number: int, stored: StoredImage) -> tuple[dict[str, Any], int]:
    """One image as a log row, and about how many bytes that is."""
    before, after = stored.before, stored.after
    row = {
        "id": row_id,
        "image": number,
        "action": stored.action,
        "why": stored.changes,
        "sha256_before": before.sha256,
        "sha256_after": after.sha256,
        "bytes_before": before.bytes,
        "bytes_after": after.bytes,
        "format_before": before.format,
        "format_after": after.format,
        "width_before": before.width,
        "height_before": before.height,
        "width_after": after.width,
        "height_after": after.height,
    }
    return row, _ROW_BYTES


def count_image(counts: ImageCounts, stored: StoredImage) -> None:
    """Add one image to the counts."""
    before, after, changes = stored.before, stored.after, stored.changes
    counts.count += 1
    counts.bytes_in += before.bytes
    counts.bytes_out += after.bytes
    counts.widest = max(counts.widest, after.width)
    counts.highest = max(counts.highest, after.height)
    add_counts(counts.formats, {after.format: 1})
    if not changes:
        counts.passed += 1
        return
    counts.reencoded += 1
    counts.rotated += "orientation" in changes
    counts.composited += "alpha" in changes
    counts.resized += "scale" in changes
    counts.small_decodes += stored.small_decode is True
    counts.small_decodes_declined += stored.small_decode is False
    add_counts(counts.changes, dict.fromkeys(changes, 1))
