"""A comparison as one self-contained HTML page: figures, differences, and a gallery of every answer that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmeval import drawing, published_table, store, verdicts
from vlmeval.charts import Chart, Scatter
from vlmeval.compare import Comparison, Pair
from vlmeval.page import MOST, entry, evenly, image_names, listed_pictures, render, state
from vlmeval.side_by_side import against_before, difference, lines, named
from vlmeval.thumbnails import Thumbnails
from vlmeval.view import label, partial, signed, subject

__all__ = ["html"]

_CHARTED = 3
_KINDS = ("lost", "won", "more", "less", "reworded")
_SAID = ("said", "cut", "read", "detail", "state")


def html(comparison: Comparison, images: Path | None = None, beside: Path | None = None) -> str:
    """The page.

    Args:
        comparison: what is shown.
        images: image folder; None takes the first one a run recorded that is still there.
        beside: folder for the pictures that the page has no room for; None shows only as many as it has room for.
    """
    recorded = (run.report["protocol"]["answers"].get("images") for run in comparison.runs)
    folder = images or next((Path(path) for path in recorded if path and Path(path).is_dir()), None)
    changes, whole = _changes(comparison)
    rows = {row["id"]: row for one, other, _, _ in changes for row in (other, one)}
    spare = [run.folder / store.THUMBNAILS for run in comparison.runs]
    pictures = Thumbnails(folder, beside, spare=spare).make(image_names(list(rows.values())))
    places = {picture.name: place for place, picture in enumerate(pictures)}
    groups: dict[tuple[str, ...], int] = {}
    index = {ident: place for place, ident in enumerate(rows)}
    data = {
        "items": [_item(comparison, row, groups, places) for row in rows.values()],
        "changes": [[index[one["id"]], pair, kind] for one, _, pair, kind in changes],
        "runs": [run.name for run in comparison.runs],
        "pairs": [[_place(comparison, pair.one), _place(comparison, pair.other)] for pair in comparison.pairs],
        "groups": list(groups),
        "titles": dict(comparison.task.groups),
        "pictures": listed_pictures(pictures),
    }
    shown = lines(comparison)
    runs = [(run.name, run.report) for run in comparison.runs]
    return render(
        "compare.html",
        ("page.js", "list.js", "item.js", "compare.js"),
        data,
        comparison=comparison,
        title=f"{comparison.task.name.upper()}: {named(comparison)}",
        subjects=[(run.name, subject(run.report), partial(run.report)) for run in comparison.runs],
        lines=[
            (line, [against_before(comparison, place, line) for place in range(len(comparison.runs))]) for line in shown
        ],
        groups=comparison.task.groups,
        forests=[_forest(comparison, pair) for pair in comparison.pairs],
        sentences=_first(comparison),
        published=published_table.table(comparison.task, comparison.runs[0].report, runs),
        charts=[(chart, drawing.draw(chart)) for chart in _charts(comparison)],
        tables=_tables(comparison),
        kept=len(changes),
        changed=whole,
    )


def _place(comparison: Comparison, name: str) -> int:
    return next(place for place, run in enumerate(comparison.runs) if run.name == name)


Change = tuple[Mapping[str, Any], Mapping[str, Any], int, str]


def _changes(comparison: Comparison) -> tuple[list[Change], int]:
    """What changed: (row of the first, row of the other, number of the pair, kind), and how many there are.

    Kinds are lost (right to wrong), won, and for texts less or more (how much they invent) and reworded. Of more than
    a page holds, each pair and kind gives its share.
    """
    found: dict[tuple[int, str], list[Change]] = {
        (number, kind): [] for kind in _KINDS for number in range(len(comparison.pairs))
    }
    for number, pair in enumerate(comparison.pairs):
        for one, other in pair.flips:
            kind = "lost" if one["correct"] else "won"
            found[number, kind].append((one, other, number, kind))
        for one, other in pair.texts:
            if one.get("response") != other.get("response"):
                more = _invented(other) - _invented(one)
                kind = "more" if more > 0 else "less" if more < 0 else "reworded"
                found[number, kind].append((one, other, number, kind))
    whole = sum(map(len, found.values()))
    if whole <= MOST:
        return [change for members in found.values() for change in members], whole
    share = MOST // sum(map(bool, found.values()))
    return [change for members in found.values() for change in evenly(members, share)], whole


def _invented(row: Mapping[str, Any]) -> int:
    return len((row.get("detail") or {}).get("hallucinated") or ())


def _item(
    comparison: Comparison, row: Mapping[str, Any], groups: dict[tuple[str, ...], int], places: Mapping[str, int]
) -> dict[str, Any]:
    """An item with what every run said to it; null where a run did not."""
    base = entry(row, groups, places)
    said = []
    for run in comparison.runs:
        answer = run.answers.get(row["id"])
        whole = entry(answer, groups, {}) | {"state": state(answer)} if answer is not None else None
        said.append({name: whole[name] for name in _SAID if name in whole} if whole else None)
    return {name: value for name, value in base.items() if name not in _SAID} | {"answers": said}


def _forest(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    """The differences of a pair, on one scale that holds all their intervals."""
    entries = []
    for line in lines(comparison):
        found = difference(pair, line.group, line.metric)
        if found is not None and line.metric.percent:
            low, high = found["interval"] or (None, None)
            span = f" ({signed(low)} to {signed(high)})" if low is not None else ""
            text = f"{signed(found['difference'])}{span}, {found['verdict']}"
            entries.append({**found, "label": label(line.metric), "text": text})
    reach = [abs(edge) for found in entries for edge in (*(found["interval"] or ()), found["difference"])]
    more = [line.removeprefix(_start(pair)) for line in comparison.sentences if line.startswith(_start(pair))][1:]
    return {"pair": pair, "entries": entries, "reach": max([1.0, *reach]) * 1.05, "more": more}


def _start(pair: Pair) -> str:
    return f"{pair.one} → {pair.other}: "


def _first(comparison: Comparison) -> list[str]:
    """The first sentence on each pair, and those on all of them; the others stand with the pair."""
    starts = {_start(pair) for pair in comparison.pairs}
    found: list[str] = []
    for line in comparison.sentences:
        start = next((start for start in starts if line.startswith(start)), None)
        if start is None or not any(other.startswith(start) for other in found):
            found.append(line)
    return found


def _charts(comparison: Comparison) -> list[Chart]:
    """The runs' own charts: scatter plots of one title become one plot of all runs, the others stand side by side."""
    draw = comparison.task.charts
    if draw is None:
        return []
    merged: dict[str, Chart] = {}
    single: list[Chart] = []
    for run in comparison.runs:
        for chart in draw(run.report):
            if isinstance(chart, Scatter):
                own = [(x, y, run.name, True) for x, y, _, mine in chart.points if mine]
                before = merged.get(chart.title)
                rest = [point for point in chart.points if not point[3]]
                points = [*own, *(before.points if isinstance(before, Scatter) else rest)]
                merged[chart.title] = Scatter(chart.title, chart.x_label, chart.y_label, points)
            elif len(comparison.runs) <= _CHARTED:
                single.append(_titled(chart, run.name))
    return [*merged.values(), *single]


