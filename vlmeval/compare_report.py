"""A comparison as one terminal table, Markdown, JSON and one self-contained HTML file with what flipped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError, OutputExistsError
from vlmeval import store
from vlmeval.compare import Comparison, Pair
from vlmeval.report import label, render, subject, table_lines
from vlmeval.task import Metric
from vlmeval.thumbnails import Thumbnails
from vlmeval.view import Cell, cell, signed

__all__ = ["check", "html", "markdown", "sentences", "terminal", "write"]

_ONE_LINE = 3
_SHOWN = 120
_TEXTS = 12


def check(files: Mapping[str, Path | None], images: Path | None, *, overwrite: bool) -> None:
    """Refuse before anything is computed.

    Raises:
        OutputExistsError: a file is there, and ``overwrite`` is not set.
        MissingError: there is no such image folder.
        ConfigError: two files are the same one.
    """
    given = [path for path in files.values() if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise ConfigError("two of --html, --markdown and --json name the same file")
    there = [path for path in given if path.exists()]
    if there and not overwrite:
        raise OutputExistsError(f"{there[0]} is there already: replace it with --overwrite")
    if images is not None and not images.is_dir():
        raise MissingError(f"no image folder {images}")


def write(comparison: Comparison, files: Mapping[str, Path | None], images: Path | None = None) -> None:
    """Write the files that were asked for; their folders are made where they are not there.

    Args:
        comparison: what is written.
        files: where: ``html``, ``markdown``, ``json`` (with every flip); None or absent is not written.
        images: image folder for the HTML file; None takes the one the runs recorded.
    """
    content = {
        "html": lambda: html(comparison, images),
        "markdown": lambda: markdown(comparison),
        "json": lambda: json.dumps(comparison.to_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n",
    }
    for kind, path in files.items():
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            store.write(path, content[kind]())


def _rows(comparison: Comparison) -> list[tuple[str, Metric, list[Cell]]]:
    """(group, metric, a cell for each run) of the headline figures any run has."""
    metrics = {metric.name: metric for metric in comparison.task.metrics}
    wanted = [
        (group, name)
        for group, name in comparison.task.headline
        if any(group in run.report["counts"] for run in comparison.runs)
    ]
    if not wanted:
        first = next(iter(comparison.runs[0].report["counts"]))
        wanted = [(first, metric.name) for metric in metrics.values() if first in metric.groups]
    return [(g, metrics[name], [cell(run.report, g, metrics[name]) for run in comparison.runs]) for g, name in wanted]


def _difference(pair: Pair, group: str, metric: Metric) -> Mapping[str, Any] | None:
    same = (d for d in pair.differences if d["group"] == group and d["metric"] == metric.name)
    return next(same, None)


def _against_before(comparison: Comparison, index: int, group: str, metric: Metric) -> str:
    """The verdict of a run against the run to its left."""
    if index == 0:
        return ""
    names = (comparison.runs[index - 1].name, comparison.runs[index].name)
    pair = next((p for p in comparison.pairs if (p.one, p.other) == names), None)
    found = _difference(pair, group, metric) if pair else None
    return str(found["verdict"]) if found else ""


_MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "changed": ("•", "yellow")}


def terminal(comparison: Comparison, width: int | None = None, color: bool | None = None) -> str:
    """One table: a row for each headline figure, a column for each run; under it what flipped.

    Args:
        comparison: what is shown.
        width: columns; None takes the terminal's, 80 where there is none.
        color: None decides by whether standard output is a terminal.
    """
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    live = sys.stdout.isatty() if color is None else color
    console = Console(width=width or (None if sys.stdout.isatty() else 80), force_terminal=live, no_color=not live)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column(comparison.task.name.upper(), no_wrap=True)
    for run in comparison.runs:
        table.add_column(Text(run.name, overflow="fold"), justify="right")
    gap = " " if len(comparison.runs) <= _ONE_LINE else "\n"
    if any(run.report["headline"] for run in comparison.runs):
        table.add_row("", *(Text(_partial(run.report), style="bold red") for run in comparison.runs))
    for group, metric, cells in _rows(comparison):
        values = []
        for index, entry in enumerate(cells):
            mark, style = _MARKS.get(_against_before(comparison, index, group, metric), (" ", ""))
            text = Text(entry.text, style="bold").append(mark, style=style)
            values.append(text.append(gap + entry.span, style="dim") if entry.span else text)
        table.add_row(label(metric), *values)
    with console.capture() as captured:
        console.print(table)
        legend = "95 % intervals; ▲ better ▼ worse • changed: more than noise against the run to the left"
        console.print(Text(legend, style="dim"))
        for line in sentences(comparison):
            console.print(Text(line))
        for note in comparison.notes:
            console.print(Text(note, style="yellow"))
    return captured.get()


def _partial(report: Mapping[str, Any]) -> str:
    return "" if report["coverage"]["complete"] else str(report["headline"]).split(" \N{MIDDLE DOT} ")[0]


def sentences(comparison: Comparison) -> list[str]:
    """What flipped between the runs of each pair, with the exact McNemar test."""
    lines = []
    for pair in comparison.pairs:
        if pair.mcnemar:
            group, test = next(iter(pair.mcnemar.items()))
            lines.append(
                f"{pair.one} → {pair.other}: {test['right_to_wrong']} right→wrong, {test['wrong_to_right']} wrong→right"
                f" of {test['n']} ({comparison.task.groups[group].lower()}), McNemar p = {_p(test['p'])}"
            )
    return lines


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-300 else "below 1e-300"


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    names = [run.name for run in comparison.runs]
    head = ["", *(f"{run.name} ({mark})" if (mark := _partial(run.report)) else run.name for run in comparison.runs)]
    body = [[label(metric), *(_md(entry) for entry in cells)] for _, metric, cells in _rows(comparison)]
    lines = [f"# {comparison.task.name.upper()}: {' | '.join(names)}", "", *table_lines(head, body), ""]
    lines += ["95 % intervals in brackets. ↑ more is better, ↓ less is better.", "", "## Differences", ""]
    pairs = comparison.pairs
    body = []
    for group, metric, _ in _rows(comparison):
        found = [_difference(pair, group, metric) for pair in pairs]
        body.append([label(metric), *(_change(difference) for difference in found)])
    lines += [*table_lines(["", *(f"{pair.one} → {pair.other}" for pair in pairs)], body), ""]
    lines += ["Paired, over the items both runs answered; images drawn with replacement.", ""]
    lines += [f"- {line}" for line in sentences(comparison)]
    lines += [f"- {note}" for note in comparison.notes]
    return "\n".join([*lines, ""])


def _md(entry: Cell) -> str:
    return f"{entry.text} ({entry.span})" if entry.span else entry.text


def _change(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "–"
    low, high = difference["interval"] or (None, None)
    span = f" ({signed(low)} to {signed(high)})" if low is not None else ""
    return f"{signed(difference['difference'])}{span}, {difference['verdict']}"


def html(comparison: Comparison, images: Path | None = None) -> str:
    """The comparison as one HTML file: figures, differences, and every kind of flip to look at.

    Args:
        comparison: what is shown.
        images: image folder; None takes the first one a run recorded that is still there.
    """
    recorded = (run.report["protocol"]["answers"].get("images") for run in comparison.runs)
    folder = images or next((Path(path) for path in recorded if path and Path(path).is_dir()), None)
    picture = Thumbnails(folder)
    return render(
        "compare.html",
        comparison=comparison,
        title=f"{comparison.task.name.upper()}: {' · '.join(run.name for run in comparison.runs)}",
        subjects=[(run.name, subject(run.report), _partial(run.report)) for run in comparison.runs],
        rows=_rows(comparison),
        verdicts={
            (group, metric.name): [
                _against_before(comparison, index, group, metric) for index in range(len(comparison.runs))
            ]
            for group, metric, _ in _rows(comparison)
        },
        forests=[_forest(comparison, pair) for pair in comparison.pairs],
        sentences=sentences(comparison),
        flips=[card for pair in comparison.pairs for card in _flips(comparison, pair, picture)],
        texts=[card for pair in comparison.pairs for card in _texts(comparison, pair, picture)],
        groups=comparison.task.groups,
        skipped=picture.skipped,
    )


def _forest(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    """The differences of a pair, on one scale that holds all their intervals."""
    entries = []
    for group, metric, _ in _rows(comparison):
        found = _difference(pair, group, metric)
        if found is not None and metric.percent:
            entries.append({"label": label(metric), "text": _change(found), **found})
    reach = [abs(edge) for entry in entries for edge in (*(entry["interval"] or ()), entry["difference"])]
    return {"pair": pair, "entries": entries, "reach": max([1.0, *reach]) * 1.05}


def _flips(comparison: Comparison, pair: Pair, picture: Thumbnails) -> list[dict[str, Any]]:
    """Flips as cards, both directions, drawn evenly so that every group has its share."""
    share = _SHOWN // (2 * len(comparison.pairs))
    cards = []
    for lost in (True, False):
        members = [(a, b) for a, b in pair.flips if a["correct"] is lost]
        for a, b in _evenly(members, share):
            change = "lost" if lost else "won"
            url = picture(a["images"][0]) if a.get("images") else None
            cards.append({"one": a, "other": b, "pair": pair, "change": change, "picture": url})
    return cards


def _texts(comparison: Comparison, pair: Pair, picture: Thumbnails) -> list[dict[str, Any]]:
    """Texts that changed most in what they invent, first those that got better."""

    def invented(row: Mapping[str, Any]) -> int:
        return len(row["detail"].get("hallucinated", ()))

    changed = [(a, b) for a, b in pair.texts if a["response"] != b["response"]]
    changed.sort(key=lambda both: invented(both[1]) - invented(both[0]))
    share = max(2, _TEXTS // len(comparison.pairs))
    chosen = changed if len(changed) <= share else [*changed[: share // 2], *changed[-(share // 2) :]]
    return [
        {"one": a, "other": b, "pair": pair, "picture": picture(a["images"][0]) if a.get("images") else None}
        for a, b in chosen
    ]


def _evenly(members: Sequence[Any], count: int) -> list[Any]:
    if len(members) <= count:
        return list(members)
    return [members[index * len(members) // count] for index in range(count)]
