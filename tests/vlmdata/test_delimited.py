from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rawfiles import encoded

from vlmdata.convert import convert
from vlmdata.delimited import header, row_offsets, rows
from vlmdata.errors import DataError, RecordError
from vlmdata.shards import open_shards


def written(folder: Path, text: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def all_rows(path: Path) -> list[Any]:
    offsets = row_offsets(path)
    return list(rows(path, offsets[0], len(offsets) - 1))


def test_cells_stay_text_and_empty_ones_are_null(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffid, name ,x\r\n007,NA,1e5\r\n,null,\r\n\r\n1.50\r\n")
    assert header(path) == ("id", "name", "x")
    assert all_rows(path) == [
        {"id": "007", "name": "NA", "x": "1e5"},
        {"id": None, "name": "null", "x": None},
        {"id": "1.50", "name": None, "x": None},
    ]


def test_tabs_and_line_ends_in_cells(tmp_path: Path) -> None:
    path = written(tmp_path, 'a\tb\n"x\ny"\t"says ""hi"", then goes"\nz\t\n', "x.TSV")
    assert all_rows(path) == [{"a": "x\ny", "b": 'says "hi", then goes'}, {"a": "z", "b": None}]


def test_a_bad_line_is_that_rows_fault_with_its_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, b"a,b\n1,2,3\n4,5,\n\xe9,6\n7,8\n")
    long, padded, latin, good = all_rows(path)
    assert isinstance(long, RecordError) and (long.reason, long.raw) == ("wrong_fields", b"1,2,3\n")
    assert padded == {"a": "4", "b": "5"}
    assert isinstance(latin, RecordError) and (latin.reason, latin.raw) == ("bad_text", b"\xe9,6\n")
    assert good == {"a": "7", "b": "8"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "expected a header line"),
        (b"a,,b\n", "column without a name"),
        (b"a,b,a\n", "'a' twice"),
        (b"\xe9\n1\n", "UTF-8"),
        (b'a,b\n"' + b"x" * 200_000, "never closed"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: bytes, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError) as caught:
        header(path)
        row_offsets(path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6) | st.sampled_from(
    ['"', ",", "\n", "\r\n", " ", "", '""', "\t"]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.lists(st.tuples(CELL, CELL), max_size=6), start=st.integers(0, 6), count=st.integers(0, 6))
def test_any_table_is_read_from_any_row_on(
    tmp_path: Path, table: list[tuple[str, str]], start: int, count: int
) -> None:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerows([("a", "b"), *table])
    path = written(tmp_path, sink.getvalue())
    offsets = row_offsets(path)
    assert len(offsets) == len(table) + 1
    expected = [{"a": a or None, "b": b or None} for a, b in table]
    assert list(rows(path, offsets[0], len(table))) == expected
    if start < len(table):
        assert list(rows(path, offsets[start], count)) == expected[start : start + count]


def test_a_table_becomes_the_same_shards_in_pieces_as_in_one(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(encoded())
    lines = [f'photos/1.jpg,"What is, {number}?\nSay.",{number:03}' for number in range(40)]
    lines[7] = "photos/1.jpg,a,b,c"
    lines[9] = "../1.jpg,a,b"
    path = written(tmp_path, "file,q,label\n" + "\n".join(lines) + "\n")
    columns = "image=file,question=q,answer=label"
    whole = convert("table", path, tmp_path / "whole", columns=columns)
    parts = convert("table", path, tmp_path / "parts", columns=columns, shard_size="1MB")
    assert len(parts.manifest.shards) > 3
    assert whole.rejected == parts.rejected == {"wrong_fields": 1, "path_outside_root": 1}
    one, many = (list(open_shards(done.out).rows(["id", "messages"])) for done in (whole, parts))
    assert one == many and len(one) == 38
    assert one[0]["messages"][1]["content"][0]["text"] == "000"
