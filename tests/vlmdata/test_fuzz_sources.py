from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rawfiles import encoded

from vlmdata.errors import RecordError
from vlmdata.images import ImagePolicy, store
from vlmdata.reasons import REASONS
from vlmdata.records import Provenance, Record, Sample
from vlmdata.shards import shard_schema, to_row
from vlmdata.source import Options, kind_of, load, names, records

PIXELS = encoded()
STORED = store(PIXELS, ImagePolicy())
SURROGATE = "\ud800"
KEYS = [
    "role", "content", "from", "value", "type", "text", "bytes", "path", "user", "assistant", "source", "question",
    "chosen", "rejected", "image", "url",
]  # fmt: skip
WORDS = ["user", "human", "gpt", "assistant", "system", "tool", "<image>", "<image>Who?", "a.jpg", "text", "image",
         "", " ", SURROGATE, "../x", "/etc/passwd", "https://x.org/a.jpg", "data:image/png;base64,!", "\x00",
         '{"question": "Q", "chosen": "A", "rejected": "B"}', "[", "{}"]  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 2**70, 10**400, 10**4000, float("nan"), float("inf"), 1.5, b"", b"\xff\xd8", PIXELS])
    | st.sampled_from(WORDS)
    | st.text(st.characters(codec=None, exclude_categories=()), max_size=6)
)
WILD = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.none() | st.integers(0, 3), inner, max_size=4)
    ),
    max_leaves=10,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", None, 7, "gpt"]),
        "content": st.sampled_from(["<image>Hi", "Hi", "Yo", "", None, SURROGATE]) | WILD,
        "from": st.sampled_from(["human", "gpt", "observation", None]),
        "value": st.sampled_from(["<image>Hi", "Yo", None]) | WILD,
    },
)
PHOTO = st.sampled_from([{"bytes": PIXELS, "path": None}, "a.jpg", {"bytes": None, "path": "a.jpg"}, PIXELS])
ASKED = [{"role": "user", "content": "<image>Hi"}]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
CHAT = st.sampled_from([TALK, ASKED, [*ASKED, {"role": "assistant", "content": "Yo"}]])
LIKELY = {
    "messages": CHAT | st.lists(TURN, max_size=4),
    "conversations": CHAT | st.lists(TURN, max_size=4),
    "image": PHOTO,
    "images": PHOTO | st.lists(PHOTO, max_size=3),
    "texts": st.lists(st.just({"user": "Hi", "assistant": "Yo", "source": SURROGATE}), max_size=3),
    "chosen": st.just("A") | st.sampled_from(["A", "B", "<image>"]) | TURN | st.lists(TURN, max_size=2),
    "rejected": st.just("B") | st.sampled_from(["A", "B"]) | TURN | st.lists(TURN, max_size=2),
    "rejected_messages": CHAT | st.lists(TURN, max_size=4),
    "label": st.sampled_from([0, "waffles", 3, 10**4000]),
    "history": st.lists(st.lists(st.sampled_from(["a", "b", None, SURROGATE]), max_size=3), max_size=2),
}
TEXT = st.just("Hi") | st.sampled_from(
    ["Hi", "<image>Hi", "Yo", "", SURROGATE, '{"question": "Q", "chosen": "A", "rejected": "B"}']
)


def row_of(name: str) -> st.SearchStrategy[dict[Any, Any]]:
    """Rows of a source's fields, more often right than wrong, with fields of others and keys that are no text."""
    source = load(name)
    extras = ["id", "tools", "objects", "idx", "videos", SURROGATE, "extra"]
    fields = {field: LIKELY.get(field, TEXT) | LIKELY.get(field, TEXT) | WILD for field in [*source.fields, *extras]}
    needed = st.sampled_from(source.alternatives).flatmap(
        lambda columns: st.fixed_dictionaries({field: LIKELY.get(field, TEXT) for field in sorted(columns)})
    )
    changes = st.dictionaries(st.sampled_from(sorted(fields)), st.just(None), max_size=3).flatmap(
        lambda chosen: st.fixed_dictionaries({field: fields[field] for field in chosen})
    )
    odd = st.dictionaries(st.none() | st.integers(0, 2), SCALARS, max_size=1)
    wild = st.dictionaries(st.sampled_from(sorted(fields)), WILD, max_size=6)
    return needed | st.builds(lambda a, b, c: {**a, **b, **c}, needed, changes, odd) | wild


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
@pytest.mark.parametrize("name", names())
def test_wild_rows_become_records_that_can_be_stored_or_a_counted_reject(name: str, data: st.DataObject) -> None:
    source = load(name)
    row = data.draw(row_of(name))
    kind = kind_of(source, frozenset(map(str, row))) or source.kind
    options = Options(
        config=data.draw(st.sampled_from([None, "geomverse"])),
        image_position=data.draw(st.sampled_from(["first", "last"])),
        turns=data.draw(st.sampled_from(["keep", "split"])),
        prompt=data.draw(st.sampled_from([None, "", "What?"])),
        kind=kind,
    )
    try:
        made = records(source, row, "file:0", options)
    except RecordError as error:
        assert error.reason in REASONS, error.reason
        assert "\n" not in error.reason
        return
    assert_stored(made, kind)


def assert_stored(made: list[Record], kind: str) -> None:
    where = Provenance("test", None, None, "file", 0)
    rows = [to_row(record, [STORED] * len(record.images), "none", where) for record in made]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=shard_schema(kind, ("a", "b"))), sink)
    read = pq.read_table(sink).to_pylist()
    assert [row["id"] for row in read] == [record.id for record in made]
    for row, record in zip(read, made, strict=True):
        texts = (
            {"messages": record.messages}
            if isinstance(record, Sample)
            else {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
        )
        for field, messages in texts.items():
            assert row[field] == [message.to_json() for message in messages]


@pytest.mark.parametrize("name", names())
def test_the_likely_rows_are_not_all_rejected(name: str) -> None:
    """The wild test would prove nothing if every row it draws were refused."""
    kept = 0

    @settings(max_examples=80, deadline=None, database=None, derandomize=True)
    @given(row=row_of(name))
    def count(row: dict[Any, Any]) -> None:
        nonlocal kept
        try:
            kept += bool(load(name).convert(row, "file:0", Options()))
        except RecordError:
            pass

    count()
    assert kept


@pytest.mark.parametrize("name", names())
def test_a_number_that_cannot_even_be_printed_is_no_bug(name: str) -> None:
    source = load(name)
    refused = 0
    for field in sorted(source.fields):
        row: dict[str, Any] = dict.fromkeys(source.alternatives[0], "Hi")
        for value in ([{"type": 10**5000, "from": 10**5000, "text": 10**5000}], 10**5000):
            try:
                assert_stored(source.convert(row | {field: value}, "file:0", Options()), source.kind)
            except RecordError as error:
                assert error.reason in REASONS and len(str(error)) < 1000
                refused += 1
    assert refused
