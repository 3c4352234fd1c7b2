"""What a row's ``meta`` says about it: the weight of its loss, or whether its answer is good.

Sources keep what else they know of a row as JSON in ``meta``; keys name the entry. Every row is looked at before any
model is loaded, so that one without the entry is named then and not in step 412.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlmdata.errors import DataError, choices

__all__ = ["label_of", "read_labels", "read_weights", "weight_of"]


def weight_of(row: Mapping[str, Any], key: str) -> float:
    """The number under a key of a row's ``meta``.

    Raises:
        ValueError: there is none, or it is negative, infinite or not a number.
    """
    value = _entry(row, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is {json.dumps(value)}, expected a number")
    # A whole number can be too large for a float.
    number = float(value) if abs(value) < 1e300 else math.inf
    if not (math.isfinite(value if isinstance(value, float) else number) and number >= 0):
        raise ValueError(f"is {value}, expected a number of at least 0")
    return number


def label_of(row: Mapping[str, Any], key: str) -> bool:
    """The true or false under a key of a row's ``meta``; 1 and 0 are as good.

    Raises:
        ValueError: there is none, or it is something else.
    """
    value = _entry(row, key)
    if value not in (0, 1):
        raise ValueError(f"is {json.dumps(value)}, expected true or false")
    return bool(value)


def read_weights(rows: Any, key: str) -> list[float]:
    """The weights of all rows.

    Args:
        rows: a dataset with columns ``id`` and ``meta``.
        key: of ``meta``.

    Raises:
        DataError: rows without one, the first of them named; or all are 0.
    """
    weights = _read(rows, key, weight_of, "weight_by")
    if not any(weights):
        raise DataError(f"weight_by {key}: it is 0 in all {len(weights)} rows, so nothing would be learned")
    return weights


def read_labels(rows: Any, key: str) -> list[bool]:
    """The labels of all rows, as :func:`read_weights` reads weights.

    Raises:
        DataError: rows without one, the first of them named.
    """
    return _read(rows, key, label_of, "label_by")


def _read(rows: Any, key: str, take: Callable[[Mapping[str, Any], str], Any], option: str) -> list[Any]:
    found: list[Any] = []
    faults: list[str] = []
    wrong = 0
    for batch in rows.select_columns(["id", "meta"]).iter(batch_size=1024):
        for name, meta in zip(batch["id"], batch["meta"], strict=True):
            try:
                found.append(take({"meta": meta}, key))
            except ValueError as error:
                wrong += 1
                if len(faults) < 3:
                    faults.append(f"{name!r}: {key} {error}")
    if wrong:
        more = " ..." if wrong > len(faults) else ""
        raise DataError(f"{option} {key}: {wrong} of {len(rows)} rows cannot be used: {'; '.join(faults)}{more}")
    return found


def _entry(row: Mapping[str, Any], key: str) -> Any:
    try:
        meta = json.loads(row["meta"] or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"cannot be read, meta is not JSON: {error}") from error
    if not isinstance(meta, Mapping) or key not in meta:
        keys: Sequence[str] = sorted(meta) if isinstance(meta, Mapping) else ()
        raise ValueError(f"is missing; meta has {choices(keys) if keys else 'nothing'}")
    return meta[key]
