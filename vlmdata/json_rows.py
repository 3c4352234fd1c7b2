"""Rows of JSON arrays and JSON Lines, one at a time and from any row on.

Files are never loaded whole: an array is scanned element by element. Scanning reads the bytes as Latin-1, in which
JSON has the same structure and every character is one byte, so positions are byte offsets.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vlmdata.errors import DataError, RecordError

__all__ = ["array_offsets", "array_rows", "is_lines", "line_offsets", "line_rows"]

_CHUNK = 1 << 20
_BLANK = " \t\r\n"
_BOM = b"\xef\xbb\xbf"


def is_lines(path: Path) -> bool:
    """Whether a ``.json`` file holds one object a line and not an array.

    Raises:
        DataError: it holds neither.
    """
    with path.open("rb") as file:
        start = file.read(_CHUNK).removeprefix(_BOM).lstrip()
        if start.startswith(b"["):
            return False
        first = start.splitlines()[0] if start else b""
    try:
        if isinstance(json.loads(first.decode()), dict):
            return True
    except (ValueError, RecursionError):
        pass
    found = f"begins with {bytes(start[:20])!r}" if start else "is empty"
    raise DataError(f"{path} {found}; expected a JSON array of rows ([...]) or one row a line")


def line_offsets(path: Path) -> array[int]:
    """Byte offsets of the non-blank lines, and the size of the file."""
    offsets = array("Q")
    with path.open("rb") as file:
        at = _skip_bom(file)
        for line in file:
            if line.strip():
                offsets.append(at)
            at += len(line)
        offsets.append(at)
    return offsets


def line_rows(path: Path, offset: int, count: int) -> Iterator[Any]:
    """``count`` rows from a byte offset on; a broken line is a RecordError in its place."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if count == 0:
                return
            if line.strip():
                count -= 1
                yield _parse(line)


def array_offsets(path: Path) -> array[int]:
    """Byte offsets of the elements of a JSON array, and where the last one ends.

    Raises:
        DataError: the file is not one JSON array.
    """
    offsets, end = array("Q"), 0
    with path.open("rb") as file:
        for start, stop, _ in _elements(file, path, None):
            offsets.append(start)
            end = stop
    offsets.append(end)
    return offsets


def array_rows(path: Path, offset: int, count: int) -> Iterator[Any]:
    """``count`` elements of a JSON array from the byte offset of one on."""
    with path.open("rb") as file:
        if count:
            for taken, (_, _, element) in enumerate(_elements(file, path, offset), 1):
                yield _parse(element)
                if taken == count:
                    return


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        return RecordError("not_json", f"{type(error).__name__}: {error}; begins with {data[:60]!r}", data)


def _skip_bom(file: BinaryIO) -> int:
    length = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(length)
    return length


class _Scanner:
    """A window over a file's text that grows while an element does not end in it."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        file.seek(start)
        self.file, self.base, self.text, self.at, self.ended = file, start, "", 0, False

    def more(self) -> bool:
        """Read on, twice as much as is waiting; False at the end of the file."""
        self.text = self.text[self.at :]
        self.base += self.at
        self.at = 0
        data = self.file.read(max(_CHUNK, len(self.text)))
        self.text += data.decode("latin-1")
        self.ended = not data
        return not self.ended

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANK:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def element(self) -> int:
        """The end of the JSON value that starts here, as an index into ``text``; -1 if there is none."""
        decoder = json.JSONDecoder(parse_int=float)  # an int of thousands of digits is the row's fault, not the file's
        while True:
            try:
                _, end = decoder.raw_decode(self.text, self.at)
            except RecursionError:
                return -1
            except json.JSONDecodeError:
                if not self.more():
                    return -1
                continue
            # A number at the edge of the window may go on behind it: "0." reads as 0 until the next digit is there.
            if self.ended or self.text[end : end + 9].lstrip("0123456789.eE+-"):
                return end
            self.more()


def _elements(file: BinaryIO, path: Path, offset: int | None) -> Iterator[tuple[int, int, bytes]]:
    """Elements of an array as (start, end, bytes), from the array's start or from an element's offset on."""
    scan = _Scanner(file, _skip_bom(file) if offset is None else offset)
    if offset is None:
        if scan.peek() != "[":
            raise DataError(f"{path} is not a JSON array of rows")
        scan.at += 1
        if scan.peek() == "]":
            _check_end(scan, path)
            return
    while True:
        scan.peek()
        end = scan.element()
        if end < 0:
            raise DataError(_broken(path, scan))
        yield scan.base + scan.at, scan.base + end, scan.text[scan.at : end].encode("latin-1")
        scan.at = end
        following = scan.peek()
        if following == "]":
            _check_end(scan, path)
            return
        if following != ",":
            raise DataError(_broken(path, scan))
        scan.at += 1


def _check_end(scan: _Scanner, path: Path) -> None:
    scan.at += 1
    if scan.peek():
        raise DataError(_broken(path, scan))


def _broken(path: Path, scan: _Scanner) -> str:
    at = scan.base + scan.at
    shown = scan.text[scan.at : scan.at + 40].encode("latin-1")
    where = f"at byte {at}, near {shown!r}" if shown else "it ends too early"
    return f"{path} is not valid JSON: {where}; repair it, or write one row a line (.jsonl), where rows fail alone"
