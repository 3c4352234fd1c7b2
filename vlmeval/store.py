"""The files of an evaluation folder: written atomically, appended durably, never overwritten unasked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vlmdata.atomic import replacing
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmeval.task import Response

__all__ = [
    "FILES",
    "Log",
    "REPORT",
    "RESPONSES",
    "SCORES",
    "SETUP",
    "answered",
    "claim",
    "read_json",
    "read_rows",
    "row",
    "start",
    "write",
    "write_json",
    "write_rows",
]

RESPONSES = "responses.jsonl"
SETUP = "run.json"
SCORES = "scores.jsonl"
REPORT = "report.json"
FILES = (RESPONSES, SETUP, SCORES, REPORT, "report.md", "report.html")


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
    if found and not (resume or overwrite):
        raise OutputExistsError(
            f"{folder} already holds an evaluation ({', '.join(found)}): go on with it with --resume, or replace it "
            "with --overwrite"
        )


def start(folder: Path, *, fresh: bool) -> None:
    """Make the folder; a fresh start removes the evaluation that is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES if fresh else ():
        (folder / name).unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


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


def row(response: Response) -> dict[str, Any]:
    """One row of ``responses.jsonl``."""
    detail = {"detail": dict(response.detail)} if response.detail else {}
    return {"id": response.id, "response": response.text, **detail}


def answered(path: Path) -> tuple[list[Response], int]:
    """The answers in ``responses.jsonl``, and how many bytes they take.

    A line torn by a kill is not an answer and not counted: its item will be asked again.

    Raises:
        DataError: a whole line is not an answer.
    """
    raw = path.read_bytes() if path.is_file() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    found = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            said = json.loads(line)
            found.append(Response(said["id"], said["response"], said.get("detail", {})))
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}, line {number} is no answer: {line[:60]!r}; start again with --overwrite"
            ) from None
    return found, len(whole)


class Log:
    """``responses.jsonl``: answers appended batch by batch; what a batch wrote survives a kill.

    Use as a context manager; ``done`` holds the answers of this and of earlier runs.
    """

    def __init__(self, path: Path) -> None:
        """Go on after the last whole line."""
        self.done, size = answered(path)
        self._file = path.open("ab")
        if size < self._file.tell():
            self._file.truncate(size)

    def append(self, responses: Iterable[Response]) -> None:
        """Write answers and wait until the disk has them."""
        for response in responses:
            self._file.write(json.dumps(row(response), ensure_ascii=False).encode() + b"\n")
            self.done.append(response)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Log:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()
