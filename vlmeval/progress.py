"""Progress on stderr: a live bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Advance", "track"]

_EVERY_SECONDS = 15.0


class Advance(Protocol):
    """Called with how many more are done."""

    def __call__(self, count: int) -> None:
        """Count ``count`` more."""


@contextmanager
def track(label: str, total: int, done: int = 0, *, quiet: bool = False) -> Iterator[Advance]:
    """Show how ``total`` items are worked off, ``done`` of which were done before."""
    if quiet:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(label, total, done) as advance:
            yield advance
    else:
        yield _lines(label, total, done)


@contextmanager
def _bar(label: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    shape = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), rate, TimeRemainingColumn())
    began, fresh = time.monotonic(), 0
    with Progress(*shape, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            nonlocal fresh
            fresh += count
            bar.update(task, advance=count, rate=f"{fresh / max(time.monotonic() - began, 1e-9):.1f}/s")

        yield advance


def _lines(label: str, total: int, done: int) -> Advance:
    began = last = time.monotonic()
    current = done

    def advance(count: int) -> None:
        nonlocal current, last
        current += count
        now = time.monotonic()
        if now - last >= _EVERY_SECONDS or current == total:
            last = now
            rate = (current - done) / max(now - began, 1e-9)
            left = (total - current) / rate if rate else 0.0
            print(f"{label}: {current}/{total}, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    return advance
