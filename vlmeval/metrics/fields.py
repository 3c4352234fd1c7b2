"""Answers in JSON, field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vlmeval.metrics.edits import collapsed
from vlmeval.metrics.json_answer import cut_json

__all__ = ["compared", "family", "flat", "json_object"]

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def json_object(text: str | None) -> dict[str, Any] | None:
    """The JSON object that a text is, as a whole, with at least one key; None for any other text."""
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Fields of a JSON value by their path (``owner.name``, ``items.0``), each as a text with white space collapsed.

    An empty list or object is a field without text; null is the text ``null``.
    """
    found: dict[str, str] = {}
    left = [(name, value)]
    # A loop, as an answer may be nested deeper than Python calls may be.
    while left:
        path, here = left.pop()
        if isinstance(here, Mapping):
            pairs = [(str(key), inner) for key, inner in here.items()]
        elif isinstance(here, list):
            pairs = [(str(index), inner) for index, inner in enumerate(here)]
        else:
            found[path] = collapsed(here if isinstance(here, str) else json.dumps(here))
            continue
        if not pairs and path:
            found[path] = ""
        left.extend((f"{path}.{key}" if path else key, inner) for key, inner in reversed(pairs))
    return found


def family(name: str) -> str:
    """A field's path without its place in lists, under which fields are counted together: ``items.*.price``."""
    return _INDEX.sub("*", name)


def compared(answer: str | None, truth: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any], dict[str, str]]:
    """Counters and details of an answer whose truth is a JSON object.

    Returns:
        Counters: ``fields`` of the truth, ``fields_said`` in the answer, ``fields_right`` that agree, ``fields_extra``
        that the answer has beyond the truth's, ``json_asked`` (1), ``json_read`` whether an object can be cut out of
        the answer, ``json_only`` whether the answer is nothing but it; for each field of the truth what was read, None
        where it is missing; and the fields beyond the truth's.
    """
    found = cut_json(answer)
    wanted, said = flat(truth), flat(found or {})
    extra = {name: value for name, value in said.items() if name not in wanted}
    counts = {
        "fields": float(len(wanted)),
        "fields_said": float(len(said)),
        "fields_right": float(sum(said.get(name) == value for name, value in wanted.items())),
        "fields_extra": float(len(extra)),
        "json_asked": 1.0,
        "json_read": float(found is not None),
        "json_only": float(found is not None and (answer or "").strip()[:1] + (answer or "").strip()[-1:] == "{}"),
    }
    return counts, {name: said.get(name) for name in wanted}, extra
