from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmdata.columns import to_array, to_batch
from vlmdata.shards import shard_schema

PART = pa.struct([("type", pa.string()), ("text", pa.string())])
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(PART))]))
IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))

TEXTS = st.none() | st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=6)
NUMBERS = st.none() | st.integers(-(2**31), 2**31 - 1)


def lists(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(of, max_size=4)


def part() -> st.SearchStrategy[Any]:
    return st.none() | st.fixed_dictionaries({}, optional={"type": TEXTS, "text": TEXTS})


@given(
    st.one_of(
        st.tuples(st.just(pa.string()), lists(TEXTS)),
        st.tuples(st.just(pa.binary()), lists(st.none() | st.binary(max_size=5))),
        st.tuples(st.just(pa.int32()), lists(NUMBERS)),
        st.tuples(st.just(pa.int64()), lists(NUMBERS)),
        st.tuples(st.just(PART), lists(part())),
        st.tuples(st.just(pa.list_(PART)), lists(st.none() | lists(part()))),
        st.tuples(st.just(pa.list_(pa.list_(pa.int64()))), lists(lists(lists(NUMBERS)))),
    )
)
def test_the_same_arrays_as_pyarrow_makes(case: tuple[pa.DataType, list[Any]]) -> None:
    kind, values = case
    made = to_array(values, kind)
    made.validate(full=True)
    assert made.type == kind and made.equals(pa.array(values, kind))
    assert made.null_count == sum(value is None for value in values)


def test_rows_of_shards() -> None:
    schema = shard_schema("messages", ("pie", "soup"))
    turn = {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]}
    rows = [
        {"id": "a", "images": [{"bytes": b"\xff\xd8", "path": None}], "messages": [turn], "label": 1, "source": "x",
         "image_sha256": ["00"], "image_size": [{"width": 2, "height": 3}]},
        {"id": "b", "images": [], "messages": [turn, turn], "meta": "{}"},
    ]  # fmt: skip
    batch = to_batch(rows, schema)
    assert batch.equals(pa.RecordBatch.from_pylist(rows, schema=schema))
    assert batch.schema.metadata == schema.metadata


def test_views_of_other_buffers_are_taken() -> None:
    data = b"0123456789"
    assert to_array([memoryview(data)[2:5], b"x"], pa.binary()).to_pylist() == [b"234", b"x"]


def test_what_is_not_of_the_kind_is_refused() -> None:
    with pytest.raises(AttributeError):
        to_array([1], pa.string())
    with pytest.raises(UnicodeEncodeError):
        to_array(["\ud800"], pa.string())
    with pytest.raises(OverflowError):
        to_array([2**40], pa.int32())
