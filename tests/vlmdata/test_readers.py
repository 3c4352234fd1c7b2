from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rawfiles import CAULDRON, cauldron_rows, encoded, food_schema, image, write_parquet

from vlmdata import json_rows, readers
from vlmdata.errors import DataError, RecordError
from vlmdata.readers import Format, Input, Piece, inspect, read


def rows_of(path: Path, kind: Format, start: int = 0, stop: int | None = None) -> list[Any]:
    source = Input(str(path), path.name, kind, path.stat().st_size)
    contents = inspect(source)
    stop = contents.rows if stop is None else stop
    offset = contents.offsets[start] if contents.offsets is not None else 0
    found = list(read(source, [Piece(0, start, stop, offset)]))
    assert [number for number, _ in found] == list(range(start, stop))
    return [row for _, row in found]


def write_arrow(path: Path, rows: list[dict[str, Any]], stream: bool) -> Path:
    table = pa.Table.from_pylist(rows, schema=CAULDRON)
    opened = pa.ipc.new_stream(path, table.schema) if stream else pa.ipc.new_file(path, table.schema)
    with opened as writer:
        writer.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream"])
def test_any_range_of_columnar_files(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cauldron_rows(11)
    if kind == "parquet":
        path = write_parquet(tmp_path / "x.parquet", rows, CAULDRON, group=4)
    else:
        path = write_arrow(tmp_path / "x.arrow", rows, stream=kind == "arrow stream")
    monkeypatch.setattr(readers, "_BATCH_BYTES", 2000)
    fmt: Format = "parquet" if kind == "parquet" else "arrow"
    for start, stop in ((0, 11), (0, 0), (3, 9), (4, 8), (10, 11), (5, 6)):
        assert rows_of(path, fmt, start, stop) == rows[start:stop]
    source = Input(str(path), path.name, fmt, 1)
    several = list(read(source, [Piece(0, 1, 2), Piece(0, 3, 6), Piece(0, 10, 11)]))
    assert several == [(number, rows[number]) for number in (1, 3, 4, 5, 10)]


def test_label_names_come_from_the_features_in_the_schema(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "f.parquet", [{"image": image(), "label": 1}], food_schema(["a", "b"]))
    assert inspect(Input(str(path), "f", "parquet", 1)).label_names == ("a", "b")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(JSON_VALUES, max_size=8),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 50),
    bom=st.booleans(),
)
def test_array_is_read_from_any_element_on(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[Any],
    indent: int | None,
    ascii_only: bool,
    chunk: int,
    bom: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "surrogatepass") + b"\n")
    before = json_rows._CHUNK
    json_rows._CHUNK = chunk
    try:
        offsets = json_rows.array_offsets(path)
        assert len(offsets) == len(values) + 1
        for start in range(len(values)):
            found = list(json_rows.array_rows(path, offsets[start], len(values) - start))
            for got, wanted in zip(found, values[start:], strict=True):
                assert got == wanted or isinstance(got, RecordError)
    finally:
        json_rows._CHUNK = before


@pytest.mark.parametrize(
    "text", ["[1, 2", "[1 2]", "[1,]", "[,]", '[{"a": 1}, {"b": ]', "[1] x", '["a]', "", "{", '{\n "a": 1\n}', "null"]
)
def test_a_broken_array_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        if not json_rows.is_lines(path):
            json_rows.array_offsets(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_lines_that_are_broken_fail_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n"text"\n\xff\xfe\n  \n{"a": "\\ud800"}\n{"a": 2}')
    rows = rows_of(path, "jsonl")
    assert [row.reason if isinstance(row, RecordError) else row for row in rows] == [
        {"a": 1},
        "not_json",
        "text",
        "not_json",
        {"a": "\ud800"},
        {"a": 2},
    ]
    assert rows_of(path, "jsonl", 4, 6) == rows[4:6]


def test_one_object_a_line_may_be_called_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert json_rows.is_lines(path)
    path.write_text(' [{"a": 1}]')
    assert not json_rows.is_lines(path)


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000 + "\n{}\n")
    broken, good = rows_of(path, "jsonl")
    assert broken.reason == "not_json" and good == {}
    array = tmp_path / "deep.json"
    array.write_text("[" * 100_000)
    with pytest.raises(DataError, match="not valid JSON"):
        json_rows.array_offsets(array)


