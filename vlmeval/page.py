"""One evaluation as a self-contained HTML page: figures, charts, and every item to be opened.

The page loads nothing from a network: its policy allows its own script and style, named by hash, and pictures that are
part of it or lie beside it. What models and data say reaches it as JSON that cannot leave its element, or escaped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from vlmdata.page_script import digest, script_json
from vlmeval import drawing, published_table
from vlmeval.task import Task
from vlmeval.thumbnails import Picture
from vlmeval.view import (
    baselines,
    blind,
    cell,
    headline,
    label,
    panels,
    partial,
    protocol_rows,
    run_rows,
    shown,
    speed_lines,
    subject,
)

__all__ = ["entry", "evenly", "html", "image_names", "listed_pictures", "render", "state"]

MOST = 30_000
"""Items a page holds; of more the mistakes are kept first."""

_FIGURE = re.compile(r"[-+\N{MINUS SIGN}]?[\d,.]+ ?%?|\N{EN DASH}|")
_LONGEST = 3_000
_WORDS = 150


def html(
    task: Task,
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture],
    failures: Sequence[tuple[int | str, str]] = (),
) -> str:
    """The page of one evaluation.

    Args:
        task: whose report it is.
        report: the content of ``report.json``.
        rows: those of ``scores.jsonl``.
        pictures: of the images that ``image_names`` lists, in any order.
        failures: (id, reason) of items that could not be answered.
    """
    kept = _kept(rows)
    groups: dict[tuple[str, ...], int] = {}
    places = {picture.name: place for place, picture in enumerate(pictures)}
    items = [entry(row, groups, places) for row in kept]
    # Blind answers to every question alike have a recall of 0 or 100, which says nothing.
    compared = {name for _, name in task.headline}
    data = {
        "items": items,
        "groups": list(groups),
        "titles": dict(task.groups),
        "pictures": listed_pictures(pictures),
    }
    return render(
        "report.html",
        ("page.js", "list.js", "item.js", "report.js"),
        data,
        title=f"{report['task'].upper()}: {subject(report)}",
        task=task,
        report=report,
        partial=partial(report),
        cards=[
            (task.groups[group], label(metric), cell(report, group, metric), baselines(report, group, metric.name))
            for group, metric in headline(task, report)
        ],
        panels=panels(task, report),
        published=published_table.table(task, report),
        charts=[(chart, drawing.draw(chart)) for chart in (task.charts(report) if task.charts else ())],
        tables=report.get("tables", ()),
        baselines=_baselines(task, report),
        ticks=lambda group, metric: baselines(report, group, metric.name) if metric.name in compared else (),
        protocol=protocol_rows(report),
        run=run_rows(report),
        notes=[*report["notes"], *speed_lines(report)],
        rows=len(rows),
        kept=len(kept),
        failures=[{"title": "Not answered", "columns": ["id", "reason"], "rows": failures}] if failures else [],
        unseen=Counter(picture.why for picture in pictures if not picture.url),
    )


def image_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The images of all rows, those with most wrong answers first: they are shown where not all can be."""
    wrong: Counter[str] = Counter()
    for row in rows:
        for name in row.get("images") or ():
            wrong[name] += row["correct"] is False
    return [name for name, _ in wrong.most_common()]


def state(row: Mapping[str, Any]) -> str:
    """right, wrong, unread (could not be read, and counts as wrong) or text (neither right nor wrong)."""
    if row["correct"] is None:
        return "text"
    if row["counts"].get("unread"):
        return "unread"
    return "right" if row["correct"] else "wrong"


