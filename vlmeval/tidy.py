"""A comparison as data: one JSON object with everything, one CSV table with a line for each figure.

JSON: ``task``; ``order`` (names, best first); ``runs`` (``name`` and, from its report, ``coverage``, ``official``,
``exact``, ``rates``, ``headline``); ``pairs`` (all of ``Pair`` but the texts: ``one``, ``other``, ``common``,
``images``, ``same``, ``mcnemar``, ``differences``, ``by_facet``, ``reading``, ``probabilities``, and ``flips``: ``id``,
``groups``, ``facets``, ``prompt``, ``target``, the responses of ``one`` and ``other``, ``change``); ``sentences``;
``notes``.

CSV: ``COLUMNS``, a line for each difference of each pair; lines of a group have an empty facet and value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmeval.pairs import Pair

if TYPE_CHECKING:
    from vlmeval.compare import Comparison

__all__ = ["COLUMNS", "to_csv", "to_json"]

COLUMNS = (
    "task", "one", "other", "group", "facet", "value", "metric", "n", "images", "before", "after", "difference", "low",
    "high", "se", "mdd", "images_needed", "p", "p_holm", "verdict", "right_to_wrong", "wrong_to_right", "mcnemar_p",
    "clustered_p", "clustered_p_holm", "small", "headline",
)  # fmt: skip


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison but the texts, which stand in the runs' own files."""
    keep = ("coverage", "official", "exact", "rates", "headline")
    return {
        "task": comparison.task.name,
        "order": list(comparison.order),
        "runs": [
            {"name": run.name, **{key: run.report[key] for key in keep if key in run.report}} for run in comparison.runs
        ],
        "pairs": [_pair(pair) for pair in comparison.pairs],
        "sentences": list(comparison.sentences),
        "notes": list(comparison.notes),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    flips = [
        {
            "id": a["id"],
            "groups": a["groups"],
            "facets": a.get("facets", {}),
            "prompt": a.get("prompt"),
            "target": a.get("target"),
            "one": a.get("response"),
            "other": b.get("response"),
            "change": "right_to_wrong" if a["correct"] else "wrong_to_right",
        }
        for a, b in pair.flips
    ]
    return {
        "one": pair.one,
        "other": pair.other,
        "common": pair.common,
        "images": pair.images,
        "same": pair.same,
        "mcnemar": dict(pair.mcnemar),
        "differences": list(pair.differences),
        "by_facet": list(pair.by_facet),
        "reading": pair.reading,
        "probabilities": pair.probabilities,
        "flips": flips,
    }


def to_csv(comparison: Comparison) -> str:
    """A line for each difference of each pair, figures unrounded, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pair in comparison.pairs:
        for entry in (*pair.differences, *pair.by_facet):
            writer.writerow([_field(comparison, pair, entry, column) for column in COLUMNS])
    return text.getvalue()


def _field(comparison: Comparison, pair: Pair, entry: Mapping[str, Any], column: str) -> Any:
    test = {} if "facet" in entry else pair.mcnemar.get(entry["group"], {})
    low, high = entry["interval"] or (None, None)
    own = {
        "task": comparison.task.name,
        "one": pair.one,
        "other": pair.other,
        "low": low,
        "high": high,
        "mcnemar_p": test.get("p"),
    }
    found = own[column] if column in own else entry.get(column, test.get(column))
    return "" if found is None else found
