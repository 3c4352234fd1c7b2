"""A comparison as one terminal table, Markdown, JSON, CSV and one self-contained HTML page of what flipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError, OutputExistsError
from vlmdata.terminal import harmless
from vlmeval import published_table, store, verdicts
from vlmeval.compare import Comparison, Pair
from vlmeval.compare_page import html
from vlmeval.markdown import escape, folded, published_lines, table_lines, value_and_span
from vlmeval.report import screen
from vlmeval.side_by_side import Line, against_before, difference, lines, named
from vlmeval.tidy import to_csv
from vlmeval.view import label, partial, signed

__all__ = ["check", "html", "markdown", "sentences", "terminal", "write"]

_ONE_LINE = 3
_NOTES = 12
_MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "changed": ("•", "yellow")}


def check(files: Mapping[str, Path | None], images: Path | None, *, overwrite: bool) -> None:
    """Refuse before anything is computed.

    Raises:
        OutputExistsError: a file is there, and ``overwrite`` is not set.
        MissingError: there is no such image folder.
        ConfigError: two files are the same one, or one is a folder.
    """
    given = [path for path in files.values() if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise ConfigError(f"two of {', '.join(f'--{name}' for name in files)} name the same file")
    folders = [path for path in given if path.is_dir()]
    if folders:
        raise ConfigError(f"{folders[0]} is a folder, expected the name of a file to write")
    there = [path for path in given if path.exists()]
    if there and not overwrite:
        raise OutputExistsError(f"{there[0]} is there already: replace it with --overwrite")
    if images is not None and not images.is_dir():
        raise MissingError(f"no image folder {images}")


def write(comparison: Comparison, files: Mapping[str, Path | None], images: Path | None = None) -> None:
    """Write the files that were asked for; their folders are made where they are not there.

    Args:
        comparison: what is written.
        files: where: ``html``, ``markdown``, ``json`` (with every flip), ``csv``; None or absent is not written.
            Pictures that the page has no room for go to a folder beside it, ``NAME-thumbnails``.
        images: image folder for the HTML file; None takes the one the runs recorded.
    """
    content: dict[str, Callable[[Path], str]] = {
        "html": lambda path: html(comparison, images, path.with_name(f"{path.stem}-{store.THUMBNAILS}")),
        "markdown": lambda path: markdown(comparison),
        "json": lambda path: json.dumps(comparison.to_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        "csv": lambda path: to_csv(comparison),
    }
    for kind, path in files.items():
        if path is not None:
            with store.writing(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                store.write(path, content[kind](path))


def sentences(comparison: Comparison) -> list[str]:
    """What was found, in plain English."""
    return list(comparison.sentences)


def terminal(comparison: Comparison, width: int | None = None, color: bool | None = None) -> str:
    """One table: a row for each headline figure, a column for each run; under it what was found.

    Args:
        comparison: what is shown.
        width: columns; None takes the terminal's, 80 where there is none. Where the runs do not fit side by side they
            stand below each other.
        color: None decides by whether standard output is a terminal, and by NO_COLOR.
    """
    from rich.text import Text

    console = screen(width, color)
    shown = lines(comparison)
    with console.capture() as captured:
        beside = 14 + sum(max(10, min(len(harmless(run.name)), 24) + 2) for run in comparison.runs) <= console.width
        console.print((_beside if beside else _below)(comparison, shown))
        legend = "95 % intervals; ▲ better ▼ worse • changed: more than noise against the run to the left"
        console.print(Text(legend if beside else legend.replace("to the left", "above"), style="dim"))
        for line in sentences(comparison):
            console.print(Text(harmless(line), overflow="fold"))
        for note in comparison.notes[:_NOTES]:
            console.print(Text(harmless(note), style="yellow", overflow="fold"))
        if len(comparison.notes) > _NOTES:
            more = len(comparison.notes) - _NOTES
            console.print(Text(f"{more} more notes stand in the files of --html and --json.", style="yellow"))
    text: str = captured.get()
    return text


def _value(comparison: Comparison, index: int, line: Line, gap: str) -> Any:
    from rich.text import Text

    entry = line.cells[index]
    mark, style = _MARKS.get(against_before(comparison, index, line), (" ", ""))
    text = Text(entry.text, style="bold").append(mark, style=style)
    return text.append(gap + entry.span, style="dim") if entry.span else text


def _beside(comparison: Comparison, shown: Sequence[Line]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column(harmless(comparison.task.name).upper(), no_wrap=True)
    for run in comparison.runs:
        table.add_column(Text(harmless(run.name), overflow="fold"), justify="right")
    if any(run.report["headline"] for run in comparison.runs):
        table.add_row("", *(Text(partial(run.report), style="bold red") for run in comparison.runs))
    gap = " " if len(comparison.runs) <= _ONE_LINE else "\n"
    for line in shown:
        values = [_value(comparison, index, line, gap) for index in range(len(comparison.runs))]
        table.add_row(harmless(label(line.metric)), *values)
    return table


def _below(comparison: Comparison, shown: Sequence[Line]) -> Any:
    """Many runs: a row for each, the first figures only."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column(harmless(comparison.task.name).upper(), overflow="fold", max_width=26)
    for line in shown[:4]:
        table.add_column(harmless(label(line.metric)), justify="right", no_wrap=True)
    for index, run in enumerate(comparison.runs):
        name = Text(harmless(run.name), overflow="fold")
        if partial(run.report):
            name.append(f"\n{partial(run.report)}", style="bold red")
        table.add_row(name, *(_value(comparison, index, line, "\n") for line in shown[:4]))
    return table


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown: figures first, differences and notes folded below."""
    names = [escape(run.name) for run in comparison.runs]
    marks = [partial(run.report) for run in comparison.runs]
    head = ["", *(f"{name} ({mark})" if mark else name for name, mark in zip(names, marks, strict=True))]
    shown = lines(comparison)
    body = [[escape(label(line.metric)), *map(value_and_span, line.cells)] for line in shown]
    title = f"# {escape(comparison.task.name.upper())}: {escape(named(comparison))}"
    text = [title, "", *table_lines(head, body), ""]
    text += ["95 % intervals in brackets. ↑ more is better, ↓ less is better.", ""]
    text += [f"- {escape(line)}" for line in sentences(comparison)]
    text += [f"- **{escape(note)}**" for note in comparison.notes[:_NOTES]]
    if rest := comparison.notes[_NOTES:]:
        text += ["", *folded(f"{len(rest)} more notes", [f"- {escape(note)}" for note in rest])]
    head = ["", *(f"{escape(pair.one)} → {escape(pair.other)}" for pair in comparison.pairs)]
    body = [[escape(label(line.metric)), *(_change(line, pair) for pair in comparison.pairs)] for line in shown]
    caption = "Paired, over the items both runs answered; images drawn with replacement."
    text += ["", *folded("Differences", [*table_lines(head, body), "", caption])]
    for pair in comparison.pairs:
        text += _tests(comparison, pair)
        text += _facets(comparison, pair)
    runs = [(run.name, run.report) for run in comparison.runs]
    if published := published_table.table(comparison.task, comparison.runs[0].report, runs):
        text += folded("Among published results", published_lines(published))
    return "\n".join(text).rstrip() + "\n"


def _tests(comparison: Comparison, pair: Pair) -> list[str]:
    if not pair.mcnemar:
        return []
    head = ["", "n", "right → wrong", "wrong → right", "McNemar p", "over images p", "after Holm"]
    rows = [
        [
            escape(comparison.task.groups[group]),
            *(f"{test[key]:,}" for key in ("n", "right_to_wrong", "wrong_to_right")),
            *(verdicts.p_value(test[key]) if key in test else "–" for key in ("p", "clustered_p", "clustered_p_holm")),
        ]
        for group, test in pair.mcnemar.items()
    ]
    return folded(f"Flips by group: {pair.one} → {pair.other}", table_lines(head, rows))


def _facets(comparison: Comparison, pair: Pair) -> list[str]:
    found = verdicts.largest(comparison.task, pair)
    rows = [
        [escape(f"{entry['facet']} {entry['value']}"), str(entry["n"]), signed(entry["difference"]), entry["verdict"]]
        for entry in found
    ]
    head = ["", "n", "difference", ""]
    return folded(f"Largest changes: {pair.one} → {pair.other}", table_lines(head, rows)) if rows else []


def _change(line: Line, pair: Pair) -> str:
    found = difference(pair, line.group, line.metric)
    if found is None:
        return "–"
    low, high = found["interval"] or (None, None)
    span = f" ({signed(low)} to {signed(high)})" if low is not None else ""
    return f"{signed(found['difference'])}{span}, {found['verdict']}"
