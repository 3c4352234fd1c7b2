from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from made import assert_valid, ids_of, labelled, messages, preferences, row, rows_of
from rawfiles import encoded, shard_bytes
from trl.data_utils import prepare_multimodal_messages

from vlmdata.derive import DROPPED, DatasetWriter, copy_rows
from vlmdata.errors import ConfigError, DataError, OutputExistsError
from vlmdata.filter import Conditions, filter_rows
from vlmdata.lock import locked
from vlmdata.publish import publishing
from vlmdata.reasons import REASONS
from vlmdata.shards import open_shards
from vlmdata.tables import row_bytes, row_groups

EVERY = Conditions(where="images >= 0")


def test_rows_are_copied_as_they_are(tmp_path: Path) -> None:
    for made in (messages(tmp_path, 9), preferences(tmp_path, 4), labelled(tmp_path, [0, 2, 1], ["a", "b", "c"])):
        out = filter_rows(made, tmp_path / f"{made.name}-all", EVERY).out
        assert rows_of(out) == rows_of(made)
        schemas = [pq.read_schema(open_shards(folder).files[0]) for folder in (made, out)]
        assert schemas[0].equals(schemas[1], check_metadata=True)
        assert_valid(out)


def test_files_are_written_as_a_conversion_writes_them(tmp_path: Path) -> None:
    """Same compression, encodings and statistics, column by column; images of split turns stay compressed."""
    for name, options in (("keep", {}), ("split", {"turns": "split"})):
        made = messages(tmp_path, 6, name, **options)
        out = filter_rows(made, tmp_path / f"{name}-all", EVERY).out
        groups = [pq.ParquetFile(open_shards(folder).files[0]).metadata.row_group(0) for folder in (made, out)]
        for index in range(groups[0].num_columns):
            ours, theirs = (group.column(index) for group in groups)
            assert ours.compression == theirs.compression
            assert ours.encodings == theirs.encodings
            assert ours.is_stats_set == theirs.is_stats_set


def test_shards_and_row_groups_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = messages(tmp_path, 30)
    monkeypatch.setattr("vlmdata.derive.ROW_GROUP_BYTES", 3000)
    done = filter_rows(made, tmp_path / "out", EVERY, shard_size=9000)
    assert len(done.manifest.shards) > 3
    for file in open_shards(done.out).files:
        sizes = [int(row_bytes(table).sum()) for table in _tables(file)]
        assert max(sizes) <= 3000 and sum(sizes) <= 9000
    assert ids_of(done.out) == ids_of(made)
    assert_valid(done.out)
    large = filter_rows(made, tmp_path / "rows", EVERY, shard_size=1)
    assert [shard.rows for shard in large.manifest.shards] == [1] * 30


def _tables(file: Path) -> list[object]:
    with pq.ParquetFile(file) as parquet:
        return [parquet.read_row_group(group) for group in range(parquet.num_row_groups)]


def test_bytes_of_rows_are_counted(tmp_path: Path) -> None:
    rows = [row(1, 2, question="Wörter?", answer="A"), row(3), {"images": [], "texts": row()["texts"]}]
    for made in (messages(tmp_path, rows), preferences(tmp_path, 3)):
        held = rows_of(made)
        expected = []
        for one in held:
            texts = [one["meta"]]
            for name in ("messages", "prompt", "chosen", "rejected"):
                texts += [part["text"] or "" for message in one.get(name, []) for part in message["content"]]
            expected.append(sum(len(i["bytes"]) for i in one["images"]) + sum(len(t.encode()) for t in texts))
        (group,) = row_groups(open_shards(made))
        assert row_bytes(group[1]).tolist() == expected
        assert row_bytes(group[1].slice(1)).tolist() == expected[1:]


def test_rows_go_to_their_writers(tmp_path: Path) -> None:
    shards = open_shards(messages(tmp_path, 25, shard_size=2000))
    assert len(shards.files) > 2
    parts = np.array([DROPPED, 0, 1, 1, 0] * 5, np.int16)
    parts[4:12] = DROPPED
    told: list[int] = []
    for name in "01":
        (tmp_path / name).mkdir()
    pair = [DatasetWriter(tmp_path / name, [shards], 10**6) for name in "01"]
    with pair[0], pair[1]:
        copy_rows(shards, parts, pair, told.append)
        files = [tmp_path / name / writer.finish()[0].name for name, writer in zip("01", pair, strict=True)]
    assert sum(told) == 25
    ids = ids_of(shards.path)
    for number, file in enumerate(files):
        assert pq.read_table(file).column("id").to_pylist() == [ids[place] for place in np.flatnonzero(parts == number)]


def test_images_are_counted(tmp_path: Path) -> None:
    rows = [row(1), row(2, kind="PNG", size=(90, 20)), row(3, kind="WEBP", size=(20, 70))]
    images = filter_rows(messages(tmp_path, rows), tmp_path / "out", EVERY).manifest.images
    assert images.count == 3 and images.formats == {"JPEG": 1, "PNG": 1, "WEBP": 1}
    assert (images.widest, images.highest) == (90, 70)
    assert images.bytes_out == sum(len(i["bytes"]) for one in rows_of(tmp_path / "out") for i in one["images"])
    assert images.passed == images.reencoded == 0


def test_manifest_of_a_derived_dataset(tmp_path: Path) -> None:
    made = messages(tmp_path, 10)
    done = filter_rows(made, tmp_path / "out", Conditions(where="images == 1"))
    parent = done.manifest.parents[0]
    assert (parent.name, parent.records, parent.taken) == ("geo", 10, 6)
    assert done.manifest.command == "filter" and done.manifest.licence == open_shards(made).manifest.licence
    assert done.manifest.rows.read == 10 == done.manifest.rows.kept + done.manifest.rows.rejected
    assert str(tmp_path) not in "".join(path.read_text() for path in done.out.iterdir() if path.suffix != ".parquet")
    assert set(done.manifest.rejected) <= set(REASONS)
    again = filter_rows(done.out, tmp_path / "again", Conditions(where="endswith(id, '1')"))
    assert again.manifest.parents[0].name == "out"
    assert_valid(again.out)


