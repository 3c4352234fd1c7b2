"""Answers as they come: appended durably, one file for each process, put in order when all have come.

One process appends to ``responses.jsonl``. Of several, process N appends to ``responses.rankN.jsonl``, so that no two
write one file; whoever goes on later, with however many processes, reads them all. What could not be answered goes to
``failures.jsonl`` (``failures.rankN.jsonl``). :func:`settle` makes ``responses.jsonl`` and ``failures.jsonl`` of them,
in the order of the items.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from vlmdata.errors import DataError
from vlmeval import store
from vlmeval.task import Item, Response

__all__ = ["Answered", "Log", "read", "row", "settle"]

_SYNC_SECONDS = 1.0
_REPLACED = "replace"
"""Half a surrogate pair cannot be written as UTF-8: it becomes a question mark, as in a responses file."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What an evaluation folder holds so far.

    Attributes:
        responses: answers by id, as they came.
        failures: what could not be answered and was not answered later, by id.
    """

    responses: Mapping[int | str, Response]
    failures: Mapping[int | str, Response]


def row(response: Response) -> dict[str, Any]:
    """One row of ``responses.jsonl``, or of ``failures.jsonl`` where there is an error."""
    if response.error is not None:
        return {"id": response.id, "error": response.error}
    detail = {"detail": dict(response.detail)} if response.detail else {}
    return {"id": response.id, "response": response.text, **detail}


def read(folder: Path) -> Answered:
    """The answers of all processes that ever wrote to the folder.

    A line torn by a kill is not an answer and not counted: its item will be asked again.

    Raises:
        DataError: a whole line is not an answer.
    """
    responses: dict[int | str, Response] = {}
    failures: dict[int | str, Response] = {}
    for path in _files(folder, store.RESPONSES):
        for said in _parsed(path, _whole(path)[0]):
            # What stands twice is one answer: a kill may come between the merge and the removal of its parts.
            responses.setdefault(said.id, said)
    for path in _files(folder, store.FAILURES):
        # What fails again fails for its latest reason.
        failures |= {said.id: said for said in _parsed(path, _whole(path)[0]) if said.id not in responses}
    return Answered(responses, failures)


def settle(folder: Path, items: Sequence[Item]) -> Answered:
    """Make one file of the answers of all processes, in the order of the items; nothing is written that is so already.

    Answers to anything else stand last.
    """
    found = read(folder)
    place = {item.id: number for number, item in enumerate(items)}
    ordered = []
    for name, rows in ((store.RESPONSES, found.responses), (store.FAILURES, found.failures)):
        answers = sorted(rows.values(), key=lambda said: place.get(said.id, len(place)))
        text = b"".join(_line(answer) for answer in answers)
        whole = folder / name
        if text and (not whole.is_file() or whole.read_bytes() != text):
            store.write_bytes(whole, text)
        elif not text:
            whole.unlink(missing_ok=True)
        ordered.append({answer.id: answer for answer in answers})
    # Only now: until both files are whole, the parts are what there is.
    for name in (store.RESPONSES, store.FAILURES):
        for path in _files(folder, name):
            if path.name != name:
                path.unlink()
    return Answered(*ordered)


class Log:
    """The answers of this process, appended batch by batch.

    What was appended survives a kill of the process at once, and a failure of the machine after a second: waiting for
    the disk at every batch would take longer than a fast server takes to answer. Use as a context manager.
    """

    def __init__(self, folder: Path, process: int | None = None) -> None:
        """Go on after the last whole line.

        Args:
            folder: the evaluation folder.
            process: the number of this process, where there are several.
        """
        names = (store.RESPONSES, store.FAILURES)
        self._paths = [folder / (name if process is None else store.part(name, process)) for name in names]
        self._files: dict[int, BinaryIO] = {}
        self._synced = time.monotonic()
        self._open(0)

    def append(self, responses: Iterable[Response]) -> None:
        """Hand answers to the system, and once a second wait until its disk has them."""
        for response in responses:
            self._open(int(response.error is not None)).write(_line(response))
        late = time.monotonic() - self._synced >= _SYNC_SECONDS
        for file in self._files.values():
            file.flush()
            if late:
                os.fsync(file.fileno())
        if late:
            self._synced = time.monotonic()

    def _open(self, which: int) -> BinaryIO:
        if which not in self._files:
            path = self._paths[which]
            _, size = _whole(path)
            file = self._files[which] = path.open("ab")
            if size < file.tell():
                file.truncate(size)
        return self._files[which]

    def __enter__(self) -> Log:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files; on a full disk what is left in their buffers is lost, and was not reported as written."""
        for file in self._files.values():
            try:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            except OSError:
                if error is None:
                    raise


def _line(response: Response) -> bytes:
    return json.dumps(row(response), ensure_ascii=False).encode(errors=_REPLACED) + b"\n"


def _files(folder: Path, name: str) -> list[Path]:
    """The file of that name first, then those of single processes."""
    parts = folder.glob(store.part(name, "*")) if folder.is_dir() else ()
    return [path for path in (folder / name, *sorted(parts)) if path.is_file()]


def _whole(path: Path) -> tuple[bytes, int]:
    """The whole lines of a file, and how many bytes they take."""
    raw = path.read_bytes() if path.is_file() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    return whole, len(whole)


def _parsed(path: Path, whole: bytes) -> list[Response]:
    found = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            said = json.loads(line)
            error = said.get("error")
            text = None if error is not None else said["response"]
            if not isinstance(said["id"], (int, str)) or not isinstance(text, (str, type(None))):
                raise TypeError
            found.append(Response(said["id"], text, said.get("detail", {}), error))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path}, line {number} is no answer: {line[:60]!r}; mend the line, or start again with --overwrite"
            ) from None
    return found
