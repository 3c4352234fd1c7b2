"""What a comparison says, in words: a sentence for every figure, a few lines for every pair, what fails a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmeval.pairs import Pair
from vlmeval.task import Metric, Task

__all__ = ["amount", "changed", "largest", "p_value", "pair_lines", "signed", "standing", "words", "worse"]

Entry = Mapping[str, Any]

_FEW_LISTED = 6


def amount(value: float, percent: bool) -> str:
    """A size without its sign, to as many digits as it takes: 0.7, 0.04, 120."""
    digits = 1 if percent or abs(value) >= 1 else 3
    while digits < 4 and value and round(abs(value), digits) == 0:
        digits += 1
    return f"{abs(value):,.{digits}f}"


def signed(value: float, percent: bool) -> str:
    """A difference with its sign, none for zero."""
    text = amount(value, percent)
    sign = "" if not value or not text.strip("0.") else "+" if value > 0 else "\N{MINUS SIGN}"
    return sign + text


def _span(entry: Entry, percent: bool) -> str:
    return " to ".join(signed(edge, percent) for edge in entry["interval"])


def words(entry: Entry, metric: Metric) -> str:
    """The verdict on one difference as a sentence.

    Args:
        entry: of ``Pair.differences`` or ``Pair.by_facet``.
        metric: that it is about.
    """
    percent = metric.percent
    start = f"{metric.label} {signed(entry['difference'], percent)}"
    if entry["interval"] is None:
        reason = "all of one image" if entry["images"] < 2 else "undefined in too many of the resamples"
        return f"{start}: no interval, {reason}"
    if not entry["mdd"]:
        return f"{metric.label}: no difference at all" if not entry["difference"] else f"{start} in every resample"
    span = f"95 % interval {_span(entry, percent)}"
    sees = f"this comparison can see {amount(entry['mdd'], percent)} or more"
    if entry["verdict"] == "inside noise":
        more = (
            f"; to see this one takes about {_about(entry['images_needed'])} images" if entry["images_needed"] else ""
        )
        return f"{start} is inside noise: {span}; {sees}{more}"
    which = "a change" if entry["verdict"] == "changed" else entry["verdict"]
    return f"{start} is {which} beyond noise: {span}; {sees}"


def _about(count: int) -> str:
    """A count to two digits."""
    return f"{float(f'{count:.2g}'):,.0f}"


def p_value(value: float) -> str:
    """A probability to two digits."""
    return f"{value:.2g}" if value >= 1e-300 else "below 1e-300"


def pair_lines(task: Task, pair: Pair, *, brief: bool = False) -> list[str]:
    """What a pair shows: better and worse, what is inside noise, flips with their tests, readable answers.

    Args:
        task: of both runs.
        pair: what was found.
        brief: the first line only, for many runs.
    """
    start = f"{pair.one} → {pair.other}: "
    metrics = {metric.name: metric for metric in task.metrics}
    shown = [entry for entry in pair.differences if entry["headline"]] or list(pair.differences)
    parts = [
        f"{verdict} in {', '.join(_figure(entry, metrics) for entry in found)}"
        for verdict in ("better", "worse", "changed")
        if (found := [entry for entry in shown if entry["verdict"] == verdict])
    ]
    quiet = [entry for entry in shown if entry["verdict"] == "inside noise"]
    if not parts:
        parts = ["nothing beyond noise" if quiet else "nothing that has an interval"]
    lines = [start + "; ".join(parts)]
    if brief:
        return lines
    moved = [entry for entry in quiet if entry["mdd"] and metrics[entry["metric"]].better]
    if moved:
        seen = (_figure(entry, metrics, seen=True) for entry in moved)
        lines.append(f"{start}inside noise: {', '.join(seen)}")
    return [*lines, *_flips(task, pair, start), *_read(pair, start), *_sure(pair, start)]


def _figure(entry: Entry, metrics: Mapping[str, Metric], *, seen: bool = False) -> str:
    metric = metrics[entry["metric"]]
    more = f"; {amount(entry['mdd'], metric.percent)} or more would be seen" if seen else ""
    return f"{metric.label} {signed(entry['difference'], metric.percent)} ({_span(entry, metric.percent)}{more})"


def _flips(task: Task, pair: Pair, start: str) -> list[str]:
    if not pair.mcnemar:
        return []
    group, test = next(iter(pair.mcnemar.items()))
    return [
        f"{start}{test['right_to_wrong']} right→wrong, {test['wrong_to_right']} wrong→right of {test['n']} "
        f"({task.groups[group].lower()}), McNemar p = {p_value(test['p'])}, over images p = "
        f"{p_value(test['clustered_p'])}"
    ]


def _read(pair: Pair, start: str) -> list[str]:
    if pair.reading is None or not (pair.reading["unread_to_read"] or pair.reading["read_to_unread"]):
        return []
    gained, lost = len(pair.reading["unread_to_read"]), len(pair.reading["read_to_unread"])
    return [f"{start}{gained} answers became readable, {lost} unreadable"]


def _sure(pair: Pair, start: str) -> list[str]:
    found = pair.probabilities
    if found is None:
        return []
    span = f" ({_span(_points(found), True)})" if found["interval"] else ""
    return [
        f"{start}P(truth) {signed(100 * found['difference'], True)} points{span} over {found['n']} answers; "
        f"{found['moved']} answers stayed the same with a margin moved by 0.1 or more"
    ]


def _points(found: Entry) -> dict[str, Any]:
    return {"interval": [100 * edge for edge in found["interval"]]}


def changed(task: Task, pairs: Sequence[Pair]) -> list[str]:
    """How many headline differences stay beyond noise when it is counted how many were looked at."""
    tested = [e for pair in pairs for e in pair.differences if e["headline"] and e["p_holm"] is not None]
    beyond = [entry for entry in tested if entry["verdict"] not in ("inside noise", "unknown")]
    if len(tested) < 2 or not beyond:
        return []
    stay = sum(entry["p_holm"] <= 0.05 for entry in beyond)
    return [
        f"{len(beyond)} of {len(tested)} headline differences are beyond noise, {stay} of them also after Holm's "
        "correction for looking at all"
    ]


def largest(task: Task, pair: Pair, count: int = 10) -> list[dict[str, Any]]:
    """The values of facets whose first figure changed most, small cells last.

    Args:
        task: of both runs.
        pair: what was found.
        count: at most so many of each facet.

    Returns:
        Entries of ``Pair.by_facet``, facet by facet; of each facet at most ``count`` that changed at all.
    """
    from vlmeval.changes import primary

    found: dict[str, list[dict[str, Any]]] = {}
    for entry in pair.by_facet:
        metric = primary(task, entry["group"])
        if metric is not None and entry["metric"] == metric.name and entry["difference"]:
            found.setdefault(entry["facet"], []).append(entry)
    ordered = (sorted(entries, key=lambda e: (e["small"], -abs(e["difference"]))) for entries in found.values())
    return [entry for entries in ordered for entry in entries[:count]]


def standing(task: Task, reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of runs by the first headline figure they have, best first; runs without it last.

    Args:
        task: of all runs.
        reports: name to ``report.json``.
    """
    metrics = {metric.name: metric for metric in task.metrics}
    for group, name in task.headline:
        metric = metrics[name]
        figures = {
            run: report.get(metric.column, {}).get(group, {}).get(name, {}).get("value")
            for run, report in reports.items()
        }
        if any(figure is not None for figure in figures.values()):
            sign = 1 if metric.better == "low" else -1
            return sorted(reports, key=lambda run: (figures[run] is None, sign * (figures[run] or 0.0)))
    return list(reports)


def worse(pairs: Sequence[Pair], baseline: str, how: str) -> list[str]:
    """Headline figures that are worse than the baseline's, a line for each.

    Args:
        pairs: of a comparison.
        baseline: name of the run the others are held against.
        how: ``worse``: the 95 % interval of the difference lies on the worse side; ``worse-holm``: and its p-value is
            at most 0.05 after Holm's correction for all headline figures of all pairs.
    """
    return [
        f"{pair.other} against {pair.one}: {entry['words']}"
        for pair in pairs
        if pair.one == baseline
        for entry in pair.differences
        if entry["headline"] and entry["verdict"] == "worse" and (how == "worse" or entry["p_holm"] <= 0.05)
    ]
