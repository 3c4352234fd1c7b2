"""Answers in JSON, field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlmeval.metrics.edits import collapsed
from vlmeval.metrics.json_answer import cut_json

__all__ = ["compared", "flat"]


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Fields of a JSON value by their path (``owner.name``, ``items.0``), each as a text with white space collapsed.

    An empty list or object is a field without text; null is the text ``null``.
    """
    if isinstance(value, Mapping):
        pairs = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        pairs = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {name: collapsed(value if isinstance(value, str) else json.dumps(value))}
    if not pairs:
        return {name: ""} if name else {}
    found: dict[str, str] = {}
    for key, inner in pairs:
        found |= flat(inner, f"{name}.{key}" if name else key)
    return found


def compared(answer: str | None, truth: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Counters and details of an answer whose truth is a JSON object.

    Returns:
        ``fields`` of the truth, ``fields_right`` among them, ``fields_extra`` that the answer has beyond them,
        ``json_read`` whether the answer holds an object at all; and for each field of the truth what was read, None
        where it is missing.
    """
    found = cut_json(answer)
    wanted, said = flat(truth), flat(found or {})
    counts = {
        "fields": float(len(wanted)),
        "fields_right": float(sum(said.get(name) == value for name, value in wanted.items())),
        "fields_extra": float(len(said.keys() - wanted.keys())),
        "json_asked": 1.0,
        "json_read": float(found is not None),
    }
    return counts, {name: said.get(name) for name in wanted}