def test_the_same_again_is_the_same_bytes(tmp_path: Path) -> None:
    made = messages(tmp_path, 20, shard_size=3000)
    folders = [filter_rows(made, tmp_path / name, Conditions(min_turns=1)).out for name in ("one", "two")]
    assert shard_bytes(folders[0]) == shard_bytes(folders[1])


def test_datasets_and_trl_read_it(tmp_path: Path) -> None:
    out = filter_rows(messages(tmp_path, 6), tmp_path / "out", Conditions(where="images == 1")).out
    files = [str(file) for file in open_shards(out).files]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))["id"] == loaded["id"]
    first = loaded[0]
    assert first["images"][0].size == (24, 16)
    prepared = prepare_multimodal_messages(first["messages"], images=first["images"])
    assert prepared[0]["content"][0]["image"] is first["images"][0]


def test_output_is_not_touched_unasked(tmp_path: Path) -> None:
    made = messages(tmp_path, 4)
    out = filter_rows(made, tmp_path / "out", EVERY).out
    before = shard_bytes(out)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        filter_rows(made, out, Conditions(where="images == 1"))
    assert shard_bytes(out) == before
    filter_rows(made, out, Conditions(where="images == 1"), overwrite=True)
    assert len(ids_of(out)) < 4
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"notes\.txt"):
        filter_rows(made, out, EVERY, overwrite=True)
    (tmp_path / "file").write_text("x")
    for bad, says in ((made, "input itself"), (made / "sub", "in each other"), (tmp_path, "in each other")):
        with pytest.raises(OutputExistsError, match=says):
            filter_rows(made, bad, EVERY, overwrite=True)
    with pytest.raises(OutputExistsError, match="is a file"):
        filter_rows(made, tmp_path / "file", EVERY)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(OutputExistsError, match="no part of a dataset"):
        filter_rows(made, tmp_path / "full", EVERY, overwrite=True)


def test_an_error_leaves_nothing_and_keeps_the_former(tmp_path: Path) -> None:
    made = messages(tmp_path, 4)
    out = filter_rows(made, tmp_path / "out", EVERY).out
    before = shard_bytes(out)
    names = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="stop"), publishing(out, [made], overwrite=True) as folder:
        (folder / "manifest.json").write_text("{}")
        raise RuntimeError("stop")
    assert shard_bytes(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with publishing(tmp_path / "deep" / "new", [made], overwrite=False) as folder:
        (folder / "x").write_text("x")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_after_a_kill_the_former_comes_back(tmp_path: Path) -> None:
    """Killed between its two renames: the former dataset is under its other name, the new one beside it."""
    made = messages(tmp_path, 4)
    out = filter_rows(made, tmp_path / "out", EVERY).out
    before = shard_bytes(out)
    out.rename(tmp_path / ".out.vlmdata-old")
    shutil.copytree(made, tmp_path / ".out.vlmdata-new")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        filter_rows(made, out, EVERY)
    assert shard_bytes(out) == before
    assert not list(tmp_path.glob(".out.vlmdata*"))


def test_two_runs_do_not_write_into_each_other(tmp_path: Path) -> None:
    made = messages(tmp_path, 4)
    with locked(tmp_path / "out"), pytest.raises(OutputExistsError, match="another run"):
        filter_rows(made, tmp_path / "out", EVERY)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    made = messages(tmp_path, 4)
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(ConfigError, match="cannot write to .*No space"),
        publishing(tmp_path / "out", [made], overwrite=False),
    ):
        raise full
    bug = OSError(errno.EBADF, "Bad file descriptor")
    with pytest.raises(OSError, match="Bad file"), publishing(tmp_path / "out", [made], overwrite=False):
        raise bug
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_reading_may_stop_early(tmp_path: Path) -> None:
    shards = open_shards(messages(tmp_path, 20, shard_size=2000))
    groups = row_groups(shards)
    start, table = next(groups)
    groups.close()  # type: ignore[attr-defined]
    assert start == 0 and table.column("id").to_pylist() == ids_of(shards.path)[: table.num_rows]


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    made = messages(tmp_path, 4)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be made"):
        filter_rows(made, tmp_path / "file" / "out", EVERY)


def test_damaged_parents_are_named(tmp_path: Path) -> None:
    made = messages(tmp_path, 4)
    shard = open_shards(made).files[0]
    table = pq.read_table(shard)
    pq.write_table(table.drop_columns(["meta"]), shard)
    with pytest.raises(DataError, match="other columns"):
        filter_rows(made, tmp_path / "out", EVERY)
    shard.write_bytes(b"PAR1" + encoded())
    with pytest.raises(DataError, match="cannot be read"):
        filter_rows(made, tmp_path / "out", EVERY)
    assert not (tmp_path / "out").exists()


def test_dropped_rows_name_their_place_in_the_parent(tmp_path: Path) -> None:
    made = messages(tmp_path, 12, shard_size=1500)
    done = filter_rows(made, tmp_path / "out", Conditions(where="images == 1"))
    lines = [json.loads(line) for line in (done.out / "rejects.jsonl").read_text().splitlines()]
    assert lines and [line["id"] for line in lines] == [one for one in ids_of(made) if one not in ids_of(done.out)]
    for line in lines:
        assert pq.read_table(made / line["file"]).column("id")[line["row"]].as_py() == line["id"]
