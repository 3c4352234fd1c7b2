from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from rawfiles import (
    CAULDRON,
    FOOTBALL,
    RLAIF,
    cauldron_rows,
    chat,
    encoded,
    food_schema,
    image,
    rlaif_row,
    write_json,
    write_parquet,
)

from vlmdata.errors import ConfigError, DataError, MissingError, VlmError
from vlmdata.inputs import Found, find
from vlmdata.source import load, parse_columns, renamed


def found(name: str, *raw: Path | str, **more: Any) -> Found:
    options = {"config": None, "split": None, "revision": None, "image_root": None, **more}
    return find(name, load(name), [str(path) for path in raw], **options)


def complaint(kind: type[VlmError], name: str, *raw: Path | str, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        found(name, *raw, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def cauldron(tmp_path: Path) -> Path:
    for config in ("geomverse", "ai2d"):
        for part in range(2):
            name = f"{config}/train-{part:05d}-of-00002-0123456789abcdef.parquet"
            write_parquet(tmp_path / "the_cauldron" / name, cauldron_rows(2), CAULDRON)
    return tmp_path / "the_cauldron"


def test_a_configuration_is_a_subfolder(cauldron: Path) -> None:
    geo = found("the_cauldron", cauldron, config="geomverse")
    assert geo.config == "geomverse"
    assert [Path(file.path).parent.name for file in geo.inputs] == ["geomverse"] * 2
    assert geo.inputs[0].name == "train-00000-of-00002-0123456789abcdef.parquet"


def test_a_configuration_is_asked_for_only_where_it_is_unknown(cauldron: Path) -> None:
    message = complaint(ConfigError, "the_cauldron", cauldron)
    assert "ai2d, geomverse" in message and "--config" in message
    assert "ai2d, geomverse" in complaint(ConfigError, "the_cauldron", cauldron, config="geomversum")
    assert found("the_cauldron", cauldron / "geomverse").config == "geomverse"
    first = next((cauldron / "ai2d").iterdir())
    assert found("the_cauldron", first).config == "ai2d"
    assert found("the_cauldron", first, config="mine").config == "mine"
    message = complaint(ConfigError, "football", cauldron, config="geomverse")
    assert "football has no configurations" in message


def test_two_uploads_of_one_shard_are_refused(cauldron: Path) -> None:
    write_parquet(cauldron / "ai2d" / "train-00001-of-00002-ffff000011112222.parquet", cauldron_rows(1), CAULDRON)
    assert "two uploads of one shard" in complaint(DataError, "the_cauldron", cauldron, config="ai2d")


@pytest.fixture
def food(tmp_path: Path) -> Path:
    row = {"image": image(), "label": 0}
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        write_parquet(tmp_path / "food" / "data" / f"{name}.parquet", [row], food_schema(["a", "b"]))
    return tmp_path / "food"


def test_splits_are_in_file_names(food: Path) -> None:
    assert [file.name for file in found("food101", food).inputs] == ["train-00000-of-00001.parquet"]
    assert "validation" in found("food101", food, split="validation").inputs[0].name
    assert "validation" in found("food101", food, split="val").inputs[0].name
    assert "train, validation" in complaint(ConfigError, "food101", food, split="test")
    validation = food / "data" / "validation-00000-of-00001.parquet"
    assert found("food101", validation).inputs[0].path == str(validation)
    assert "train" in complaint(ConfigError, "food101", validation, split="train")


def test_splits_are_folders_too(tmp_path: Path) -> None:
    data = Dataset.from_list([{"image": image(), "text": "x"}])
    DatasetDict({"train": data, "validation": data}).save_to_disk(str(tmp_path / "saved"))
    (train,) = found("football", tmp_path / "saved").inputs
    assert Path(train.path).parent.name == "train" and train.format == "arrow"
    (validation,) = found("football", tmp_path / "saved", split="validation").inputs
    assert Path(validation.path).parent.name == "validation"


def test_files_without_split_names_are_train(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "RLAIF-V-Dataset_000.parquet", [rlaif_row()], RLAIF)
    assert len(found("rlaif_v", path, split="train").inputs) == 1
    assert "give --split: train" in complaint(ConfigError, "rlaif_v", tmp_path, split="test")
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [rlaif_row()], RLAIF)
    assert found("rlaif_v", tmp_path).inputs[0].path == str(path)


def test_several_files_are_named_from_where_they_part(tmp_path: Path) -> None:
    paths = [write_parquet(tmp_path / name / "x.parquet", [rlaif_row()], RLAIF) for name in ("a", "b")]
    assert [file.name for file in found("rlaif_v", *paths).inputs] == ["a/x.parquet", "b/x.parquet"]
    assert "given twice" in complaint(ConfigError, "rlaif_v", paths[0], paths[0])


def test_the_wrong_source_says_columns_and_the_right_one(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [rlaif_row()], RLAIF)
    message = complaint(DataError, "the_cauldron", path)
    assert "expected columns images, texts, found chosen, ds_name" in message and "fit pairs, rlaif_v" in message
    rows = write_json(tmp_path / "x.json", [chat("Hi", "Yo")])
    assert "fit ocr_json, sharegpt, swift, trl" in complaint(DataError, "football", rows)
    odd = write_json(tmp_path / "odd.json", [{"question": "?"}])
    assert "--columns FIELD=COLUMN" in complaint(DataError, "football", odd)
    message = complaint(DataError, "ocr_json", odd)
    assert "columns messages, or columns conversations" in message and "found question" in message
    assert "no row that is an object" in complaint(DataError, "ocr_json", write_json(tmp_path / "n.json", [1, 2]))


def test_folders_are_read_as_what_fits(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(encoded())
    write_json(tmp_path / "plates.json", [chat("<image>Hi", "Yo", ["photos/1.jpg"])])
    (plates,) = found("ocr_json", tmp_path).inputs
    assert (plates.format, plates.images) == ("json", str(tmp_path))
    (classes,) = found("food101", tmp_path).inputs
    assert (classes.format, classes.images) == ("folder", str(tmp_path))
    (tmp_path / "photos" / "1.txt").write_text("A goal.")
    (captions,) = found("football", tmp_path / "photos").inputs
    assert captions.format == "folder"
    (tmp_path / "photos" / "metadata.jsonl").write_text('{"file_name": "1.jpg", "text": "Better."}\n')
    (captions,) = found("football", tmp_path / "photos").inputs
    assert (captions.format, captions.images) == ("jsonl", str(tmp_path / "photos"))


def test_split_folders_of_pictures(tmp_path: Path) -> None:
    for name in ("train/pie/1.jpg", "test/pie/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(encoded())
    assert found("food101", tmp_path).inputs[0].path == str(tmp_path / "train")
    (tmp_path / "classes.json").write_text("[]")
    assert found("food101", tmp_path, split="test").inputs[0].path == str(tmp_path / "test")
    (tmp_path / "classes.json").unlink()
    assert "it has: test, train" in complaint(ConfigError, "food101", tmp_path, split="validation")


def test_image_roots(tmp_path: Path) -> None:
    rows = write_json(tmp_path / "x.json", [chat("Hi", "Yo")])
    assert found("ocr_json", rows).inputs[0].images == str(tmp_path)
    assert found("ocr_json", rows, image_root="/root").inputs[0].images == "/root"
    path = write_parquet(tmp_path / "x.parquet", [{"image": image(), "text": "x"}], FOOTBALL)
    assert found("football", path).inputs[0].images is None


def test_a_folder_of_pictures_is_its_own_root(tmp_path: Path) -> None:
    (tmp_path / "pie").mkdir()
    (tmp_path / "pie" / "1.jpg").write_bytes(encoded())
    assert "--image-root makes no sense" in complaint(ConfigError, "food101", tmp_path, image_root="/root")


def test_what_is_not_there_or_not_data(tmp_path: Path) -> None:
    assert "no file or folder" in complaint(MissingError, "football", tmp_path / "none.parquet")
    (tmp_path / "notes.docx").write_bytes(b"x")
    assert ".parquet" in complaint(DataError, "football", tmp_path / "notes.docx")
    (tmp_path / "empty").mkdir()
    assert "holds no data" in complaint(DataError, "football", tmp_path / "empty")
    assert "no hub dataset" in complaint(ConfigError, "ocr_json")
    path = write_parquet(tmp_path / "x.parquet", [{"image": image(), "text": "x"}], FOOTBALL)
    assert "--revision" in complaint(ConfigError, "football", path, revision="main")


def test_a_configuration_is_asked_for_before_the_network_is() -> None:
    assert "needs --config; valid: ai2d, aokvqa" in complaint(ConfigError, "the_cauldron")
    assert "no configuration 'geo'; valid: ai2d" in complaint(ConfigError, "the_cauldron", config="geo")


def test_flat_pictures_need_labels_or_captions(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded())
    (tmp_path / "questions.jsonl").write_text('{"image": "1.jpg", "question": "?"}\n')
    message = complaint(DataError, "football", tmp_path)
    assert "found image, question" in message and "metadata.jsonl" in message


def test_without_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = complaint(MissingError, "rlaif_v")
    assert "openbmb/RLAIF-V-Dataset" in message and "give them as RAW" in message
    assert "give them as RAW" in complaint(MissingError, "rlaif_v", "somebody/something")


def test_columns_are_parsed_and_applied() -> None:
    table = load("table")
    columns = parse_columns(" image=file, answer = label", table)
    assert columns == (("answer", "label"), ("image", "file"))
    row = {"file": "a.jpg", "label": "tea", "answer": "not this", "x": 1}
    assert renamed(row, columns) == {"image": "a.jpg", "answer": "tea", "x": 1}
    assert renamed(row, ()) is row
    assert parse_columns(None, table) == ()
    assert parse_columns({"image": "file"}, table) == (("image", "file"),)
    for wrong in ("image", "image=", "=file", "", "image=a,image=b", "picture=file"):
        with pytest.raises(ConfigError) as caught:
            parse_columns(wrong, table)
        assert "\n" not in str(caught.value)
    assert "valid: answer, caption, image" in str(caught.value)


def test_columns_say_which_is_which_before_any_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("file,label\n1.jpg,tea\n")
    table = load("table")
    assert "--columns FIELD=COLUMN" in complaint(DataError, "table", path)
    good = found("table", path, columns=parse_columns("image=file,answer=label", table))
    assert good.columns == (("answer", "label"), ("image", "file")) and good.inputs[0].images == str(tmp_path)
    message = complaint(ConfigError, "table", path, columns=parse_columns("image=pic,answer=label", table))
    assert "image=pic" in message and "it has: file, label" in message


def test_files_of_both_kinds_are_refused(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    pairs = write_json(tmp_path / "pairs.json", [pair])
    talks = write_json(tmp_path / "talks.json", [chat("Hi", "Yo")])
    assert (found("trl", pairs).kind, found("trl", talks).kind) == ("preference", "messages")
    assert "both kinds" in complaint(DataError, "trl", pairs, talks)
    assert found("rlaif_v", write_parquet(tmp_path / "x.parquet", [rlaif_row()], RLAIF)).kind == "preference"


def test_lists_of_data_sets(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_json(tmp_path / "rows" / "x.json", [{"conversations": []}])
    entry = {"file_name": "rows/x.json", "formatting": "sharegpt"}
    listed = write_json(tmp_path / "dataset_info.json", {"x": entry})
    plates = found("llamafactory", listed, config="x")
    assert plates.inputs[0].name == "x.json" and plates.inputs[0].images == str(tmp_path) and plates.config == "x"
    assert found("llamafactory", tmp_path, config="x", image_root="/root").inputs[0].images == "/root"
    assert "needs --config" in complaint(ConfigError, "llamafactory", listed)
    assert "one list of data sets" in complaint(ConfigError, "llamafactory", config="x")
    columns = (("images", "pics"),)
    assert "--columns makes no sense" in complaint(ConfigError, "llamafactory", listed, config="x", columns=columns)


def test_caption_files_may_lie_in_the_folders_of_their_pictures(tmp_path: Path) -> None:
    for name in ("a", "b/c", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(encoded())
        (tmp_path / name / "metadata.csv").write_text("file_name,text\n1.jpg,A goal.\n")
    both = found("imagefolder", tmp_path)
    assert [file.name for file in both.inputs] == ["a/metadata.csv", "b/c/metadata.csv"]
    assert [file.images for file in both.inputs] == [str(tmp_path / "a"), str(tmp_path / "b" / "c")]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a/1.jpg", "text": "All."}\n')
    assert [file.name for file in found("imagefolder", tmp_path).inputs] == ["metadata.jsonl"]


def test_a_limit_opens_no_more_files_than_it_needs(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        rows = [rlaif_row(number) for number in range(3)]
        write_parquet(tmp_path / "raw" / name / f"{name}.parquet", rows, RLAIF)
    (tmp_path / "raw" / "c" / "c.parquet").write_bytes(b"broken")
    paths = sorted((tmp_path / "raw").rglob("*.parquet"))
    some = found("rlaif_v", *paths, limit=4)
    assert [file.name for file in some.inputs] == ["a/a.parquet", "b/b.parquet"], "named as without a limit"
    assert len(some.contents) == 2
    assert [file.name for file in found("rlaif_v", *paths, limit=3).inputs] == ["a/a.parquet"]
    assert "c.parquet" in complaint(DataError, "rlaif_v", *paths)
