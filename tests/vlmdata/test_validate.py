from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rawfiles import CAULDRON, cauldron_rows, encoded, pairs, write_parquet

from vlmdata import validate as validating
from vlmdata.atomic import sha256_file
from vlmdata.convert import Conversion, convert
from vlmdata.errors import ConfigError
from vlmdata.shards import open_shards
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
        ("images", None, "is null or of another form"),
        ("image_sha256", None, "is null or of another form"),
        ("image_size", [None, None], "is null or of another form"),
        ("messages", [None], "is null or of another form"),
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
    # What the row says of its images is compared with the image log too.
    found = [problem for problem in found if not problem.startswith("images/")]
    assert all("x.parquet:0" in problem or "x.parquet:1" in problem for problem in found)


def test_a_schema_without_features_is_found(done: Conversion) -> None:
    path = done.out / done.manifest.shards[0].name
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert any("another schema" in problem for problem in problems(done))


def test_the_image_log_is_held_against_the_shard(done: Conversion) -> None:
    log = done.out / "images" / done.manifest.shards[0].name
    table = pq.read_table(log)
    pq.write_table(table.slice(1), log)
    found = "\n".join(problems(done))
    assert "images/" in found and "sha256 differs" in found and f"has {table.num_rows - 1} images" in found
    log.unlink()
    assert any("images/" in problem and "not in the folder" in problem for problem in problems(done))


def test_a_sample_is_decoded(done: Conversion, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = validating._pixels

    def counted(data: bytes, size: Any) -> Any:
        decoded.append(len(data))
        return original(data, size)

    monkeypatch.setattr(validating, "_pixels", counted)
    images = [len(row["images"]) for row in open_shards(done.out).rows(["images"])]
    for sample, rows in ((None, images), (0, []), (1, images[:1]), (2, images[::2]), (100, images)):
        decoded.clear()
        assert list(validate(done.out, sample=sample, workers=2)) == []
        assert len(decoded) == sum(rows)
    with pytest.raises(ConfigError, match="sample is -1"):
        list(validate(done.out, sample=-1))


def test_a_literal_mark_is_no_fault_of_trl_and_one_of_llamafactory(tmp_path: Path) -> None:
    rows = cauldron_rows(2)
    rows[1]["texts"] = pairs(("What does <image> mean?", "A mark."))
    done = convert("the_cauldron", write_parquet(tmp_path / "x.parquet", rows, CAULDRON), tmp_path / "out")
    (found,) = problems(done)
    assert "x.parquet:1: LLaMA-Factory counts 2 <image> marks, 1 of them literal in a text for 1 images" in found
    assert list(validate(done.out, rules=("trl",))) == []
