"""Published figures that stand beside one's own, and where a run was scored otherwise than they were.

The rows are data, ``data/published.json``: each with its source and with how it was come by. Only figures that were
found in their source are there; a cell that was not published stays empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from vlmeval import official

__all__ = ["Row", "beside", "rows", "warnings"]


@dataclass(frozen=True, slots=True)
class Row:
    """One published result.

    Attributes:
        name: of the model, as published.
        figures: metric, or group.metric, to its value in percent.
        source: title and address.
        protocol: how the figures were come by, as far as the source says.
    """

    name: str
    figures: Mapping[str, float]
    source: str
    protocol: str


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Any]:
    text = files("vlmeval").joinpath("data", "published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def rows(task_name: str) -> list[Row]:
    """The published results of a task, in the order of their sources; none where none are known."""
    return [Row(**row) for row in _shipped().get(task_name, {}).get("rows", ())]


def beside(task_name: str, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a report shows beside its own figures; None where nothing is published for what was asked.

    Returns:
        ``columns``: key, group and metric of each figure that is there; ``rows``: name, figures, source and protocol;
        ``own``: this run's figures under the same keys; ``warnings``: where this run differs. Rows are left out, and a
        warning says so, where the data are not the official ones.
    """
    if report.get("task_file"):
        return None
    keys = {key: where for row in rows(task_name) for key in row.figures if (where := _asked(task_name, report, key))}
    if not keys:
        return None
    warned = warnings(report)
    if _other_data(report):
        return {"columns": [], "rows": [], "own": {}, "warnings": warned}
    shown = []
    for row in rows(task_name):
        figures = {key: value for key, value in row.figures.items() if key in keys}
        if figures:
            shown.append({"name": row.name, "figures": figures, "source": row.source, "protocol": row.protocol})
    return {
        "columns": [{"key": key, "group": group, "metric": metric} for key, (group, metric) in keys.items()],
        "rows": shown,
        "own": {key: _own(report, *where) for key, where in keys.items()},
        "warnings": warned,
    }


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Where a run differs from the published ones, a sentence each; empty for a task without published figures."""
    if not rows(report["task"]):
        return []
    strange = _other_data(report)
    if strange:
        what = "is not the official file" if len(strange) == 1 else "are not the official files"
        return [
            f"Published figures are left out: {', '.join(strange)} {what}, so this is another benchmark than the "
            f"published {report['task'].upper()}."
        ]
    coverage, protocol = report["coverage"], report["protocol"]
    found = []
    if not coverage["complete"]:
        found.append(f"This run is PARTIAL, {coverage['answered']} of {coverage['expected']} items; published are all.")
    return [*found, *_asked_otherwise(protocol["answers"]), *_scored_otherwise(report, protocol)]


def _asked_otherwise(source: Mapping[str, Any]) -> list[str]:
    found = []
    if source.get("prompt_suffix"):
        found.append(
            f"Every prompt was followed by {source['prompt_suffix']!r}; the official questions are asked as they are."
        )
    if source.get("answers") == "logits":
        found.append("Answers were decided by first-token probabilities; published are words that models wrote.")
    return found


def _scored_otherwise(report: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    found = []
    if "generative" in report["counts"] and (protocol.get("nouns"), protocol.get("synonyms")) != ("official",) * 2:
        found.append(
            f"Nouns were found by the {protocol.get('nouns')} engine with synonyms {protocol.get('synonyms')}; "
            "published CHAIR, Cover, Hal and Cog come from nltk's tagger and spaCy's en_core_web_lg."
        )
    rule, unread = protocol.get("read_answers"), protocol.get("unread", {})
    if rule == "word" and "none" in unread and unread["none"] != unread["word"]:
        found.append(
            f"Answers were read by the word rule; the official script takes exactly Yes and No and could not read "
            f"{unread['none']} of {unread['of']} answers."
        )
    if rule == "word" and unread.get("otherwise"):
        found.append(
            f"Answers were read by the word rule; the official script reads {unread['otherwise']} of them otherwise."
        )
    return found


def _other_data(report: Mapping[str, Any]) -> list[str]:
    """Files that were read and are not the official ones, of those that decide what is asked and what is right."""
    defining = _shipped().get(report["task"], {}).get("defining", ())
    digests, read = official.digests(report["task"]), report["protocol"]["data"]
    if not any(name in read for name in defining):
        return sorted(read)[:1]
    return [name for name in defining if name in read and read[name] != digests[name]]


def _asked(task_name: str, report: Mapping[str, Any], key: str) -> tuple[str, str] | None:
    """Group and metric of a published figure; None where the group was not asked."""
    group, dot, metric = key.rpartition(".")
    group = group if dot else _shipped()[task_name]["groups"][key]
    return (group, metric) if report["n"].get(group) else None


def _own(report: Mapping[str, Any], group: str, metric: str) -> float | None:
    """This run's figure as the report shows it: the official rounding where there is one."""
    rounded: float | None = report.get("official", {}).get(group, {}).get(metric)
    if rounded is not None:
        return rounded
    for column in ("exact", "rates"):
        value: float | None = report.get(column, {}).get(group, {}).get(metric, {}).get("value")
        if value is not None:
            return value
    return None