def _titled(chart: Chart, name: str) -> Chart:
    from dataclasses import replace

    return replace(chart, title=f"{chart.title}: {name}")


def _tables(comparison: Comparison) -> list[dict[str, Any]]:
    """Tests and every difference of each pair as tables."""
    task, tables = comparison.task, []
    metrics = {metric.name: metric for metric in task.metrics}
    for pair in comparison.pairs:
        name = f"{pair.one} → {pair.other}"
        if pair.mcnemar:
            keys = ("n", "right_to_wrong", "wrong_to_right", "p", "clustered_p", "clustered_p_holm")
            columns = ["", "n", "right → wrong", "wrong → right", "McNemar p", "over images p", "after Holm"]
            rows: Sequence[Any] = [
                [task.groups[group], *(test.get(key) for key in keys)] for group, test in pair.mcnemar.items()
            ]
            tables.append({"title": f"Flips by group: {name}", "columns": columns, "rows": rows})
        rows = [
            [task.groups[found["group"]], label(metrics[found["metric"]]), *_figures(found), found["verdict"]]
            for found in pair.differences
        ]
        columns = ["", "", "before", "after", "difference", "low", "high", "can see", "verdict"]
        tables.append({"title": f"All differences: {name}", "columns": columns, "rows": rows})
        rows = [
            [
                found["facet"], found["value"], label(metrics[found["metric"]]), found["n"], *_figures(found),
                found["right_to_wrong"], found["wrong_to_right"],
                "few images" if found["small"] else found["verdict"],
            ]
            for found in verdicts.largest(task, pair, 100)
        ]  # fmt: skip
        columns = [
            "", "", "", "n", "before", "after", "difference", "low", "high", "can see", "right → wrong",
            "wrong → right", "verdict",
        ]  # fmt: skip
        if rows:
            tables.append({"title": f"Largest changes: {name}", "columns": columns, "rows": rows})
    return tables


def _figures(found: Mapping[str, Any]) -> list[Any]:
    low, high = found["interval"] or (None, None)
    return [found.get("before"), found.get("after"), found["difference"], low, high, found.get("mdd")]