def test_folder_of_classes_and_of_captions(tmp_path: Path) -> None:
    for name in ("b_soup/1.jpg", "a_pie/2.PNG", "a_pie/.hidden.jpg", "a_pie/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    source = Input(str(tmp_path), "x", "folder", 0, str(tmp_path))
    contents = inspect(source)
    assert contents.columns == (frozenset({"image", "label"}),)
    assert contents.label_names == ("a_pie", "b_soup") and contents.rows == 2
    assert [row for _, row in read(source, [Piece(0, 0, 2)])] == [
        {"image": {"bytes": None, "path": "a_pie/2.PNG"}, "label": "a_pie"},
        {"image": {"bytes": None, "path": "b_soup/1.jpg"}, "label": "b_soup"},
    ]
    (tmp_path / "a_pie" / "2.txt").write_text("A pie.\n")
    (tmp_path / "b_soup" / "1.txt").write_bytes(b"\xff\xfe")
    first, second = (row for _, row in read(source, [Piece(0, 0, 2)]))
    assert first["text"] == "A pie." and second.reason == "bad_text"


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "captions.jsonl"])
def test_caption_files_name_the_images(tmp_path: Path, name: str) -> None:
    rows = 'file_name,text\n1.jpg,"A goal, at last"\n' if name.endswith("csv") else (
        '{"file_name": "1.jpg", "text": "A goal, at last"}\n'
    )
    (tmp_path / name).write_text(rows)
    kind: Format = "csv" if name.endswith("csv") else "jsonl"
    assert rows_of(tmp_path / name, kind) == [{"image": "1.jpg", "text": "A goal, at last"}]


def test_a_number_of_thousands_of_digits_is_a_fault_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"a": %s}, {"a": 1}]' % ("9" * 9000))
    broken, good = rows_of(tmp_path / "x.json", "json")
    assert broken.reason == "not_json" and good == {"a": 1}


def test_captions_with_a_stray_comma_are_a_fault_of_their_row(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.jpg,A goal, at last\n2.jpg,A save\n")
    broken, good = rows_of(tmp_path / "metadata.csv", "csv")
    assert broken.reason == "wrong_fields" and good == {"image": "2.jpg", "text": "A save"}


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PAR1 and then nothing that makes sense", "get it again"),
        (b'[{"a": 1}]', "get it again"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_files_that_are_not_what_they_are_called(tmp_path: Path, content: bytes, advice: str, kind: Format) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=advice) as caught:
        inspect(Input(str(path), path.name, kind, len(content)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_parquet_file_that_is_damaged_inside(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", cauldron_rows(8), CAULDRON)
    data = bytearray(path.read_bytes())
    data[100:400] = bytes(300)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as parquet"):
        rows_of(path, "parquet")


@pytest.mark.parametrize("kind", ["parquet", "arrow stream"])
def test_values_that_python_has_no_object_for_are_the_rows_fault_alone(tmp_path: Path, kind: str) -> None:
    words = pa.array([b"good", b"\xff\xfe", None], pa.binary())
    broken = pa.StringArray.from_buffers(3, *words.buffers()[1:], words.buffers()[0], words.null_count)
    nested = pa.ListArray.from_arrays([0, 1, 2, 3], pa.StructArray.from_arrays([broken], ["text"]))
    dates = pa.array([0, 2**30, 0], pa.date32())
    table = pa.table({"a": broken, "b": nested, "c": dates})
    path = tmp_path / f"x.{kind.split()[0]}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    rows = rows_of(path, "parquet" if kind == "parquet" else "arrow")
    assert [row["a"] for row in rows] == ["good", "\udcff\udcfe", None]
    assert [row["b"][0]["text"] for row in rows] == ["good", "\udcff\udcfe", None]
    assert rows[1]["c"] == 2**30 and str(rows[0]["c"]) == "1970-01-01"


def test_a_file_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no longer there"):
        inspect(Input(str(tmp_path / "gone.parquet"), "gone.parquet", "parquet", 1))
