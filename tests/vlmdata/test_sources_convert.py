"""The sources from raw files to shards that the trainers' own loaders read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from datasets import ClassLabel, load_dataset
from rawfiles import IMAGE, chat, encoded, image, reject_lines, write_json, write_parquet
from trl.data_utils import prepare_multimodal_messages

from vlmdata.cli import main
from vlmdata.convert import Conversion, convert
from vlmdata.shards import open_shards
from vlmdata.source import load, names

SHARED = Path(__file__).parents[3] / "shared" / "data"
TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
PART = pa.struct([("type", pa.string()), ("text", pa.string()), ("index", pa.int64()), ("image", pa.null())])
PARTS_TURN = pa.struct([("role", pa.string()), ("content", pa.list_(PART))])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "raw" / "photos").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "raw" / "photos" / f"{number}.jpg").write_bytes(encoded(seed=number))
    return tmp_path / "raw"


def rows(done: Conversion) -> list[dict[str, Any]]:
    return list(open_shards(done.out).rows())


def said(messages: list[dict[str, Any]]) -> list[str]:
    return ["".join(part["text"] or "<image>" for part in message["content"]) for message in messages]


def trl_takes(done: Conversion) -> None:
    """Every row through TRL's own placing of images, as the loaders of ``datasets`` give it."""
    data = load_dataset("parquet", data_files=str(done.out / "data-*.parquet"), split="train", cache_dir=str(done.out))
    assert len(data) == done.manifest.records
    field = "messages" if done.manifest.kind == "messages" else "prompt"
    for row in data:
        prepared = prepare_multimodal_messages(row[field], row["images"])
        placed = [part for message in prepared for part in message["content"] if part["type"] == "image"]
        assert len(placed) == len(row["images"]) and all(part["image"].mode == "RGB" for part in placed)


def test_trl_parquet_of_both_kinds(tmp_path: Path) -> None:
    pair = {
        "images": [image(0), image(1)],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Hi"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Yo"}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "No"}]}],
    }
    fields = [(name, pa.list_(PARTS_TURN)) for name in ("prompt", "chosen", "rejected")]
    schema = pa.schema([("images", pa.list_(IMAGE)), *fields])
    pairs = write_parquet(tmp_path / "pairs" / "x.parquet", [pair, pair | {"rejected": pair["chosen"]}], schema)
    done = convert("trl", pairs, tmp_path / "out_pairs", licence="MIT")
    assert done.manifest.kind == "preference" and done.rejected == {"same_answers": 1}
    assert said(rows(done)[0]["prompt"]) == ["<image><image>Hi"] and rows(done)[0]["licence"] == "MIT"
    trl_takes(done)

    talk = {
        "images": [image(0)],
        "prompt": chat("<image>?", "")["messages"][:1],
        "completion": chat("", "Yo")["messages"][1:],
    }
    schema = pa.schema([("images", pa.list_(IMAGE)), ("prompt", pa.list_(TURN)), ("completion", pa.list_(TURN))])
    done = convert("trl", write_parquet(tmp_path / "talks" / "x.parquet", [talk], schema), tmp_path / "out_talks")
    (row,) = rows(done)
    assert done.manifest.kind == "messages"
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text"]
    assert said(row["messages"]) == ["<image><image>?", "Yo"], "the mark in the text is text"
    trl_takes(done)


