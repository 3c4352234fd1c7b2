"""An evaluation as Markdown for a pull request: the headline in view, the rest folded away.

GitHub turns more than Markdown into links: ``@name`` notifies people, ``#12`` and ``GH-12`` link issues. Whatever comes
from models, files or data is written so that it stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.terminal import harmless
from vlmeval import published_table
from vlmeval.task import Task
from vlmeval.view import (
    Cell,
    baselines,
    cell,
    headline,
    label,
    panels,
    partial,
    protocol_rows,
    shown,
    speed_lines,
    subject,
)

__all__ = ["code", "escape", "folded", "markdown", "published_lines", "table_lines", "table_of", "value_and_span"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]()|~$!])")
# An empty comment ends the word that GitHub would look up.
_LOOKED_UP = re.compile(r"@(?=\w)|#(?=\w)|\b(?:GH-)(?=\d)|:(?=//)|(?<=www)\.", re.IGNORECASE)
_ROWS = 30
_CELL = 200


def escape(text: str) -> str:
    """Text as Markdown shows it literally, on one line, in a table or outside of one; GitHub links nothing in it."""
    text = harmless(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _LOOKED_UP.sub(r"\g<0><!-- -->", _SPECIAL.sub(r"\\\1", text))
    # What would begin a list, a heading or a quotation.
    return re.sub(r"^(\s*)([-+#=]|\d+[.)])", lambda found: f"{found[1]}&#8203;{found[2]}", text)


def code(text: str) -> str:
    """Text as a code span, which is safe in a table too."""
    text = harmless(text).replace("|", "\\|")
    if not text.strip():
        return "–"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of cells that are Markdown already, figures to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """Lines that are shown when the title is clicked."""
    return [f"<details><summary>{escape(title)}</summary>", "", *lines, "", "</details>", ""]


def value_and_span(entry: Cell) -> str:
    """A figure with its interval in brackets."""
    return f"{entry.text} ({entry.span})" if entry.span else entry.text


def table_of(table: Mapping[str, Any]) -> list[str]:
    """A report's own table, its first rows."""
    rows = [[escape(shown(value)[:_CELL]) for value in row] for row in table["rows"][:_ROWS]]
    left = len(table["rows"]) - len(rows)
    more = ["", f"{left} more rows stand in report.json."] if left else []
    return [*table_lines([escape(str(column)) or " " for column in table["columns"]], rows), *more]


def published_lines(found: published_table.Published) -> list[str]:
    """Published results as a table, the run's own in bold."""
    head = ["", *(escape(label(metric)) for metric in found.metrics), "source"]
    body = []
    for place in found.places:
        figures = [value_and_span(entry) for entry in place.figures]
        name = escape(place.name)
        source = "this run" if place.own else str(place.source or " ")
        row = [name, *figures, source]
        body.append([f"**{text}**" if text.strip() else text for text in row] if place.own else row)
    sources = [f"{number}. {escape(source)}" for number, source in enumerate(found.sources, 1)]
    return [*table_lines(head, body), "", *sources, "", *(f"- {escape(warning)}" for warning in found.warnings)]


def markdown(task: Task, report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    mark = f"{partial(report)}: " if partial(report) else ""
    lines = [f"# {mark}{escape(report['task'].upper())}: {escape(subject(report))}", ""]
    complete = f"Complete: all {report['coverage']['expected']:,} answered."
    lines += [f"**{escape(report['headline'])}**" if report["headline"] else complete, ""]
    rows = []
    for group, metric in headline(task, report):
        blind = ", ".join(f"{said} {value}" for said, value in baselines(report, group, metric.name))
        entry = cell(report, group, metric)
        rows.append([f"{escape(label(metric))}, {escape(task.groups[group])}", f"**{entry.text}**", entry.span, blind])
    columns = 4 if any(row[3] for row in rows) else 3
    head = [mark.removesuffix(": "), "value", "95 % interval", "blind answers"][:columns]
    lines += [*table_lines(head, [row[:columns] for row in rows]), ""]
    for panel in panels(task, report):
        head = ["", *(escape(label(metric)) for metric in panel.metrics), "n"]
        body = [[escape(title), *map(value_and_span, cells), f"{count:,}"] for _, title, cells, count in panel.rows]
        title = panel.rows[0][1] if len(panel.rows) == 1 else "By group"
        lines += folded(mark + title, [*table_lines(head, body), "", _caption(report)])
    if published := published_table.table(task, report):
        lines += folded("Among published results", published_lines(published))
    for table in report.get("tables", ()):
        lines += folded(str(table["title"]), table_of(table))
    if notes := [*report["notes"], *speed_lines(report)]:
        lines += folded(f"Notes ({len(notes)})", [f"- {escape(note)}" for note in notes])
    coverage = [[escape(name), escape(shown(value))] for name, value in report["coverage"].items()]
    rules = [[escape(name), code(value)] for name, value in protocol_rows(report)]
    lines += folded("Protocol and coverage", table_lines(["", ""], [*coverage, *rules]))
    return "\n".join(lines).rstrip() + "\n"


def _caption(report: Mapping[str, Any]) -> str:
    official = "Values as the official script rounds them, in brackets the 95 % interval of the exact value."
    return official if "official" in report else "In brackets the 95 % interval."
