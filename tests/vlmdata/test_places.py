from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from rawfiles import CAULDRON, FOOTBALL, cauldron_rows, chat, encoded, image, shard_bytes, write_json, write_parquet

from vlmdata.convert import convert, convert_rank, convert_rejects
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmdata.finish import finalize
from vlmdata.places import absolute, files_below, inside, is_remote, place
from vlmdata.shards import open_shards
from vlmdata.validate import validate


def put(store: Any, local: Path, remote: str) -> str:
    store.put(str(local), remote, recursive=True)
    return f"memory://{remote}"


def contents(store: Any, folder: str) -> dict[str, bytes]:
    return {path.removeprefix(f"/{folder}/"): store.cat_file(path) for path in store.find(folder)}


def local_contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "folder", "arrow"])
def test_what_is_read_from_and_written_to_a_store_is_the_same(kind: str, store: Any, tmp_path: Path) -> None:
    source, raw = "ocr_json", tmp_path / "raw"
    if kind in ("json", "jsonl"):
        rows: Any = [chat("<image>What?", f"That {n}.", ["photos/1.jpg"]) for n in range(9)]
        rows[3]["images"] = ["../secret.jpg"]
        path = write_json(raw / f"x.{kind}", rows)
        if kind == "jsonl":
            import json

            path.write_text("\n".join(map(json.dumps, rows)))
        (raw / "photos").mkdir()
        (raw / "photos" / "1.jpg").write_bytes(encoded())
    elif kind == "folder":
        source = "imagefolder"
        for name in ("apple", "pear"):
            (raw / name).mkdir(parents=True)
            (raw / name / "1.jpg").write_bytes(encoded())
    else:
        source = "the_cauldron"
        rows = cauldron_rows(12)
        rows[2]["texts"] = []
        path = write_parquet(raw / "train.parquet", rows, CAULDRON)
        if kind == "arrow":
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            path.unlink()
            with pa.ipc.new_file(raw / "train.arrow", table.schema) as writer:
                writer.write_table(table)
    there = convert(source, put(store, raw, "bucket/raw"), "memory://bucket/out", shard_size=4000)
    here = convert(source, raw, tmp_path / "out", shard_size=4000)
    assert contents(store, "bucket/out") == local_contents(here.out)
    assert there.manifest == here.manifest == open_shards("memory://bucket/out").manifest
    assert list(validate("memory://bucket/out")) == list(validate(here.out)) == []
    assert [row["id"] for row in open_shards("memory://bucket/out").rows(["id"])] == [
        row["id"] for row in open_shards(here.out).rows(["id"])
    ]


def test_a_store_is_protected_resumed_and_cleared_like_a_folder(store: Any, tmp_path: Path) -> None:
    raw = write_parquet(tmp_path / "train.parquet", cauldron_rows(12), CAULDRON)
    out = "memory://bucket/out"
    done = convert("the_cauldron", raw, out, shard_size=4000)
    before = contents(store, "bucket/out")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        convert("the_cauldron", raw, out)
    store.rm_file("bucket/out/manifest.json")
    store.rm_file(f"bucket/out/{done.manifest.shards[1].name}")
    convert("the_cauldron", raw, out, shard_size=4000, resume=True)
    assert contents(store, "bucket/out") == before
    assert len(convert("the_cauldron", raw, out, overwrite=True).manifest.shards) == 1
    assert len([name for name in contents(store, "bucket/out") if name.startswith("data-")]) == 1
    store.pipe_file("bucket/mine/notes.txt", b"x")
    with pytest.raises(OutputExistsError, match="no conversion"):
        convert("the_cauldron", raw, "memory://bucket/mine", overwrite=True)


def test_ranks_on_a_store(store: Any, tmp_path: Path) -> None:
    raw = write_parquet(tmp_path / "train.parquet", cauldron_rows(12), CAULDRON)
    for rank in range(2):
        convert_rank("the_cauldron", raw, "memory://bucket/out", rank, 2, shard_size=4000)
    finalize("memory://bucket/out")
    here = convert("the_cauldron", raw, tmp_path / "out", shard_size=4000)
    assert contents(store, "bucket/out") == local_contents(here.out)


def test_rejects_on_a_store_are_converted_again(store: Any, tmp_path: Path) -> None:
    rows = [{"image": {"bytes": None, "path": "1.jpg"}, "text": "x"}, {"image": image(), "text": "y"}]
    raw = write_parquet(tmp_path / "x.parquet", rows, FOOTBALL)
    convert("football", raw, "memory://bucket/out")
    store.pipe_file("bucket/photos/1.jpg", encoded())
    again = convert_rejects("memory://bucket/out", tmp_path / "again", image_root="memory://bucket/photos")
    assert again.kept == 1


def test_the_local_file_system_by_its_address(tmp_path: Path) -> None:
    raw = write_parquet(tmp_path / "raw" / "train.parquet", cauldron_rows(5), CAULDRON)
    convert("the_cauldron", f"file://{raw}", f"file://{tmp_path / 'there'}")
    here = convert("the_cauldron", raw, tmp_path / "here")
    assert shard_bytes(tmp_path / "there") == shard_bytes(here.out)


def test_what_is_not_there(store: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no file or folder memory://bucket/none"):
        convert("football", "memory://bucket/none", tmp_path / "out")
    store.pipe_file("bucket/x.parquet", b"nothing")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        convert("football", "memory://bucket/x.parquet", tmp_path / "out")
    with pytest.raises(ConfigError, match="is no address"):
        place("nowhere://x")


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"s3:// needs s3fs.*pip install 'vlm-toolkit\[stores\]'"):
        place("s3://bucket/x")


def test_paths_stay_inside() -> None:
    root = place("memory://bucket/photos")
    assert str(inside(root, "a/../b.jpg")) == "memory://bucket/photos/b.jpg"
    assert [inside(root, path) for path in ("../x", "/etc/x", "a/../../x", "s3://x/y", "..")] == [None] * 5
    assert is_remote(root) and not is_remote(Path("x")) and absolute("x") == Path.cwd() / "x"


def test_files_below_a_folder(store: Any, tmp_path: Path) -> None:
    for name in ("b.jpg", "a/c.jpg", ".hidden/x.jpg", "a/.y.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    assert files_below(tmp_path / "photos") == ["a/c.jpg", "b.jpg"]
    assert files_below(place(put(store, tmp_path / "photos", "bucket/photos"))) == ["a/c.jpg", "b.jpg"]
    shutil.rmtree(tmp_path / "photos")
    assert files_below(tmp_path / "photos") == []
