"""One evaluation as terminal table, ``report.json``, ``report.md`` and one self-contained ``report.html``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmeval import store
from vlmeval.task import Metric, Task, load
from vlmeval.thumbnails import Thumbnails
from vlmeval.view import Cell, Panel, cell, panels, protocol_rows

__all__ = ["html", "label", "markdown", "render", "subject", "table_lines", "terminal", "write"]

_EXAMPLES = 24


def write(folder: Path, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the three report files; ``report.json``, which says the evaluation is finished, last."""
    task = load(report["task"])
    store.write(folder / "report.md", markdown(task, report))
    store.write(folder / "report.html", html(task, report, rows))
    store.write_json(folder / store.REPORT, report)


def subject(report: Mapping[str, Any]) -> str:
    """What was evaluated, in words."""
    source = report["protocol"]["answers"]
    if source["kind"] == "responses":
        return f"answers in {source['file']}"
    return f"{source['model']} + {source['adapter']}" if source.get("adapter") else str(source["model"])


def terminal(report: Mapping[str, Any], width: int | None = None, color: bool | None = None) -> str:
    """The report for a terminal.

    Args:
        report: the content of ``report.json``.
        width: columns; None takes the terminal's, 80 where there is none.
        color: None decides by whether standard output is a terminal.
    """
    import sys

    from rich.console import Console
    from rich.text import Text

    live = sys.stdout.isatty() if color is None else color
    console = Console(width=width or (None if sys.stdout.isatty() else 80), force_terminal=live, no_color=not live)
    task, coverage = load(report["task"]), report["coverage"]
    with console.capture() as captured:
        title = Text(f"{report['task'].upper()} ", style="bold")
        title.append(subject(report), style="cyan")
        console.print(title, overflow="fold")
        if report["headline"]:
            console.print(Text(report["headline"], style="bold red"))
        else:
            console.print(Text(f"complete: all {coverage['expected']} answered", style="green"))
        for panel in panels(task, report):
            console.print(_rich_table(task, panel, report))
        for line in _footer(report):
            console.print(Text(line, style="dim"))
    return captured.get()


