"""Rows of CSV and TSV files, one at a time and from any row on.

Cells stay the text they are; an empty one, or one that the line lacks, is null. Only the rows that are asked for are
held, and a line that cannot be used is that row's fault alone, with its bytes.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vlmdata.errors import DataError, RecordError

__all__ = ["header", "row_offsets", "rows"]

_BOM = b"\xef\xbb\xbf"
_TABS = (".tsv", ".tab")


def header(path: Path) -> tuple[str, ...]:
    """The names in the first line.

    Raises:
        DataError: there are none, or they are blank, repeated or not UTF-8.
    """
    with path.open("rb") as file:
        _, cells, _ = next(_records(file, path), (0, [], b""))
    names = tuple(cell.strip() for cell in cells)
    if not names:
        raise DataError(f"{path} is empty; expected a header line of column names")
    if _surrogates(cells):
        raise DataError(f"{path} is no table in UTF-8; save it as UTF-8")
    if "" in names:
        raise DataError(f"{path} has a column without a name in its header line: {','.join(names):.120}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has the column {repeated[0]!r} twice in its header line; give each its own name")
    return names


def row_offsets(path: Path) -> array[int]:
    """Byte offsets of the rows below the header, and where the last one ends.

    Raises:
        DataError: the file is no table.
    """
    offsets = array("Q")
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        for at, _, _ in _records(file, path):
            offsets.append(at)
    offsets.append(end)
    return offsets[1:] if len(offsets) > 1 else offsets


def rows(path: Path, offset: int, count: int) -> Iterator[dict[str, str | None] | RecordError]:
    """``count`` rows from the byte offset of one on; a line that cannot be used is a RecordError in its place.

    Raises:
        DataError: the file is no table.
    """
    if not count:
        return
    names = header(path)
    with path.open("rb") as file:
        file.seek(offset)
        for taken, (_, cells, raw) in enumerate(_records(file, path), 1):
            yield _row(names, cells, raw)
            if taken == count:
                return


def _row(names: tuple[str, ...], cells: list[str], raw: bytes) -> dict[str, str | None] | RecordError:
    if any(cells[len(names) :]):  # empty ones more are what a comma at the end of each line leaves
        return RecordError("wrong_fields", f"{len(cells)} cells, the header has {len(names)} names", raw)
    if _surrogates(cells):
        return RecordError("bad_text", f"the line is not UTF-8; begins with {raw[:60]!r}", raw)
    cells += [""] * (len(names) - len(cells))
    return {name: cell or None for name, cell in zip(names, cells, strict=False)}


def _surrogates(cells: list[str]) -> bool:
    """Whether a cell holds bytes that were no UTF-8, as ``surrogateescape`` keeps them."""
    return any("\udc80" <= character <= "\udcff" for cell in cells if not cell.isascii() for character in cell)


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[int, list[str], bytes]]:
    """The non-blank records as (byte offset, cells, bytes); a cell in quotes may hold line ends."""
    at = file.tell()
    if at == 0:
        at = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(at)
    read: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in file:
            read.append(line)
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), delimiter="\t" if path.suffix.lower() in _TABS else ",")
    try:
        for cells in reader:
            raw = b"".join(read)
            read.clear()
            if raw.strip(b" \r\n"):
                yield at, cells, raw
            at += len(raw)
    except csv.Error as error:
        raise DataError(
            f"{path} is no table: {error}, in the record at byte {at}; a quote that is never closed, or not CSV at all"
        ) from None
