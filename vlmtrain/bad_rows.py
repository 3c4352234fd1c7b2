"""Rows that cannot be read, found while training: another row takes their place, and they are named and counted.

Stored sizes and texts are checked before training (``vlmtrain.lengths``); that an image is cut short, or that a
processor fails on it, shows only when a worker reads it. Such a row must not end a run at step N. Its place in the
batch goes to the next row of the same dataset that can be read: batches keep their size, which the other processes
of a run rely on, and the result depends on neither workers nor processes nor on where a run was resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmdata.atomic import write_lines
from vlmdata.errors import ConfigError, DataError, DependencyError
from vlmtrain.mixing import Rows

__all__ = ["BAD", "Ledger", "Tolerant"]

BAD = "bad_rows"
"""Key of a batch: (place in the batch, row number, id, reason) of each row whose place another row took."""

Batch = dict[str, Any]
Collate = Callable[[Sequence[Mapping[str, Any]]], Batch]
_PATIENCE = 1000
_TOLD = 3
# These are not about a row.
_OTHERS = (ConfigError, DependencyError, MemoryError)


class Tolerant:
    """A collator that gets by without the rows another one cannot read."""

    def __init__(self, collate: Collate, sources: Sequence[tuple[Any, Rows | None]]) -> None:
        """Wrap ``collate``.

        Args:
            collate: rows to a batch.
            sources: datasets and the ``row`` numbers of their rows, ascending; None where row i has number i.
        """
        self.collate, self.sources = collate, sources
        self._known: dict[int, str] = {}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The batch of these rows, or of those that stand for them.

        Raises:
            DataError: a thousand rows on end cannot be read.
        """
        try:
            return self.collate(rows)
        except _OTHERS:
            raise
        except Exception as error:
            reasons = {place: why for place, row in enumerate(rows) if (why := self._fault(row)) is not None}
            if not reasons:
                # The fault is in how they stand together.
                raise error from None
            taken = [self._next(row, reasons[place]) if place in reasons else row for place, row in enumerate(rows)]
            batch = self.collate(taken)
            batch[BAD] = [(p, int(rows[p]["row"]), str(rows[p]["id"]), why) for p, why in sorted(reasons.items())]
            return batch

    def _fault(self, row: Mapping[str, Any]) -> str | None:
        number = int(row["row"])
        if number in self._known:
            return self._known[number]
        try:
            self.collate([row])
        except _OTHERS:
            raise
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            self._known[number] = said
            return said
        return None

    def _next(self, row: Mapping[str, Any], why: str) -> Mapping[str, Any]:
        dataset, place = self._find(int(row["row"]))
        for step in range(1, min(len(dataset), _PATIENCE)):
            found: Mapping[str, Any] = dataset[(place + step) % len(dataset)]
            # A streamed row without a length is left out; what was added to the row goes on to the other one.
            usable = "length" in found or "length" not in row
            other = {**{key: row[key] for key in row.keys() - found.keys()}, **found}
            if usable and self._fault(other) is None:
                return other
        tried = min(len(dataset), _PATIENCE)
        raise DataError(f"{tried:,} rows on end cannot be read, from {row['id']!r} on: {why}")

    def _find(self, number: int) -> tuple[Any, int]:
        for dataset, numbers in self.sources:
            if numbers is None and number < len(dataset):
                return dataset, number
            place = int(np.searchsorted(numbers, number)) if numbers is not None else 0
            if numbers is not None and place < len(numbers) and numbers[place] == number:
                return dataset, place
        raise DataError(f"row {number} is of no dataset of this run")


class Ledger:
    """The bad rows of a run, in memory and in a file.

    Each process appends what its own batches met when they are used, not when they are read ahead. The file is put in
    order at the end, so that it does not depend on their number.
    """

    def __init__(self, file: Path, say: Callable[[str], None], *, fail: bool) -> None:
        """Write to ``file``, tell the user by ``say``; with ``fail`` a bad row is an error."""
        self.file, self.say, self.fail = file, say, fail
        self._seen = set(self._read())
        self._cut = file.is_file() and not file.read_bytes().endswith(b"\n")
        self._told = 0

    def take(self, batch: Batch) -> list[int]:
        """Take the note out of a batch and keep it; gives the places that other rows took.

        Raises:
            DataError: a row is bad, and that is to be an error.
        """
        places = []
        for place, number, name, why in batch.pop(BAD, ()):
            if self.fail:
                raise DataError(f"row {name!r} cannot be read, and on_bad_row is fail: {why}")
            places.append(place)
            if number not in self._seen:
                self._seen.add(number)
                line = json.dumps({"row": number, "id": name, "reason": why}, ensure_ascii=False) + "\n"
                # One write of an appended line is whole, whoever else writes. A line that was cut short stays behind.
                line, self._cut = "\n" * self._cut + line, False
                handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                with os.fdopen(handle, "wb", buffering=0) as file:
                    file.write(line.encode())
                self._tell(name, why)
        return places

    def close(self) -> list[int]:
        """Put the file in order, each row once; gives their numbers. For one process to do, when all are done."""
        found = self._read()
        if found:
            write_lines(self.file, iter([found[number] for number in sorted(found)]))
        return sorted(found)

    def _tell(self, name: str, why: str) -> None:
        self._told += 1
        if self._told <= _TOLD:
            self.say(f"row {name!r} cannot be read, the next one takes its place: {why}")
        elif self._told == _TOLD + 1:
            self.say(f"more rows cannot be read: see {self.file.name}")

    def _read(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        if self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    found.setdefault(int(entry["row"]), entry)
                except (KeyError, TypeError, ValueError):
                    continue
        return found
