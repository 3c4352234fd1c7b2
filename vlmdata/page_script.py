"""Data and scripts inside one HTML file, so that neither can become the other."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["digest", "script_json"]


def script_json(value: Any) -> str:
    """JSON that may stand in a ``<script>`` element: no text in it can end the element or open a comment.

    Numbers that are not finite, which JSON does not know, become null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(text: str) -> str:
    """The source of an inline script or style sheet as a content security policy names it: ``sha256-...``."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
