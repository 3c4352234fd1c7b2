from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rawfiles import CAULDRON, cauldron_rows, encoded, write_parquet

from vlmdata.atomic import sha256_file
from vlmdata.convert import Conversion, convert
from vlmdata.validate import validate


@pytest.fixture
def done(tmp_path: Path) -> Conversion:
    return convert("the_cauldron", write_parquet(tmp_path / "x.parquet", cauldron_rows(4), CAULDRON), tmp_path / "out")


def problems(done: Conversion) -> list[str]:
    return [str(problem) for problem in validate(done.out)]


def rewrite(done: Conversion, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change rows of the first shard as somebody would who also corrects its hash."""
    path = done.out / done.manifest.shards[0].name
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    shard = replace(done.manifest.shards[0], sha256=sha256_file(path))
    replace(done.manifest, shards=(shard,)).write(done.out)


def test_a_sound_dataset_has_no_problem(done: Conversion) -> None:
    assert problems(done) == []


def test_changed_bytes_are_found(done: Conversion) -> None:
    path = done.out / done.manifest.shards[0].name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    assert any("sha256 differs" in problem for problem in problems(done))


def test_missing_extra_and_broken_files(done: Conversion) -> None:
    path = done.out / done.manifest.shards[0].name
    (done.out / "data-00001-of-00002.parquet").write_bytes(path.read_bytes())
    path.write_bytes(b"PAR1")
    found = problems(done)
    assert any("not in the manifest" in problem for problem in found)
    assert any("cannot be read" in problem for problem in found)
    path.unlink()
    assert any("not in the folder" in problem for problem in problems(done))


def test_counts_that_do_not_add_up(done: Conversion) -> None:
    values = json.loads((done.out / "manifest.json").read_text())
    values["rows"]["kept"] -= 1
    values["records"] += 1
    (done.out / "manifest.json").write_text(json.dumps(values))
    (done.out / "rejects.jsonl").write_text("{}\n")
    found = "\n".join(problems(done))
    assert "rows do not add up" in found and "5 records" in found and "rejects.jsonl: has 1 rows" in found


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("id", "x.parquet:1", "the id stands in two rows"),
        ("image_sha256", [], "different lengths"),
        ("image_sha256", ["0" * 64, "0" * 64], "another sha256"),
        ("image_size", [{"width": 1, "height": 1}] * 2, "its row says 1x1"),
        ("images", [{"bytes": None, "path": "x"}] * 2, "has no bytes"),
        ("images", [{"bytes": encoded()[:200], "path": None}] * 2, "cannot be decoded"),
        ("images", [{"bytes": encoded("L"), "path": None}] * 2, "of mode L"),
        ("messages", [], "no_messages"),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "image_count"),
        ("messages", [{"role": "boss", "content": [{"type": "text", "text": "x"}]}], "unknown_role"),
    ],
)
def test_rows_that_break_a_rule_are_named(done: Conversion, field: str, value: Any, says: str) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[0][field] = value

    rewrite(done, change)
    found = problems(done)
    assert any(says in problem for problem in found), found
    assert all("x.parquet:0" in problem or "x.parquet:1" in problem for problem in found)


def test_a_schema_without_features_is_found(done: Conversion) -> None:
    path = done.out / done.manifest.shards[0].name
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert any("another schema" in problem for problem in problems(done))
