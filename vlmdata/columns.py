"""Python values to Arrow arrays, built from bytes and offsets.

The same arrays as ``pyarrow.array(values, type)`` gives, but images may be views of other buffers, which are copied
once, and pandas, which ``pyarrow.array`` imports to look at every list, stays out: that import takes longer than a
small conversion.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["to_array", "to_batch"]


def to_batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows as one batch; a missing field is null."""
    columns = [to_array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def to_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as an array; None is null.

    Args:
        values: texts, bytes-like objects, integers, lists of those, mappings of those, or None.
        kind: string, binary, an integer of 32 or 64 bits, or a list or struct of those.

    Raises:
        TypeError, UnicodeEncodeError, OverflowError: a value is not of the kind.
    """
    if pa.types.is_string(kind):
        return _of_bytes([None if value is None else value.encode() for value in values], kind)
    if pa.types.is_binary(kind):
        return _of_bytes(values, kind)
    if pa.types.is_list(kind):
        valid = _valid(values)
        lists = values if valid is None else [() if value is None else value for value in values]
        offsets = _offsets(map(len, lists))
        flat = to_array(list(chain.from_iterable(lists)), kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [valid, offsets], children=[flat])
    if pa.types.is_struct(kind):
        valid = _valid(values)
        held = values if valid is None else [{} if value is None else value for value in values]
        children = [to_array([value.get(field.name) for value in held], field.type) for field in kind]
        return pa.Array.from_buffers(kind, len(values), [valid], children=children)
    code = {"int64": "q", "int32": "i"}[str(kind)]
    valid = _valid(values)
    numbers = values if valid is None else [0 if value is None else value for value in values]
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(array(code, numbers).tobytes())])


def _of_bytes(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    valid = _valid(values)
    parts = values if valid is None else [b"" if value is None else value for value in values]
    return pa.Array.from_buffers(kind, len(values), [valid, _offsets(map(_size, parts)), pa.py_buffer(b"".join(parts))])


def _size(value: Any) -> int:
    return value.nbytes if isinstance(value, memoryview) else len(value)


def _offsets(lengths: Any) -> pa.Buffer:
    return pa.py_buffer(array("i", accumulate(lengths, initial=0)).tobytes())


def _valid(values: Sequence[Any]) -> pa.Buffer | None:
    """The validity bitmap; None where nothing is null."""
    if None not in values:
        return None
    bits = np.fromiter((value is not None for value in values), bool, len(values))
    return pa.py_buffer(np.packbits(bits, bitorder="little").tobytes())
