"""Progress of long work on stderr: a bar with rows/s and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

__all__ = ["Progress"]

_PLAIN_SECONDS = 10.0


class Progress:
    """Counts rows towards a total; used as a context manager."""

    def __init__(self, title: str, total: int, *, shown: bool = True, file: TextIO | None = None) -> None:
        """Prepare; nothing is written before the block is entered.

        Args:
            title: what is being done, in one or two words.
            total: rows there will be.
            shown: False writes nothing at all.
            file: where to write; stderr unless given.
        """
        self.title, self.total, self.done = title, total, 0
        self._file = file or sys.stderr
        self._shown = shown
        self._bar: Any = None
        self._task: Any = None
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        """Begin to count."""
        self._start = self._said = time.monotonic()
        if self._shown and self._file.isatty():
            self._bar = _bar(self._file)
            self._task = self._bar.add_task(self.title, total=self.total, speed="")
            self._bar.start()
        return self

    def advance(self, rows: int) -> None:
        """``rows`` more are done."""
        self.done += rows
        if self._bar is not None:
            self._bar.update(self._task, advance=rows, speed=f"{self.speed:,.0f} rows/s")
        elif self._shown and rows and time.monotonic() - self._said >= _PLAIN_SECONDS:
            self._said = time.monotonic()
            self._say()

    @property
    def speed(self) -> float:
        """Rows a second so far."""
        return self.done / max(time.monotonic() - self._start, 1e-6)

    def _say(self) -> None:
        share = 100 * self.done // max(self.total, 1)
        left = (self.total - self.done) / max(self.speed, 1e-6)
        done = f"{self.done:,} of {self.total:,} rows ({share} %)"
        line = f"{self.title}: {done}, {self.speed:,.0f} rows/s, {left:,.0f} s left"
        print(line, file=self._file, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting."""
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and error is None:
            seconds = time.monotonic() - self._start
            line = f"{self.title}: {self.done:,} rows in {seconds:,.1f} s, {self.speed:,.0f} rows/s"
            print(line, file=self._file, flush=True)


def _bar(file: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(file=file),
    )