def entry(row: Mapping[str, Any], groups: dict[tuple[str, ...], int], places: Mapping[str, int]) -> dict[str, Any]:
    """A row of ``scores.jsonl`` as the page needs it: what is empty is absent, what is long is shortened.

    Args:
        row: the row.
        groups: combinations of groups so far, to their numbers; a new one is added.
        places: image name to its place in the page's list of pictures.
    """
    said = row.get("response")
    names = tuple(row["groups"])
    found = {
        "id": row["id"],
        "prompt": _short(row.get("prompt") or ""),
        "turns": [_turn(turn) for turn in row.get("turns") or ()],
        "images": [places[name] for name in row.get("images") or () if name in places],
        "facets": {name: str(value) for name, value in (row.get("facets") or {}).items()},
        "truth": _plain(row.get("target")),
        "said": None if said is None else _short(said),
        "cut": len(said) if said is not None and len(said) > _LONGEST else 0,
        "read": row.get("answer"),
        "detail": _plain(row.get("detail") or {}),
    }
    kept = {name: value for name, value in found.items() if value not in ("", None, [], {}, 0) or name == "id"}
    return {**kept, "group": groups.setdefault(names, len(groups)), "state": state(row)}


def _turn(turn: Mapping[str, Any]) -> list[str]:
    parts = turn.get("content") or ()
    if isinstance(parts, str):
        return [str(turn.get("role")), _short(parts)]
    texts = ["[image]" if part.get("type") == "image" else part.get("text") or "" for part in parts]
    return [str(turn.get("role")), _short("\n".join(texts))]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST]


def _plain(value: Any) -> Any:
    """A JSON value without what would make the page heavy: long texts end in how long they are, repeats are counted."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[:_LONGEST]} … ({len(value):,} characters)"
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in list(value.items())[:_WORDS]}
    if isinstance(value, list | tuple):
        if len(value) > _WORDS and all(isinstance(inner, str) for inner in value):
            words = [f"{word} ×{count}" if count > 1 else word for word, count in Counter(value).items()]
            value = words if len(words) <= _WORDS else [*words[:_WORDS], f"… {len(words) - _WORDS:,} more"]
        return [_plain(inner) for inner in value[: _WORDS + 1]]
    return value


def _kept(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(rows) <= MOST:
        return rows
    wrong = [place for place, row in enumerate(rows) if row["correct"] is False]
    other = [place for place, row in enumerate(rows) if row["correct"] is not False]
    chosen = evenly(wrong, MOST)
    return [rows[place] for place in sorted([*chosen, *evenly(other, MOST - len(chosen))])]


def evenly(members: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of them, evenly from the whole list, so that nothing is left out by its place."""
    if len(members) <= count:
        return list(members)
    return [members[index * len(members) // count] for index in range(count)]


def _baselines(task: Task, report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{blind(said)} · {task.groups[group]}", figures)
        for said, groups in report.get("baselines", {}).items()
        for group, figures in groups.items()
    ]


def listed_pictures(pictures: Sequence[Picture]) -> list[dict[str, str]]:
    """Pictures as the page's script takes them."""
    return [
        {"name": picture.name, **({"url": picture.url} if picture.url else {"why": picture.why})}
        for picture in pictures
    ]


def _printable(value: Any) -> Any:
    if type(value) is not str:
        return value
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in value
    )


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("vlmeval", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Control characters have no place in HTML, wherever a name came from.
        finalize=_printable,
    )
    environment.filters |= {"grouped": "{:,}".format, "shown": shown, "label": label}
    environment.tests["wordy"] = lambda value: isinstance(value, str) and not _FIGURE.fullmatch(value)
    environment.globals["bar"] = drawing.bar
    return environment


def _source(name: str) -> str:
    environment = _environment()
    text: str = environment.loader.get_source(environment, name)[0]
    return text


def render(template: str, scripts: Sequence[str], data: Mapping[str, Any], **values: Any) -> str:
    """A packaged template with its style, its scripts and its data inside.

    Args:
        template: its name.
        scripts: names of the scripts, in order; they share one scope.
        data: what the scripts find in the element ``data``.
        **values: what the template shows, HTML-escaped unless it says otherwise.
    """
    style = _source("style.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_source, scripts)) + "\n})();\n"
    page: str = (
        _environment()
        .get_template(template)
        .render(
            data=script_json(data),
            style=style,
            script=script,
            policy=f"default-src 'none'; img-src data: 'self'; style-src '{digest(style)}'; "
            f"script-src '{digest(script)}'; base-uri 'none'; form-action 'none'",
            **values,
        )
    )
    # A lone surrogate that JSON brought would be no UTF-8; spelled out it is valid JSON again.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")
