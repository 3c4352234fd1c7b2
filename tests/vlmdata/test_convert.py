from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rawfiles import (
    CAULDRON,
    FOOTBALL,
    cauldron_rows,
    chat,
    encoded,
    food_schema,
    image,
    pairs,
    picture,
    reject_lines,
    shard_bytes,
    write_json,
    write_parquet,
)

from vlmdata import readers
from vlmdata.convert import Conversion, convert
from vlmdata.engine import engine_names
from vlmdata.errors import ConfigError, DataError, OutputExistsError, VlmError
from vlmdata.lock import locked
from vlmdata.manifest import Manifest
from vlmdata.reasons import REASONS
from vlmdata.shards import open_shards
from vlmdata.sizes import parse_size
from vlmdata.summary import summary_lines
from vlmdata.validate import validate


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    rows = cauldron_rows(30)
    rows[5]["texts"] = pairs(("Broken?", " "))
    rows[17]["images"] = [{"bytes": None, "path": "/fsx/coco/1.jpg"}]
    return write_parquet(tmp_path / "train-00000-of-00001.parquet", rows, CAULDRON, group=7)


def ids(out: Path) -> list[str]:
    return [row["id"] for row in open_shards(out).rows(["id"])]


def adds_up(done: Conversion) -> None:
    rows = done.manifest.rows
    assert rows.kept + rows.rejected == rows.read == done.read
    assert sum(done.rejected.values()) == rows.rejected == len(reject_lines(done.out))
    assert {line["reason"] for line in reject_lines(done.out)} == set(done.rejected) <= set(REASONS)
    images = done.manifest.images
    assert images.passed + images.reencoded == images.count == sum(images.formats.values())
    assert len(list(open_shards(done.out).rows(["id"]))) == done.manifest.records == len(open_shards(done.out))
    assert list(validate(done.out)) == []


def test_kept_and_rejected_add_up_and_everything_is_said(raw: Path, tmp_path: Path) -> None:
    done = convert("the_cauldron", raw, tmp_path / "out")
    adds_up(done)
    assert (done.read, done.kept, done.rejected) == (30, 28, {"blank_answer": 1, "image_path_only": 1})
    lines = reject_lines(done.out)
    assert [(line["row"], line["reason"]) for line in lines] == [(5, "blank_answer"), (17, "image_path_only")]
    assert lines[1]["id"] == "train-00000-of-00001.parquet:17" and "/fsx/coco/1.jpg" in lines[1]["detail"]
    text = "\n".join(summary_lines(done))
    assert "30 read = 28 kept + 2 rejected" in text and "passed as they came" in text


def test_the_same_bytes_whatever_the_workers(raw: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_size": 6000, "turns": "split", "shuffle_seed": 3}
    one = convert("the_cauldron", raw, tmp_path / "one", workers=1, **options)
    two = convert("the_cauldron", raw, tmp_path / "two", workers=2, **options)
    assert len(one.manifest.shards) > 3
    assert shard_bytes(one.out) == shard_bytes(two.out)
    assert one.manifest.records == 2 * one.kept
    adds_up(one)


def test_resume_after_the_manifest_and_a_shard_are_gone(raw: Path, tmp_path: Path) -> None:
    done = convert("the_cauldron", raw, tmp_path / "out", shard_size=6000)
    before = shard_bytes(done.out)
    (done.out / "manifest.json").unlink()
    (done.out / done.manifest.shards[1].name).unlink()
    with pytest.raises(DataError, match="never finished"):
        open_shards(done.out)
    with pytest.raises(OutputExistsError, match="--resume"):
        convert("the_cauldron", raw, done.out, shard_size=6000)
    with pytest.raises(ConfigError, match="shard_bytes was 6000, is 5000"):
        convert("the_cauldron", raw, done.out, shard_size=5000, resume=True)
    convert("the_cauldron", raw, done.out, shard_size=6000, resume=True)
    assert shard_bytes(done.out) == before
    again = convert("the_cauldron", raw, done.out, shard_size=6000, resume=True)
    assert again.reused == len(done.manifest.shards) and shard_bytes(done.out) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path, workers: int) -> None:
    rows = [{"image": image(seed, size=(700, 500), kind="PNG", mode="RGBA"), "text": "x"} for seed in range(4)] * 7
    raw = write_parquet(tmp_path / "x.parquet", rows, FOOTBALL, group=4)
    options: dict[str, Any] = {"shard_size": 4 * len(rows[0]["image"]["bytes"]), "workers": workers}
    out = tmp_path / "out"
    code = (
        "from vlmdata.convert import convert\n"
        f"if __name__ == '__main__': convert('football', {str(raw)!r}, {str(out)!r}, **{options!r})"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script], start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".work/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists(), "it was killed too late to show anything"
    resumed = convert("football", raw, out, resume=True, **options)
    assert 0 < resumed.reused < len(resumed.manifest.shards)
    whole = convert("football", raw, tmp_path / "whole", **options)
    assert shard_bytes(out) == shard_bytes(whole.out)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.out.iterdir())


