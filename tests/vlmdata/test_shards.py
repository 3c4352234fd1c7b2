"""Shards as other tools see them: datasets, TRL, pandas."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, load_dataset
from PIL import Image
from rawfiles import (
    CAULDRON,
    FOOTBALL,
    RLAIF,
    cauldron_rows,
    chat,
    food_schema,
    image,
    pairs,
    rlaif_row,
    write_json,
    write_parquet,
)
from trl.data_utils import prepare_multimodal_messages

from vlmdata import parquet
from vlmdata.convert import Conversion, convert
from vlmdata.errors import DataError, MissingError
from vlmdata.shards import open_shards, shard_schema
from vlmdata.validate import validate

REAL = Path(os.environ.get("VLM_REAL_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not beside this repository")


COLUMNS = "id images messages source licence provenance meta image_sha256 image_size".split()


def load(out: Path, cache: Path, **more: Any) -> Any:
    return load_dataset("parquet", data_files=str(out / "data-*.parquet"), split="train", cache_dir=str(cache), **more)


def prepared(row: dict[str, Any], column: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = prepare_multimodal_messages(row[column], images=row["images"])
    return messages


def trl_takes(done: Conversion, cache: Path) -> Any:
    """Every row through TRL's own preparation, as PIL images in the right places."""
    dataset = load(done.out, cache)
    assert len(dataset) == done.manifest.records
    column = "messages" if done.manifest.kind == "messages" else "prompt"
    for row in dataset:
        assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for picture in row["images"])
        assert [picture.size for picture in row["images"]] == [(s["width"], s["height"]) for s in row["image_size"]]
        parts = [part for message in prepared(row, column) for part in message["content"]]
        assert [part["image"] for part in parts if part["type"] == "image"] == row["images"]
        if column == "prompt":
            for answer in ("chosen", "rejected"):
                assert prepare_multimodal_messages(row[answer], images=[])[0]["role"] == "assistant"
    return dataset


def test_messages_shards(tmp_path: Path) -> None:
    rows = [*cauldron_rows(5), {"images": [], "texts": pairs(("No image?", "None."))}]
    raw = write_parquet(tmp_path / "x.parquet", rows, CAULDRON)
    for turns in ("keep", "split"):
        done = convert("the_cauldron", raw, tmp_path / turns, turns=turns, shard_size=3000)
        dataset = trl_takes(done, tmp_path / "cache")
        assert len(done.manifest.shards) > 1
        assert dataset.column_names == COLUMNS
        assert set(dataset[0]["messages"][0]["content"][0]) == {"type", "text"}
        assert [row["id"] for row in load(done.out, tmp_path / "cache", streaming=True)] == dataset["id"][:]


def test_preference_shards(tmp_path: Path) -> None:
    raw = write_parquet(tmp_path / "x.parquet", [rlaif_row(number) for number in range(3)], RLAIF)
    dataset = trl_takes(convert("rlaif_v", raw, tmp_path / "out"), tmp_path / "cache")
    assert {"prompt", "chosen", "rejected"} <= set(dataset.column_names)
    assert json.loads(dataset[1]["meta"])["idx"] == "1"


def test_label_is_a_class_label(tmp_path: Path) -> None:
    raw = write_parquet(tmp_path / "x.parquet", [{"image": image(), "label": 1}], food_schema(["a", "b"]))
    dataset = trl_takes(convert("food101", raw, tmp_path / "out"), tmp_path / "cache")
    assert dataset.features["label"] == ClassLabel(names=["a", "b"]) and dataset[0]["label"] == 1


def test_a_shard_without_a_kept_row_loads(tmp_path: Path) -> None:
    rows = [{"image": image(number), "text": "" if number < 4 else "x"} for number in range(8)]
    raw = write_parquet(tmp_path / "x.parquet", rows, FOOTBALL)
    done = convert("football", raw, tmp_path / "out", shard_size=pq.read_metadata(raw).row_group(0).total_byte_size)
    assert [shard.rows for shard in done.manifest.shards][0] == 0
    trl_takes(done, tmp_path / "cache")
    assert list(validate(done.out)) == []