def test_sharegpt_swift_llava_and_alpaca_files(photos: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Yo"}]
    picture = ["photos/0.jpg"]
    files: dict[str, Any] = {
        "sharegpt": {"conversations": turns, "images": picture},
        "swift": chat("<image>Hi", "Yo", picture),
        "llava_json": {"id": "1", "image": picture[0], "conversations": turns},
        "alpaca": {"instruction": "<image>Hi", "input": "", "output": "Yo", "images": picture},
        "ocr_json": chat("<image>Hi", "Yo", picture),
    }
    for name, row in files.items():
        bad = {**row, "image": "../x.jpg"} if name == "llava_json" else {**row, "images": ["../x.jpg"]}
        done = convert(name, write_json(photos / f"{name}.json", [row, bad]), tmp_path / name)
        assert said(rows(done)[0]["messages"]) == ["<image>Hi", "Yo"], name
        assert done.manifest.kind == "messages" and done.rejected == {"path_outside_root": 1}
        trl_takes(done)


def test_preferences_of_the_same_sources(photos: Path, tmp_path: Path) -> None:
    ask, picture = [{"from": "human", "value": "<image>Hi"}], ["photos/0.jpg"]
    good, bad = {"from": "gpt", "value": "Yo"}, {"from": "gpt", "value": "No"}
    files: dict[str, Any] = {
        "sharegpt": {"conversations": ask, "chosen": good, "rejected": bad, "images": picture},
        "swift": chat("<image>Hi", "Yo", picture, rejected_response="No"),
        "alpaca": {"instruction": "<image>Hi", "chosen": "Yo", "rejected": "No", "images": picture},
        "pairs": {"question": "Hi", "chosen": "Yo", "rejected": "No", "images": picture},
    }
    for name, row in files.items():
        done = convert(name, write_json(photos / f"{name}.json", [row]), tmp_path / name)
        (stored,) = rows(done)
        assert done.manifest.kind == "preference"
        assert [said(stored[field]) for field in ("prompt", "chosen", "rejected")] == [["<image>Hi"], ["Yo"], ["No"]]
        trl_takes(done)


def test_pairs_of_a_csv_file_in_two_processes(photos: Path, tmp_path: Path) -> None:
    lines = "\n".join(f"photos/{number % 4}.jpg,Q {number}?,Yes,No,{number}" for number in range(24))
    (photos / "pairs.csv").write_text(f"file,question,chosen,rejected,who\n{lines}\n")
    done = convert("pairs", photos / "pairs.csv", tmp_path / "out", columns="image=file", workers=2, shard_size="1MB")
    assert len(done.manifest.shards) > 1 and done.kept == 24 and done.manifest.kind == "preference"
    assert json.loads(rows(done)[7]["meta"]) == {"who": "7"}


def test_llamafactory_list_to_shards_and_on_with_resume(photos: Path, tmp_path: Path) -> None:
    write_json(photos / "talks.json", [{"talk": [{"who": "me", "said": "<image>Hi"}, {"who": "it", "said": "Yo"}],
                                        "pics": ["photos/0.jpg"]}] * 20)  # fmt: skip
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "it"}
    columns = {"messages": "talk", "images": "pics"}
    entry = {"file_name": "talks.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    write_json(photos / "dataset_info.json", {"talks": entry, "other": {"hf_hub_url": "a/b"}})
    asked = {"config": "talks", "shard_size": "1MB", "workers": 2}
    done = convert("llamafactory", photos, tmp_path / "out", **asked)  # type: ignore[arg-type]
    assert done.kept == 20 and done.manifest.config == "talks"
    assert said(rows(done)[0]["messages"]) == ["<image>Hi", "Yo"]
    (done.out / "manifest.json").unlink()
    again = convert("llamafactory", photos, tmp_path / "out", resume=True, **asked)  # type: ignore[arg-type]
    assert again.manifest.shards == done.manifest.shards


def test_imagefolder_with_classes_gives_labels(photos: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog", "dog")):
        (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / name / f"{number}.jpg").write_bytes(encoded(seed=number))
    done = convert("imagefolder", tmp_path / "classes", tmp_path / "out")
    assert done.manifest.label_names == ("cat", "dog")
    data = load_dataset("parquet", data_files=str(done.out / "data-*.parquet"), split="train", cache_dir=str(tmp_path))
    assert isinstance(data.features["label"], ClassLabel) and data["label"][:] == [0, 1, 1]
    assert said(rows(done)[1]["messages"]) == ["<image>What is shown in this image?", "dog"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_imagefolder_with_a_metadata_file(photos: Path, tmp_path: Path, name: str) -> None:
    table = [{"file_name": f"{number}.jpg", "text": f"Gradient {number}.", "by": "me"} for number in range(4)]
    table[2]["file_name"] = "../escape.jpg"
    path = photos / "photos" / name
    if name.endswith("csv"):
        path.write_text("file_name,text,by\n" + "".join(",".join(row.values()) + "\n" for row in table))
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        write_parquet(path, table, pa.schema([(field, pa.string()) for field in table[0]]))
    done = convert("imagefolder", photos / "photos", tmp_path / "out", prompt="")
    assert done.rejected == {"path_outside_root": 1}
    assert said(rows(done)[1]["messages"]) == ["<image>", "Gradient 1."]
    assert json.loads(rows(done)[1]["meta"]) == {"by": "me"}


def test_a_row_of_the_other_kind_is_a_reject_and_never_a_shard_row(photos: Path, tmp_path: Path) -> None:
    pair = {"instruction": "Hi", "chosen": "A", "rejected": "B"}
    talk = {"instruction": "Hi", "output": "Yo"}
    done = convert("alpaca", write_json(photos / "x.json", [pair, talk]), tmp_path / "pairs")
    assert done.manifest.kind == "preference" and done.rejected == {"blank_answer": 1}
    done = convert("alpaca", write_json(photos / "x.json", [talk, pair]), tmp_path / "talks")
    assert done.manifest.kind == "messages" and done.rejected == {"wrong_fields": 1}
    assert "file that is read as conversations" in reject_lines(done.out)[0]["detail"]


def test_real_files_of_llamafactory(tmp_path: Path) -> None:
    raw = SHARED / "llamafactory"
    if not raw.is_dir():
        pytest.skip("the files of LLaMA-Factory lie outside the repository and are not here")
    for name in ("sharegpt", "swift", "ocr_json"):
        done = convert(name, raw / "mllm_demo.json", tmp_path / name)
        assert done.kept == 6 and not done.rejected
        assert said(rows(done)[0]["messages"])[::2] == ["<image>Who are they?", "What are they doing?<image>"]
        trl_takes(done)
    info = tmp_path / "info"
    info.mkdir()
    columns = {"messages": "messages", "images": "images"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": str(raw / "mllm_demo.json"), "formatting": "sharegpt", "columns": columns, "tags": tags}
    write_json(info / "dataset_info.json", {"mllm_demo": entry})
    done = convert("llamafactory", info, tmp_path / "lf", config="mllm_demo", image_root=raw)
    other = rows(convert("ocr_json", raw / "mllm_demo.json", tmp_path / "again"))
    assert [row["messages"] for row in rows(done)] == [row["messages"] for row in other]


def test_real_content_lists_of_llamafactory(tmp_path: Path) -> None:
    raw = SHARED / "llamafactory"
    if not raw.is_dir():
        pytest.skip("the files of LLaMA-Factory lie outside the repository and are not here")
    shutil.copytree(raw / "mllm_demo_data", tmp_path / "data" / "mllm_demo_data")
    lines = raw / "v1_multimodal_demo.jsonl"
    count = sum(bool(line.strip()) for line in lines.read_text(encoding="utf-8").splitlines())
    done = convert("sharegpt", lines, tmp_path / "out", image_root=tmp_path)
    assert done.kept == count > 5 and not done.rejected
    assert said(rows(done)[0]["messages"])[::2] == ["<image>Who are they?", "What are they doing?<image>"]
    trl_takes(done)


def test_the_list_of_configurations() -> None:
    shown = CliRunner().invoke(main, ["sources", "--configs", "the_cauldron"])
    lines = shown.output.splitlines()
    assert shown.exit_code == 0 and len(lines) == 50 == len({line.split()[0] for line in lines})
    assert all(line.endswith(" rows") for line in lines) and max(map(len, lines)) < 80
    assert lines[0].split() == ["ai2d", "2,434", "rows"]
    for words, says in (
        (["--configs", "football"], "sources that have some: the_cauldron"),
        (["--configs", "llamafactory"], "entries of your list"),
        (["--configs"], "needs the NAME"),
        (["--configs", "nothing"], "no source named"),
    ):
        wrong = CliRunner().invoke(main, ["sources", *words])
        assert wrong.exit_code == 2 and says in wrong.output and wrong.output.count("\n") == 1


def test_every_source_shows_its_raw_row_within_the_width_of_a_terminal() -> None:
    listing = CliRunner().invoke(main, ["sources"]).output
    assert max(map(len, listing.splitlines())) <= 84
    for name in names():
        shown = CliRunner().invoke(main, ["sources", name]).output
        assert "Raw row" in shown and "Record:" in shown and "Rejected:" in shown and "Licence:" in shown
        assert all(field in shown for field in load(name).fields), name
