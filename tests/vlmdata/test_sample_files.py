from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Image, load_dataset
from PIL import Image as Pictures

from vlmdata.errors import ConfigError, OutputExistsError
from vlmdata.sample.write import SampleWorld, write_sample


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SampleWorld:
    return write_sample(tmp_path_factory.mktemp("sample") / "raw", seed=3, rows=20, test_scenes=6)


def rows(world: SampleWorld, name: str, tmp_path: Path) -> list[dict[str, object]]:
    return list(load_dataset("parquet", data_files=str(world.out / name), split="train", cache_dir=str(tmp_path)))


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_files(world: SampleWorld, tmp_path: Path) -> None:
    again = write_sample(tmp_path / "again", seed=3, rows=20, test_scenes=6)
    assert hashes(again.out) == hashes(world.out)
    other = write_sample(tmp_path / "other", seed=4, rows=20, test_scenes=6)
    assert hashes(other.out) != hashes(world.out)


def test_the_summary_counts_what_was_written(world: SampleWorld) -> None:
    assert {name for name, _, _ in world.summary} == {
        "the_cauldron",
        "rlaif_v",
        "food101",
        "football",
        "ocr_json",
        "amber",
    }
    assert all((world.out / path).exists() for _, path, _ in world.summary)
    assert ("the_cauldron", "the_cauldron/shapes/train-00000-of-00001.parquet", 20) in world.summary


def test_raw_schemas(world: SampleWorld, tmp_path: Path) -> None:
    cauldron = rows(world, "the_cauldron/shapes/train-00000-of-00001.parquet", tmp_path)
    assert set(cauldron[0]) == {"images", "texts"}
    assert set(cauldron[0]["texts"][0]) == {"user", "assistant", "source"}
    pairs = rows(world, "the_cauldron/pairs/train-00000-of-00001.parquet", tmp_path)
    assert all(len(row["images"]) == 2 for row in pairs)
    preferences = rows(world, "rlaif_v/RLAIF-V-Dataset_000.parquet", tmp_path)
    assert list(preferences[0])[:5] == ["ds_name", "image", "question", "chosen", "rejected"]
    assert all(row["chosen"] != row["rejected"] and isinstance(row["idx"], str) for row in preferences)
    assert all(json.loads(row["origin_split"])["model"] for row in preferences)
    football = rows(world, "football/train-00000-of-00001.parquet", tmp_path)
    assert all(isinstance(row["image"], Pictures.Image) and "ball" in row["text"] for row in football)


def test_food101_keeps_its_class_names(world: SampleWorld, tmp_path: Path) -> None:
    path = str(world.out / "food101" / "train-00000-of-00001.parquet")
    loaded = load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path))
    assert isinstance(loaded.features["label"], ClassLabel) and isinstance(loaded.features["image"], Image)
    assert loaded.features["label"].names[3] == "pizza"


def test_plates_are_llamafactory_messages(world: SampleWorld) -> None:
    plates = json.loads((world.out / "ocr_json" / "plates.json").read_text())
    for entry in plates:
        text = "".join(turn["content"] for turn in entry["messages"] if turn["role"] == "user")
        assert text.count("<image>") == len(entry["images"]) == 1
        assert (world.out / "ocr_json" / entry["images"][0]).exists()
        assert set(json.loads(entry["messages"][1]["content"])) == {"Vehicle Sr No", "Engine No", "Model"}


def test_the_test_set_follows_amber(world: SampleWorld) -> None:
    folder = world.out / "amber"
    notes = json.loads((folder / "annotations.json").read_text())
    queries = json.loads((folder / "query" / "query_all.json").read_text())
    assert [note["id"] for note in notes] == list(range(1, len(notes) + 1)) == [query["id"] for query in queries]
    assert all((folder / "images" / query["image"]).exists() for query in queries)
    words = json.loads((folder / "relation.json").read_text())
    generative = [note for note in notes if note["type"] == "generative"]
    assert len(generative) == 6
    assert all(set(note["truth"]) | set(note["hallu"]) <= set(words) for note in generative)
    assert all(not set(note["truth"]) & set(note["hallu"]) for note in generative)
    for note in notes:
        if note["type"] in ("relation", "discriminative-relation"):
            assert note["truth"] == ("no" if note["type"] == "relation" else "yes")
    attributes = [note["truth"] for note in notes if "attribute" in note["type"]]
    assert attributes.count("yes") == attributes.count("no")
    parts = [
        len(json.loads((folder / "query" / f"query_{name}.json").read_text()))
        for name in ("generative", "discriminative-attribute", "discriminative-existence", "discriminative-relation")
    ]
    assert sum(parts) == len(queries)


def test_nothing_is_overwritten_unasked(world: SampleWorld, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_sample(world.out, rows=20)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("do not lose me")
    with pytest.raises(OutputExistsError, match="thesis.txt"):
        write_sample(mine, rows=20, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "do not lose me"
    with pytest.raises(ConfigError, match="at least 4"):
        write_sample(tmp_path / "small", rows=1)
