from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rawfiles import FOOTBALL, chat, encoded, food_schema, image, reject_lines, shard_bytes, write_json, write_parquet

from vlmdata.convert import convert, convert_rejects
from vlmdata.errors import ConfigError, DataError, RecordError
from vlmdata.rejects import pack_row, reject_row, unpack_row
from vlmdata.shards import open_shards
from vlmdata.validate import validate

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(max_size=9) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["$blob", "$object"]), inner)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_a_raw_row_comes_back(value: Any) -> None:
    assert unpack_row(*pack_row(value)) == value


def test_what_json_has_no_form_for_becomes_its_text() -> None:
    assert unpack_row(*pack_row({"day": date(2024, 5, 1)})) == {"day": "2024-05-01"}


def test_a_line_that_is_no_json_is_tried_again() -> None:
    assert unpack_row(None, [b'{"a": 1}']) == {"a": 1}
    assert isinstance(unpack_row(None, [b"{"]), RecordError)


def test_rejects_are_converted_once_the_cause_is_mended(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(encoded())
    rows = [chat("<image>What?", f"That {n}.", [name]) for n, name in enumerate(["a.jpg", "b.jpg", "c.jpg", "a.jpg"])]
    lines = [*map(json.dumps, rows), '{"messages": [']
    raw = tmp_path / "x.jsonl"
    raw.write_text("\n".join(lines))
    first = convert("ocr_json", raw, tmp_path / "first", image_root=photos, scale=0.5)
    assert first.rejected == {"image_not_found": 2, "not_json": 1}
    with pytest.raises(DataError, match="not one of 3 rows"):
        convert_rejects(first.out, tmp_path / "again", image_root=photos)
    (photos / "b.jpg").write_bytes(encoded(seed=1))
    second = convert_rejects(first.out, tmp_path / "second", image_root=photos)
    assert (second.read, second.kept) == (3, 1)
    (row,) = open_shards(second.out).rows()
    assert row["id"] == "x.jsonl:1" and row["provenance"]["file"] == "x.jsonl" and row["provenance"]["row"] == 1
    assert row["image_size"] == [{"width": 12, "height": 8}], "the scale of the first conversion"
    assert [line["id"] for line in reject_lines(second.out)] == ["x.jsonl:2", "x.jsonl:4"]
    assert list(validate(second.out)) == []


def test_the_bytes_of_rejected_rows_are_kept(tmp_path: Path) -> None:
    cut = encoded(size=(60, 40))[:-50]
    rows = [{"image": {"bytes": cut, "path": "x.jpg"}, "label": 1}, {"image": image(), "label": 0}]
    raw = write_parquet(tmp_path / "x.parquet", rows, food_schema(["pie", "soup"]))
    done = convert("food101", raw, tmp_path / "out", prompt="Which?")
    (kept,) = pq.read_table(done.out / "rejects").to_pylist()
    assert kept["blobs"] == [cut] and kept["reason"] == "image_truncated"
    assert unpack_row(kept["raw"], kept["blobs"]) == rows[0]
    mended = {**rows[0], "image": image(3)}
    raw_again, blobs = pack_row(mended)
    table = pq.read_table(done.out / "rejects").slice(0, 1).to_pylist()
    table[0] |= {"raw": raw_again, "blobs": blobs}
    (file,) = (done.out / "rejects").iterdir()
    write_parquet(file, table, pq.read_schema(file))
    again = convert_rejects(done.out, tmp_path / "again")
    (row,) = open_shards(again.out).rows()
    assert again.manifest.label_names == ("pie", "soup") and row["label"] == 1
    assert row["messages"][0]["content"][1]["text"] == "Which?"


def test_nothing_to_convert_again(tmp_path: Path) -> None:
    raw = write_parquet(tmp_path / "x.parquet", [{"image": image(), "text": "x"}], FOOTBALL)
    done = convert("football", raw, tmp_path / "out")
    assert not (done.out / "rejects").exists()
    with pytest.raises(DataError, match="no rejected rows"):
        convert_rejects(done.out, tmp_path / "again")
    with pytest.raises(ConfigError, match="settled"):
        convert_rejects(done.out, tmp_path / "again", split="test")


@pytest.mark.parametrize(("budget", "allowed"), [(3, True), (2, False), ("30%", True), ("29%", False), (0, False)])
def test_a_budget_of_rejects(tmp_path: Path, budget: int | str, allowed: bool) -> None:
    rows = [chat("Hi", "Yo" if number > 2 else " ") for number in range(10)]
    raw = write_json(tmp_path / "x.json", rows)
    if allowed:
        assert convert("ocr_json", raw, tmp_path / "out", max_rejects=budget).kept == 7
    else:
        with pytest.raises(DataError, match=r"more than \d rows are rejected \(blank_answer \d\).*--max-rejects"):
            convert("ocr_json", raw, tmp_path / "out", max_rejects=budget)
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_budget_holds_over_all_shards(tmp_path: Path) -> None:
    raw = write_json(tmp_path / "x.json", [chat("Hi", "Yo" if number % 2 else " ") for number in range(10)])
    with pytest.raises(DataError, match="more than 4 rows"):
        convert("ocr_json", raw, tmp_path / "out", shard_size=1, max_rejects=4)


@pytest.mark.parametrize("budget", ["many", "-1", "101%", "1.5"])
def test_budgets_that_cannot_work(tmp_path: Path, budget: str) -> None:
    raw = write_json(tmp_path / "x.json", [chat("Hi", "Yo")])
    with pytest.raises(ConfigError, match="max rejects"):
        convert("ocr_json", raw, tmp_path / "out", max_rejects=budget)
    assert not (tmp_path / "out").exists()


def test_rejects_do_not_change_with_the_workers(tmp_path: Path) -> None:
    raw = write_json(tmp_path / "x.json", [chat("Hi", "Yo" if number % 3 else " ") for number in range(12)])
    one = convert("ocr_json", raw, tmp_path / "one", shard_size=600_000)
    two = convert("ocr_json", raw, tmp_path / "two", shard_size=600_000, workers=2)
    assert len(one.manifest.shards) > 1
    assert shard_bytes(one.out / "rejects") == shard_bytes(two.out / "rejects") != {}
    assert shard_bytes(one.out) == shard_bytes(two.out)


def test_a_line_of_a_table_that_cannot_be_read_keeps_its_reason(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded())
    raw = tmp_path / "x.csv"
    raw.write_text("image,question,answer\n1.jpg,What?,That.\n1.jpg,one,two,three\n")
    first = convert("table", raw, tmp_path / "first")
    assert first.kept == 1 and sum(first.rejected.values()) == 1
    with pytest.raises(DataError, match="not one of 1 rows"):
        convert_rejects(first.out, tmp_path / "second")
    (line,) = reject_lines(tmp_path / "second")
    assert line["reason"] == next(iter(first.rejected)) and line["detail"] == reject_lines(first.out)[0]["detail"]


def test_a_picture_where_a_path_should_stand_is_not_repeated_in_the_detail() -> None:
    row, _ = reject_row("x.jsonl", 0, RecordError("image_not_found"), {"image": "A" * 9000}, "no file " + "A" * 9000)
    assert len(row["detail"]) < 600 and row["detail"].endswith(" ...") and "A" * 9000 in row["raw"]
