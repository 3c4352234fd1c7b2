"""JSON in a model's answer: cut out by its outermost braces, whatever stands around it."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["cut_json"]


def cut_json(text: str | None) -> dict[str, Any] | None:
    """The object between the first ``{`` and the last ``}`` of a text; None where there is none, or it is no JSON.

    The rule of the write-up on plates: prose or a code fence before and after is no fault of the answer.
    """
    start, stop = (text or "").find("{"), (text or "").rfind("}")
    if text is None or start < 0 or stop < start:
        return None
    try:
        found = json.loads(text[start : stop + 1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
