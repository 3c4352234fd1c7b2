"""Answers in a terminal: as they come, side by side where there is room, one after the other elsewhere, or as JSON.

Characters of an answer that would steer the terminal are replaced.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import click

from vlmeval.generate import Reply

__all__ = ["Columns", "Lines", "Objects", "Plain", "View", "harmless"]

Stream = Callable[[int, str], None]


class View(Protocol):
    """Shows what models answer to one turn after the other."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Entered around the answers to one turn."""

    def stream(self, place: int) -> Stream | None:
        """What is told the pieces of a model's answers; None where nothing is shown before they are whole."""

    def show(self, place: int, replies: Sequence[Reply]) -> None:
        """A model's answers are whole."""


class Plain:
    """One model, one answer: its text and nothing else."""

    def __init__(self, live: bool) -> None:
        """Say whether somebody watches."""
        self.live = live

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Nothing stands around an answer."""
        return contextlib.nullcontext()

    def stream(self, place: int) -> Stream | None:
        """Pieces go out as they come."""
        return (lambda number, piece: click.echo(harmless(piece), nl=False)) if self.live else None

    def show(self, place: int, replies: Sequence[Reply]) -> None:
        """The text, or the end of its line."""
        click.echo("" if self.live else replies[0].text)


class Objects:
    """The JSON in the answers, one object a line; of several models or answers with their name and whole text."""

    def __init__(self, names: Sequence[str], sample: int) -> None:
        """Take the models' names, and how many answers each gives."""
        self.names, self.sample = names, sample

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Nothing stands around an answer."""
        return contextlib.nullcontext()

    def stream(self, place: int) -> Stream | None:
        """Nothing is shown before it is whole."""
        return None

    def show(self, place: int, replies: Sequence[Reply]) -> None:
        """One line an answer."""
        for number, reply in enumerate(replies):
            if len(self.names) * self.sample > 1:
                entry: dict[str, Any] = {"model": self.names[place], "json": reply.json, "text": reply.text}
                if self.sample > 1:
                    entry["answer"] = number
                click.echo(json.dumps(entry, ensure_ascii=False))
            else:
                found = reply.json
                click.echo(json.dumps(found, ensure_ascii=False) if found is not None else reply.text)


class Lines:
    """Several models or answers, one after the other, each under its name."""

    def __init__(self, names: Sequence[str], sample: int, live: bool) -> None:
        """Take the models' names, how many answers each gives, and whether somebody watches."""
        self.names, self.sample, self.live = names, sample, live
        self._begun = -1

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Nothing stands around an answer."""
        return contextlib.nullcontext()

    def stream(self, place: int) -> Stream | None:
        """Pieces go out as they come, a heading before the first."""
        if not self.live:
            return None
        self._begun = -1

        def piece(number: int, text: str) -> None:
            if number != self._begun:
                self._head(place, number, first=self._begun < 0)
                self._begun = number
            click.echo(harmless(text), nl=False)

        return piece

    def show(self, place: int, replies: Sequence[Reply]) -> None:
        """What was not streamed, and an empty line."""
        if self.live and self._begun >= 0:
            click.echo("\n")
            return
        for number, reply in enumerate(replies):
            self._head(place, number, first=True)
            click.echo(f"{reply.text}\n")

    def _head(self, place: int, number: int, *, first: bool) -> None:
        which = f" ({number + 1} of {self.sample})" if self.sample > 1 else ""
        click.echo(f"{'' if first else chr(10) * 2}== {self.names[place]}{which}")


class Columns:
    """Several models side by side, each in a column that fills as it writes."""

    def __init__(self, names: Sequence[str], sample: int) -> None:
        """Take the models' names, and how many answers each gives."""
        self.names, self.sample = names, sample
        self._cells: list[list[str]] = []
        self._live: Any = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """The table is drawn anew while it fills, and once as a whole when it is full."""
        from rich.console import Console
        from rich.live import Live

        self._cells = [["" for _ in self.names] for _ in range(self.sample)]
        console = Console(highlight=False)
        with Live(self._table(), console=console, transient=True, auto_refresh=False) as self._live:
            yield
        console.print(self._table())

    def stream(self, place: int) -> Stream | None:
        """Pieces go into the model's column."""

        def piece(number: int, text: str) -> None:
            self._cells[number][place] += harmless(text)
            self._live.update(self._table(), refresh=True)

        return piece

    def show(self, place: int, replies: Sequence[Reply]) -> None:
        """The whole texts."""
        for number, reply in enumerate(replies):
            self._cells[number][place] = harmless(reply.text)
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True, show_lines=self.sample > 1)
        for name in self.names:
            table.add_column(Text(name), ratio=1, overflow="fold")
        for row in self._cells:
            table.add_row(*(Text(cell) for cell in row))
        return table


def harmless(text: str) -> str:
    """A text without characters that would steer the terminal."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)
