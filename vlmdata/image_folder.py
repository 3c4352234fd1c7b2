"""A folder of pictures as rows: subfolders are labels, text files beside the pictures are captions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import RecordError
from vlmdata.fields import printable
from vlmdata.places import files_below

__all__ = ["CAPTION_FILES", "folder_columns", "folder_labels", "folder_rows", "list_images"]

CAPTION_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.jsonl", "captions.csv")
"""Files of ``file_name`` and ``text`` that say which pictures a folder holds, first found first."""

_SUFFIXES = frozenset(".jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .ppm .pgm .avif .jp2".split())


def list_images(folder: Path) -> list[str]:
    """Paths of all pictures below a folder, relative to it, ``/`` between parts, sorted; hidden ones are left out."""
    return [path for path in files_below(folder) if os.path.splitext(path)[1].lower() in _SUFFIXES]


def folder_columns(folder: Path, images: Sequence[str]) -> frozenset[str]:
    """What the rows of the folder have: ``image``, and ``label`` or ``text``."""
    columns = {"image"}
    if any("/" in path for path in images):
        columns.add("label")
    if any((folder / path).with_suffix(".txt").is_file() for path in images):
        columns.add("text")
    return frozenset(columns)


def folder_labels(images: Sequence[str]) -> tuple[str, ...]:
    """The class names: the folders that pictures lie in, sorted."""
    return tuple(sorted({_label(path) for path in images if "/" in path}))


def _label(path: str) -> str:
    return printable(path.split("/")[-2])


def _row(folder: Path, path: str, columns: frozenset[str]) -> dict[str, Any] | RecordError:
    """One picture as a row; a caption that cannot be read is a fault of the row."""
    row: dict[str, Any] = {"image": {"bytes": None, "path": path}}
    if "label" in columns:
        row["label"] = _label(path) if "/" in path else None
    if "text" in columns:
        caption = (folder / path).with_suffix(".txt")
        try:
            row["text"] = caption.read_text(encoding="utf-8").strip() if caption.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            return RecordError("bad_text", f"{caption.name}: {error}")
    return row


def folder_rows(folder: Path, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Any]]:
    """The rows of the pictures in ``[start, stop)`` ranges, with their numbers."""
    images = list_images(folder)
    columns = folder_columns(folder, images)
    return ((number, _row(folder, images[number], columns)) for span in ranges for number in range(*span))
