"""One evaluation as terminal table, ``report.json``, ``report.md`` and one self-contained ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.terminal import harmless
from vlmeval import published_table, store
from vlmeval.markdown import markdown
from vlmeval.task import Task, recorded
from vlmeval.view import Panel, blind, label, panels, partial, speed_lines, subject

__all__ = ["screen", "terminal", "write"]

_NEIGHBOURS = 2
_WARNINGS = 3


def write(
    folder: Path, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, task: Task | None = None
) -> None:
    """Write the report files; ``report.json``, which says the evaluation is finished, last.

    Args:
        folder: evaluation folder; pictures that the page has no room for go to ``thumbnails`` in it.
        report: the content of ``report.json``.
        rows: those of ``scores.jsonl``.
        task: whose report it is; None takes the one the report names.
    """
    from vlmeval.page import html, image_names
    from vlmeval.thumbnails import Thumbnails

    task = task or recorded(report)
    images = report["protocol"]["answers"].get("images")
    pictures = Thumbnails(Path(images) if images else None, folder / store.THUMBNAILS).make(image_names(rows))
    store.write(folder / "report.md", markdown(task, report))
    failed = store.read_rows(folder / store.FAILURES) if (folder / store.FAILURES).is_file() else []
    failures = [(row["id"], str(row.get("error") or "")) for row in failed]
    store.write(folder / "report.html", html(task, report, rows, pictures, failures))
    store.write_json(folder / store.REPORT, report)


def terminal(
    report: Mapping[str, Any], width: int | None = None, color: bool | None = None, *, task: Task | None = None
) -> str:
    """The report for a terminal.

    Args:
        report: the content of ``report.json``.
        width: columns; None takes the terminal's, 80 where there is none.
        color: None decides by whether standard output is a terminal, and by NO_COLOR.
        task: whose report it is; None takes the one the report names.
    """
    from rich.text import Text

    task, console = task or recorded(report), screen(width, color)
    with console.capture() as captured:
        title = Text(f"{harmless(report['task']).upper()} ", style="bold")
        title.append(subject(report), style="cyan")
        console.print(title, overflow="fold")
        if report["headline"]:
            console.print(Text(harmless(report["headline"]), style="bold red"))
        else:
            console.print(Text(f"complete: all {report['coverage']['expected']} answered", style="green"))
        for panel in panels(task, report):
            console.print(_rich_table(task, panel, report, console.width))
        for line, style in [*_published(task, report), *((line, "dim") for line in _footer(report))]:
            console.print(Text(harmless(line), style=style, overflow="fold"))
    text: str = captured.get()
    return text


def screen(width: int | None, color: bool | None) -> Any:
    """A ``rich`` console for standard output: 80 columns where it is no terminal, colours where they are wanted."""
    import os
    import sys

    from rich.console import Console

    there = sys.stdout.isatty()
    live = there and not os.environ.get("NO_COLOR") if color is None else color
    return Console(width=width or (None if there else 80), force_terminal=live, no_color=not live, highlight=False)


def _rich_table(task: Task, panel: Panel, report: Mapping[str, Any], width: int) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        title=partial(report) or None,
        title_style="bold red",
        title_justify="left",
    )
    headed = {name for _group, name in task.headline}
    # A long name of a group is folded rather than pushing figures out of sight.
    figures = sum(max(len(label(metric)), 11) + 1 for metric in panel.metrics) + 8
    table.add_column("", overflow="fold", max_width=max(width - figures, 14))
    for metric in panel.metrics:
        table.add_column(harmless(metric.label), justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for _group, title, cells, count in panel.rows:
        values = []
        for metric, entry in zip(panel.metrics, cells, strict=True):
            text = Text(entry.text, style="bold")
            if metric.column == "exact" and metric.name in headed and entry.span:
                text.append(f"\n{entry.span}", style="dim")
            values.append(text)
        table.add_row(Text(harmless(title)), *values, str(count))
    return table


def _published(task: Task, report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The published results next to this one, and the first warnings: (line, style)."""
    found = published_table.table(task, report)
    if found is None:
        return []
    lines = []
    ranked = [place for place in found.places if place.figures[0].value is not None]
    own = next((index for index, place in enumerate(ranked) if place.own), None)
    if own is not None:
        near = ranked[max(own - _NEIGHBOURS, 0) : own + _NEIGHBOURS + 1]
        names = "; ".join(
            f"{'this run' if place.own else place.name} {' / '.join(cell.text for cell in place.figures)}"
            for place in near
        )
        what = " / ".join(metric.label for metric in found.metrics)
        where = f"{partial(report)}, no place" if partial(report) else f"place {own + 1} of {len(ranked)}"
        lines.append((f"Published ({what}), {where}: {names}", ""))
    more = len(found.warnings) - _WARNINGS
    lines += [(f"Not the same protocol: {warning}", "yellow") for warning in found.warnings[:_WARNINGS]]
    return [*lines, *([(f"{more} more differences stand in the report.", "yellow")] if more > 0 else [])]


def _footer(report: Mapping[str, Any]) -> list[str]:
    official = "Values as the official script rounds them; below, the 95 % interval of the exact value."
    lines = [official if "official" in report else "Below each value its 95 % interval."]
    for name, groups in report.get("baselines", {}).items():
        group, figures = next(iter(groups.items()))
        values = ", ".join(
            f"{'F1' if key == 'f1' else key.replace('_', ' ')} {figures[key]}"
            for key in ("accuracy", "f1")
            if key in figures
        )
        lines.append(f"Blind baseline {blind(name)} on the same questions ({group}): {values}")
    return [*lines, *report["notes"], *speed_lines(report)]