def test_limit_counts_rows_read(raw: Path, tmp_path: Path) -> None:
    done = convert("the_cauldron", raw, tmp_path / "out", limit=6)
    assert (done.read, done.kept) == (6, 5)
    assert ids(done.out) == [f"{raw.name}:{row}" for row in range(5)]


def test_a_seed_chooses_and_shuffles(raw: Path, tmp_path: Path) -> None:
    plain = ids(convert("the_cauldron", raw, tmp_path / "plain").out)
    first, again, other = (
        ids(convert("the_cauldron", raw, tmp_path / name, limit=10, shuffle_seed=seed).out)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again and set(first) != set(other)
    assert set(first) <= set(plain) and first != [row for row in plain if row in first]
    everything = ids(convert("the_cauldron", raw, tmp_path / "all", shuffle_seed=1).out)
    assert everything != plain and sorted(everything) == sorted(plain)


def test_a_choice_of_rows_is_read_in_one_pass(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = readers._parquet

    def counted(source: Any) -> Any:
        opened.append(source.name)
        return original(source)

    monkeypatch.setattr(readers, "_parquet", counted)
    done = convert("the_cauldron", raw, tmp_path / "out", limit=12, shuffle_seed=1)
    assert done.read == 12 and len(done.manifest.shards) == 1
    assert len(opened) == 2, "once to plan, once to read"


def test_fail_stops_at_the_first_bad_row(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"more than 0 rows .*parquet:5, blank_answer"):
        convert("the_cauldron", raw, tmp_path / "one", max_rejects=0)
    with pytest.raises(DataError, match=r"more than 0 rows .*parquet:5, blank_answer"):
        convert("the_cauldron", raw, tmp_path / "two", max_rejects=0, workers=2, shard_size=6000)
    assert not (tmp_path / "two" / "manifest.json").exists()


def test_output_is_never_overwritten_unasked(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("the_cauldron", raw, out, limit=3)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        convert("the_cauldron", raw, out, limit=4)
    (out / "notes.txt").write_text("mine")
    assert convert("the_cauldron", raw, out, limit=4, overwrite=True).read == 4
    assert (out / "notes.txt").read_text() == "mine"
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "x.jpg").write_bytes(b"x")
    with pytest.raises(OutputExistsError, match="no conversion"):
        convert("the_cauldron", raw, foreign, overwrite=True)
    with pytest.raises(OutputExistsError, match="raw data itself"):
        convert("the_cauldron", tmp_path, tmp_path, overwrite=True)
    with pytest.raises(OutputExistsError, match="is a file"):
        convert("the_cauldron", raw, raw, overwrite=True)


def test_a_bad_input_leaves_the_old_output_alone(raw: Path, tmp_path: Path) -> None:
    done = convert("the_cauldron", raw, tmp_path / "out", limit=3)
    before = shard_bytes(done.out)
    with pytest.raises(DataError, match="is not of football"):
        convert("football", raw, done.out, overwrite=True)
    assert shard_bytes(done.out) == before


def test_two_runs_into_one_folder_are_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with locked(out), pytest.raises(OutputExistsError, match="another run"):
        convert("the_cauldron", raw, out)
    assert convert("the_cauldron", raw, out).kept == 28
    assert not list(tmp_path.glob(".*.lock"))


def test_scale_max_side_and_position(raw: Path, tmp_path: Path) -> None:
    done = convert("the_cauldron", raw, tmp_path / "out", limit=3, scale=0.5, max_side=10, image_position="last")
    for row in open_shards(done.out).rows():
        assert [part["type"] for part in row["messages"][0]["content"]][0] == "text"
        for stored, size in zip(row["images"], row["image_size"], strict=True):
            assert picture(stored["bytes"]).size == (size["width"], size["height"]) == (10, 6)
    assert done.manifest.images.changes == {"scale": 4}


def test_labels_travel_with_their_names(tmp_path: Path) -> None:
    rows = [{"image": image(number), "label": number % 2} for number in range(4)]
    rows.append({"image": image(), "label": 2})
    raw = write_parquet(tmp_path / "x.parquet", rows, food_schema(["pie", "hot_soup"]))
    done = convert("food101", raw, tmp_path / "out")
    assert done.manifest.label_names == ("pie", "hot_soup") and done.rejected == {"unknown_label": 1}
    assert [row["label"] for row in open_shards(done.out).rows(["label"])] == [0, 1, 0, 1]
    for name in ("zebra", "apple"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "1.jpg").write_bytes(encoded())
    folder = convert("food101", tmp_path / "classes", tmp_path / "folder")
    assert folder.manifest.label_names == ("apple", "zebra")
    assert [row["label"] for row in open_shards(folder.out).rows(["label"])] == [0, 1]


def test_bad_rows_of_json_are_counted_one_by_one(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    good = encoded()
    files = {"good.jpg": good, "empty.jpg": b"", "cut.jpg": good[:-100], "page.jpg": b"<html>", "big.png": None}
    for name, data in files.items():
        if data is not None:
            (photos / name).write_bytes(data)
    (tmp_path / "secret.jpg").write_bytes(good)
    (photos / "out.jpg").symlink_to(tmp_path / "secret.jpg")

    def ask(path: str) -> dict[str, Any]:
        return chat("<image>What?", "That.", [path])

    rows: list[tuple[Any, str | None]] = [
        (ask("good.jpg"), None),
        (ask("empty.jpg"), "image_empty"),
        (ask("cut.jpg"), "image_truncated"),
        (ask("page.jpg"), "image_format"),
        (ask("none.jpg"), "image_not_found"),
        (ask("../secret.jpg"), "path_outside_root"),
        (ask(str(tmp_path / "secret.jpg")), "path_outside_root"),
        (ask("out.jpg"), "path_outside_root"),
        (chat("What?", "That.", ["good.jpg"]), "image_count"),
        (chat("<image>What?", "  ", ["good.jpg"]), "blank_answer"),
        (chat("", "That."), "empty_turn"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "unknown_role"),
        (["not", "an", "object"], "not_object"),
        (None, "not_object"),
        (chat("\ud83d", "half a smile"), "bad_text"),
    ]
    raw = tmp_path / "plates.json"
    raw.write_text(json.dumps([row for row, _ in rows]))
    done = convert("ocr_json", raw, tmp_path / "out", image_root=photos)
    adds_up(done)
    assert [line["reason"] for line in reject_lines(done.out)] == [why for _, why in rows if why]
    assert done.kept == 1
    lines = tmp_path / "plates.jsonl"
    lines.write_text("\n".join([*(json.dumps(row) for row, _ in rows), '{"messages": [', ""]))
    by_line = convert("ocr_json", lines, tmp_path / "lines", image_root=photos)
    assert by_line.rejected == {**done.rejected, "not_json": 1}


def test_nothing_kept_is_an_error_that_says_why(tmp_path: Path) -> None:
    raw = write_json(tmp_path / "x.json", [chat("<image>Hi", "Yo", ["gone.jpg"])] * 3)
    with pytest.raises(DataError, match=r"not one of 3 rows .*image_not_found 3.*gone\.jpg.*--image-root"):
        convert("ocr_json", raw, tmp_path / "out")
    assert len(reject_lines(tmp_path / "out")) == 3 and not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(DataError, match="no rows"):
        convert("ocr_json", write_json(tmp_path / "empty.json", []), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_path_only_images_are_found_when_a_root_is_given(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded())
    rows = [{"image": {"bytes": None, "path": path}, "text": "x"} for path in ("1.jpg", "/fsx/1.jpg")]
    raw = write_parquet(tmp_path / "x.parquet", rows, FOOTBALL)
    done = convert("football", raw, tmp_path / "out", image_root=tmp_path)
    assert done.kept == 1 and done.rejected == {"path_outside_root": 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit": 0}, "limit"),
        ({"workers": 0}, "workers"),
        ({"scale": 2}, "scale"),
        ({"max_side": 0}, "max_side"),
        ({"shard_size": "many"}, "shard size"),
        ({"prompt": "Hi"}, "--prompt"),
        ({"image_root": "nowhere"}, "image root"),
        ({"resume": True, "overwrite": True}, "one of them"),
    ],
)
def test_options_that_cannot_work(raw: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        convert("the_cauldron", raw, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_split_turns_need_pairs_that_stand_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="single conversations"):
        convert("ocr_json", write_json(tmp_path / "x.json", [chat("Hi", "Yo")]), tmp_path / "out", turns="split")


@pytest.mark.parametrize(
    ("text", "size"), [("5000", 5000), ("100MB", 10**8), ("1.5 kB", 1500), ("64MiB", 64 << 20), (7, 7)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_engines_are_found_by_file_name() -> None:
    assert {"process", "serial"} <= set(engine_names())


def test_manifest_has_this_form(raw: Path, tmp_path: Path) -> None:
    done = convert("the_cauldron", raw, tmp_path / "out", config="mine", limit=6)
    values = json.loads((done.out / "manifest.json").read_text())
    shard = values["shards"][0]
    assert {name: len(digest) for name, digest in shard.pop("beside").items()} == {"images": 64, "rejects": 64}
    assert len(shard.pop("sha256")) == len(values["inputs"][0].pop("fingerprint")) == 64
    assert shard.pop("bytes") == (done.out / shard["name"]).stat().st_size
    assert values["inputs"][0].pop("bytes") == raw.stat().st_size
    assert set(values.pop("versions")) == {"vlmdata", "pyarrow", "pillow", "zlib_ng"}
    images = {
        "count": 7, "passed": 7, "reencoded": 0, "rotated": 0, "composited": 0, "resized": 0, "small_decodes": 0,
        "small_decodes_declined": 0, "changes": {}, "formats": {"JPEG": 7},
        "bytes_in": values["images"]["bytes_in"], "bytes_out": values["images"]["bytes_in"],
        "widest": 24, "highest": 16,
    }  # fmt: skip
    assert values == {
        "schema": 2,
        "kind": "messages",
        "source": "the_cauldron",
        "url": "https://huggingface.co/datasets/HuggingFaceM4/the_cauldron",
        "licence": "each set its own; prompts CC-BY-4.0",
        "config": "mine",
        "split": None,
        "revision": None,
        "options": {
            "limit": 6, "shuffle_seed": None, "scale": 1.0, "max_side": None, "shard_bytes": 100_000_000,
            "image_position": "first", "turns": "keep", "prompt": None, "verify_images": "header", "columns": None,
            "adapter_sha256": None,
        },
        "rows": {"read": 6, "kept": 5, "rejected": 1},
        "rejected": {"blank_answer": 1},
        "records": 5,
        "images": images,
        "inputs": [{"name": "train-00000-of-00001.parquet", "rows": 30}],
        "shards": [{"name": "data-00000-of-00001.parquet", "rows": 5, "images": images}],
        "label_names": [],
        "command": "convert",
        "parents": [],
    }  # fmt: skip
    assert Manifest.read(done.out) == done.manifest


PATHS = ["1.jpg", "2.png", "../x", "/etc/passwd", "", "bad.jpg", None]
ROW = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.builds(
        chat,
        st.sampled_from(["<image>Hi", "Hi", "", "<image><image>", "\ud800"]),
        st.sampled_from(["Yo", "", None, "<image>"]),
        st.none() | st.lists(st.sampled_from(PATHS), max_size=2),
    ),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=6), turned=st.booleans())
def test_only_records_rejects_or_one_line_come_out(tmp_path: Path, rows: list[Any], turned: bool) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded())
    (tmp_path / "2.png").write_bytes(encoded("P", kind="PNG"))
    (tmp_path / "bad.jpg").write_bytes(encoded()[:300])
    raw = tmp_path / ("x.jsonl" if turned else "x.json")
    raw.write_text("\n".join(map(json.dumps, rows)) if turned else json.dumps(rows))
    out = tmp_path / "out"
    try:
        adds_up(convert("ocr_json", raw, out, overwrite=(out / "plan.json").exists()))
    except VlmError as error:
        assert "\n" not in str(error)
