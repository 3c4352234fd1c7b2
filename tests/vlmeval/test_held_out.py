"""Which part of a split is evaluated, and whether the model was trained on it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "vlmtrain"))

import colour_rows as rows  # noqa: E402

from vlmdata.errors import ConfigError, DataError, MissingError  # noqa: E402
from vlmdata.split import split_rows  # noqa: E402
from vlmeval import leaks, shardset  # noqa: E402
from vlmeval.run import evaluate  # noqa: E402
from vlmeval.task import load  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = rows.colours(20)
    for number, sample in enumerate(samples):
        sample.update(rows.sample(sample["id"], sample["messages"], [rows.picture((number, 9, 9))]))
    return rows.write(tmp_path_factory.mktemp("held") / "whole", samples)


@pytest.fixture(scope="module")
def parts(whole: Path) -> Path:
    split_rows(whole, whole.parent / "parts", "train=14,validation=3,test=3")
    return whole.parent / "parts"


def test_the_held_out_part_is_asked(parts: Path, tmp_path: Path) -> None:
    bench = load("vqa").open(parts, {}, None)
    assert bench.protocol["split"] == "test" and len(bench.items) == 3 and bench.folder == parts / "test"
    other = load("vqa").open(parts, {"split": "validation"}, None)
    assert other.protocol["split"] == "validation"
    assert not {item.images for item in bench.items} & {item.images for item in other.items}
    assert not [note for note in (*bench.notes, *other.notes) if "trained" in note]
    # No test part: the next one that is known.
    shutil.copytree(parts, tmp_path / "two", ignore=lambda _, names: [name for name in names if name == "test"])
    assert shardset.part(tmp_path / "two") == tmp_path / "two" / "validation"


def test_training_data_are_never_asked_unasked(parts: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "train", tmp_path / "one" / "train")
    with pytest.raises(ConfigError, match="has none of test, validation, .*: give --split NAME; valid: train"):
        load("vqa").open(tmp_path / "one", {}, None)
    for folder, settings in ((parts, {"split": "train"}), (parts / "train", {}), (tmp_path / "one" / "train", {})):
        bench = load("vqa").open(folder, settings, None)
        assert bench.protocol["split"] == "train"
        assert "The data are the part 'train' of their dataset" in bench.notes[0]
    with pytest.raises(MissingError, match="has no part 'dev'; valid: test, train, validation"):
        load("caption").open(parts, {"split": "dev"}, None)
    with pytest.raises(ConfigError, match="is one dataset, without parts, so --split test names none"):
        load("ocr").open(whole, {"split": "test"}, None)
    with pytest.raises((DataError, MissingError)):
        load("vqa").open(tmp_path / "nowhere", {}, None)
    assert "split" not in load("vqa").open(whole, {}, None).protocol


def test_images_come_from_the_part(parts: Path, tiny: Path, tmp_path: Path) -> None:
    report = evaluate("vqa", data=parts, model=str(tiny), max_answer_tokens=4, out=tmp_path / "out", quiet=True)
    assert report["coverage"]["complete"] and report["coverage"]["expected"] == 3


def run(folder: Path, data: list[Path], watched: tuple[Path, ...] = ()) -> Path:
    """A run folder that says what it was trained on, as vlmtrain writes it."""

    def origin(place: Path) -> dict[str, Any]:
        digest = hashlib.sha256((place / "manifest.json").read_bytes()).hexdigest()
        return {"name": place.name, "manifest_sha256": digest, "rows": 1}

    folder.mkdir()
    about = {"data": [origin(place) for place in data], "eval_data": [origin(place) for place in watched]}
    (folder / "vlmtrain.json").write_text(json.dumps(about))
    return folder


def test_what_training_and_evaluation_share(parts: Path, whole: Path, tmp_path: Path) -> None:
    honest = leaks.overlap({"adapter": str(run(tmp_path / "a", [parts / "train"]))}, parts / "test")
    assert honest == {"trained_on": ["train"], "checked": ["train"], "images": 3, "shared": 0, "notes": []}
    same = leaks.overlap({"model": str(run(tmp_path / "b", [parts / "test"]))}, parts / "test")
    assert same["shared"] == same["images"] == 3
    assert same["notes"][0].startswith("All 3 images of these data are images the model was trained on (test)")
    # Trained on all of it, before it was split; and the other way round, trained on a part and asked all of it.
    before = leaks.overlap({"adapter": str(run(tmp_path / "c", [whole]))}, parts / "test")
    assert before["shared"] == 3 and before["checked"] == ["whole"]
    after = leaks.overlap({"adapter": str(run(tmp_path / "d", [parts / "train"]))}, whole)
    assert after["shared"] == 14 and after["notes"][0].startswith("14 of 20 images of these data")
    watched = leaks.overlap({"adapter": str(run(tmp_path / "e", [parts / "train"], (parts / "test",)))}, parts / "test")
    assert watched["shared"] == 0 and "watched on these data" in watched["notes"][0]


def test_training_data_that_are_not_there_are_not_checked(parts: Path, tmp_path: Path) -> None:
    far = rows.write(tmp_path / "elsewhere" / "deep" / "far", rows.colours(2))
    found = leaks.overlap({"adapter": str(run(tmp_path / "a", [far]))}, parts / "test")
    assert found["checked"] == [] and found["shared"] == 0 and found["trained_on"] == ["far"]
    assert leaks.overlap({"adapter": str(tmp_path)}, parts / "test") == {}
    assert leaks.overlap({"adapter": str(tmp_path / "a")}, None) == {}
    (tmp_path / "a" / "vlmtrain.json").write_text("{")
    assert leaks.overlap({"adapter": str(tmp_path / "a")}, parts / "test") == {}


def test_the_report_tells_of_a_leak(parts: Path, tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    shutil.copy(run(tmp_path / "run", [parts / "test"]) / "vlmtrain.json", model)
    report = evaluate("vqa", data=parts, model=str(model), max_answer_tokens=4, out=tmp_path / "out", quiet=True)
    assert report["overlap"] == {"trained_on": ["test"], "checked": ["test"], "images": 3, "shared": 3}
    assert "All 3 images of these data are images the model was trained on" in (tmp_path / "out/report.md").read_text()
