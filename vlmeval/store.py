"""The files of an evaluation folder: written whole or not at all, never overwritten unasked."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmdata.atomic import NOT_WRITABLE, replacing
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError, VlmError

__all__ = [
    "FAILURES",
    "FILES",
    "REPORT",
    "RESPONSES",
    "SCORES",
    "SETUP",
    "THUMBNAILS",
    "claim",
    "part",
    "read_json",
    "read_rows",
    "start",
    "write",
    "write_bytes",
    "write_json",
    "write_rows",
    "writing",
]

RESPONSES = "responses.jsonl"
FAILURES = "failures.jsonl"
SETUP = "run.json"
SCORES = "scores.jsonl"
REPORT = "report.json"
THUMBNAILS = "thumbnails"
_PLACE = frozenset({errno.EIO, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR})
FILES = (RESPONSES, FAILURES, SETUP, SCORES, REPORT, "report.md", "report.html")


def part(name: str, process: int | str) -> str:
    """The name of one process's part of a file: ``responses.rank0.jsonl``."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}.rank{process}.{kind}"


@contextmanager
def writing(folder: Path, way_on: str = "") -> Iterator[None]:
    """Say in one line that the folder cannot be written to, or that its disk is full.

    Args:
        folder: what is written.
        way_on: what the user does then.

    Raises:
        ConfigError: the system says so.
    """
    try:
        yield
    except VlmError:
        raise
    except OSError as error:
        # What the block reads is another's to explain.
        named = isinstance(error.filename, (str, os.PathLike))
        elsewhere = named and not Path(error.filename).absolute().is_relative_to(folder.absolute().parent)
        if elsewhere or error.errno not in NOT_WRITABLE | _PLACE:
            raise
        raise ConfigError(f"{folder} cannot be written: {error.strerror}{way_on}") from None


def claim(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that the folder may be written; nothing is changed yet.

    Raises:
        OutputExistsError: it holds an evaluation already, and neither flag says what to do with it.
        ConfigError: both flags are given, or the path is a file.
    """
    if resume and overwrite:
        raise ConfigError("--resume keeps what is there and --overwrite removes it: give one of them")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file, expected a folder")
    found = [name for name in FILES if (folder / name).exists()]
    found += sorted(path.name for path in _parts(folder))
    if found and not (resume or overwrite):
        raise OutputExistsError(
            f"{folder} already holds an evaluation ({', '.join(found)}): go on with it with --resume, or replace it "
            "with --overwrite"
        )


def start(folder: Path, *, fresh: bool) -> None:
    """Make the folder; a fresh start removes the evaluation that is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if fresh:
        if (folder / "report.html").is_file():
            shutil.rmtree(folder / THUMBNAILS, ignore_errors=True)
        for path in (*(folder / name for name in FILES), *_parts(folder)):
            path.unlink(missing_ok=True)


def _parts(folder: Path) -> list[Path]:
    """Files of single processes."""
    if not folder.is_dir():
        return []
    return [path for name in (RESPONSES, FAILURES) for path in sorted(folder.glob(part(name, "*")))]


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, raw: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(raw)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object whole or not at all."""
    write(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines whole or not at all."""
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        MissingError: there is no such file.
        DataError: it is not a JSON object.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing: {path.parent} is no evaluation folder, or its run did not finish")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON Lines.

    Raises:
        MissingError: there is no such file.
        DataError: a line is not JSON.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing: {path.parent} is no evaluation folder, or its run did not finish")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
    return rows