def test_row_groups_are_capped_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 3000)
    raw = write_parquet(tmp_path / "x.parquet", cauldron_rows(12), CAULDRON)
    done = convert("the_cauldron", raw, tmp_path / "out")
    meta = pq.read_metadata(done.out / done.manifest.shards[0].name)
    images = [c for c in range(meta.num_columns) if meta.schema.column(c).path == "images.list.element.bytes"]
    assert meta.num_row_groups > 2
    for group in range(meta.num_row_groups):
        assert meta.row_group(group).column(images[0]).total_uncompressed_size < 4500
        assert meta.row_group(group).column(images[0]).statistics is None


def test_types_are_those_of_datasets() -> None:
    from datasets import Features

    for kind, names in (("messages", ()), ("messages", ("a", "b")), ("preference", ())):
        schema = shard_schema(kind, names)
        assert Features.from_arrow_schema(schema).arrow_schema.equals(schema)
        assert "large" not in str(schema)


def test_pandas_reads_them(tmp_path: Path) -> None:
    raw = write_parquet(tmp_path / "x.parquet", cauldron_rows(2), CAULDRON)
    done = convert("the_cauldron", raw, tmp_path / "out")
    table = pd.read_parquet(done.out / done.manifest.shards[0].name)
    assert table["images"][0][0]["bytes"] == cauldron_rows(1)[0]["images"][0]["bytes"]


def test_shards_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no folder"):
        open_shards(tmp_path / "none")
    with pytest.raises(DataError, match="never finished"):
        open_shards(tmp_path)
    raw = write_parquet(tmp_path / "x.parquet", cauldron_rows(2), CAULDRON)
    done = convert("the_cauldron", raw, tmp_path / "out")
    assert (open_shards(done.out).kind, len(open_shards(done.out))) == ("messages", 2)
    (done.out / done.manifest.shards[0].name).unlink()
    with pytest.raises(DataError, match="lacks data-00000"):
        open_shards(done.out)
    (done.out / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(DataError, match="schema 99"):
        open_shards(done.out)
    (done.out / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="cannot be read"):
        open_shards(done.out)


@needs_real
def test_real_conversations(tmp_path: Path) -> None:
    done = convert("ocr_json", REAL / "llamafactory" / "mllm_demo.json", tmp_path / "out")
    assert done.kept == done.read == 6 and done.manifest.images.passed == 8
    dataset = trl_takes(done, tmp_path / "cache")
    kinds = [[part["type"] for part in message["content"]] for message in dataset[0]["messages"]]
    assert kinds == [["image", "text"], ["text"], ["text", "image"], ["text"]]
    assert list(validate(done.out)) == []


@needs_real
def test_real_content_lists(tmp_path: Path) -> None:
    shutil.copytree(REAL / "llamafactory" / "mllm_demo_data", tmp_path / "root" / "data" / "mllm_demo_data")
    raw = REAL / "llamafactory" / "v1_multimodal_demo.jsonl"
    done = convert("ocr_json", raw, tmp_path / "out", image_root=tmp_path / "root")
    assert done.kept == done.read > 0
    trl_takes(done, tmp_path / "cache")


@needs_real
def test_real_photos(tmp_path: Path) -> None:
    questions = [json.loads(line) for line in (REAL / "photos" / "questions.jsonl").read_text().splitlines()]
    rows = [chat(f"<image>{row['question']}", "A photograph.", [row["image"]]) for row in questions]
    raw = write_json(tmp_path / "photos.json", rows)
    done = convert("ocr_json", raw, tmp_path / "out", image_root=REAL / "photos")
    assert done.kept == done.read == len(questions)
    trl_takes(done, tmp_path / "cache")
    assert list(validate(done.out)) == []
    folder = tmp_path / "classes" / "photo"
    shutil.copytree(REAL / "photos", folder)
    classes = convert("food101", tmp_path / "classes", tmp_path / "food", scale=0.25)
    assert classes.kept == len(list(folder.glob("*.jpg"))) and classes.manifest.label_names == ("photo",)
    assert classes.manifest.images.changes["scale"] == classes.kept
    trl_takes(classes, tmp_path / "cache")