def _rich_table(task: Task, panel: Panel, report: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    partial = report["headline"].split(" \N{MIDDLE DOT} ")[0] if not report["coverage"]["complete"] else ""
    table = Table(
        box=box.SIMPLE_HEAD, padding=0, show_edge=False, title=partial or None, title_style="bold red",
        title_justify="left",
    )
    headed = {name for _group, name in task.headline}
    table.add_column("", no_wrap=True)
    for metric in panel.metrics:
        table.add_column(metric.label, justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for _group, title, cells, count in panel.rows:
        values = []
        for metric, entry in zip(panel.metrics, cells, strict=True):
            text = Text(entry.text, style="bold")
            if metric.column == "exact" and metric.name in headed:
                text.append(f"\n{entry.span}", style="dim")
            values.append(text)
        table.add_row(title, *values, str(count))
    return table


def label(metric: Metric) -> str:
    """A metric's name with the direction that is better."""
    return metric.label + {"high": " ↑", "low": " ↓", None: ""}[metric.better]


def _footer(report: Mapping[str, Any]) -> list[str]:
    baselines = report.get("baselines", {})
    official = "Values as the official script rounds them; below, the 95 % interval of the exact value."
    lines = [official if "official" in report else "Below each value its 95 % interval."]
    for name, groups in baselines.items():
        group, figures = next(iter(groups.items()))
        values = f"accuracy {figures['accuracy']}, F1 {figures['f1']}"
        lines.append(f"Blind baseline {name.replace('_', '-')} on the same questions ({group}): {values}")
    return [*lines, *report["notes"], *_speed(report)]


def _speed(report: Mapping[str, Any]) -> list[str]:
    """How long an answer took, images read and text decoded."""
    if "speed" not in report:
        return []
    source = report["protocol"]["answers"]
    each = f"{report['speed']['seconds_per_answer']:.3g} s an answer, {source['batch_size']} at a time"
    return [f"{each}, on {source['device']} ({report['speed']['answers']:,} answers timed)."]


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, figures to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def _marked(entry: Cell) -> str:
    return f"{entry.text} ({entry.span})" if entry.span else entry.text


def markdown(task: Task, report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    coverage, banner = report["coverage"], report["headline"]
    mark = f"{banner}: " if banner else ""
    lines = [f"# {mark}{report['task'].upper()}: {_escape(subject(report))}", ""]
    lines += [f"**{banner}**" if banner else f"Complete: all {coverage['expected']} answered.", ""]
    for panel in panels(task, report):
        head = ["", *map(label, panel.metrics), "n"]
        body = [[title, *map(_marked, cells), str(count)] for _, title, cells, count in panel.rows]
        lines += [f"## {mark}{panel.rows[0][1]}", "", *table_lines(head, body), ""]
    official = "Values as the official script rounds them, in brackets the 95 % interval of the exact value."
    lines += [official if "official" in report else "In brackets the 95 % interval.", ""]
    if report.get("baselines"):
        lines += ["## Blind baselines on the same questions", ""]
        body = [
            [f"{task.groups[group]}, {name.replace('_', '-')}", *(str(value) for value in figures.values())]
            for name, groups in report["baselines"].items()
            for group, figures in groups.items()
        ]
        first = next(iter(next(iter(report["baselines"].values())).values()))
        lines += [*table_lines(["", *first], body), ""]
    lines += ["## Protocol", "", *table_lines(["", ""], [[n, f"`{_escape(v)}`"] for n, v in protocol_rows(report)]), ""]
    if notes := [*report["notes"], *_speed(report)]:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ").replace("<", "&lt;")


def render(template: str, **values: Any) -> str:
    """A packaged template, values HTML-escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("vlmeval", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"shorten": _shorten, "tally": _tally}
    return environment.get_template(template).render(**values)


def _shorten(text: str | None, limit: int = 1500) -> str:
    """A text as it can be shown on a card."""
    text = (text or "").strip() or "(empty)"
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text)} characters)"


def _tally(words: Sequence[str]) -> list[str]:
    """Words in order of first appearance, with how often they came."""
    return [f"{word} ×{count}" if count > 1 else word for word, count in Counter(words).items()]


def html(task: Task, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The report as one HTML file: figures, protocol, and answers to look at."""
    images = report["protocol"]["answers"].get("images")
    picture = Thumbnails(Path(images) if images else None)
    metrics = {metric.name: metric for metric in task.metrics}
    cards = [
        (task.groups[group], metrics[name], cell(report, group, metrics[name]), _blind(report, group, name))
        for group, name in _headline(task, report)
    ]
    wrong = [row for row in rows if row["correct"] is False]
    texts = [row for row in rows if row["correct"] is None]
    texts.sort(key=lambda row: -len(row["detail"].get("hallucinated", ())))
    return render(
        "report.html",
        title=f"{report['task'].upper()}: {subject(report)}",
        report=report,
        subject=subject(report),
        cards=cards,
        panels=panels(task, report),
        groups=task.groups,
        protocol=protocol_rows(report),
        wrong=[(row, _picture(row, picture)) for row in _spread(wrong, _EXAMPLES)],
        wrong_total=len(wrong),
        texts=[(row, _picture(row, picture)) for row in texts[:_EXAMPLES]],
        texts_total=len(texts),
        skipped=picture.skipped,
        notes=[*report["notes"], *_speed(report)],
    )


def _headline(task: Task, report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The task's headline figures, or the first group's figures where the headline groups were not asked."""
    asked = [(group, name) for group, name in task.headline if group in report["counts"]]
    first = next(iter(report["counts"]))
    return asked or [(first, metric.name) for metric in task.metrics if first in metric.groups]


def _blind(report: Mapping[str, Any], group: str, name: str) -> str:
    found = [
        f"{baseline.replace('_', '-')} {groups[group][name]}"
        for baseline, groups in report.get("baselines", {}).items()
        if name in groups.get(group, {})
    ]
    return ", ".join(found)


def _picture(row: Mapping[str, Any], picture: Thumbnails) -> str | None:
    return picture(row["images"][0]) if row["images"] else None


def _spread(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """At most ``count`` rows, evenly from the whole list, so that no group is left out by its place."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]
