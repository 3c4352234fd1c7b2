"""Data that cannot be trained on is told before training, in one line that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import colour_rows as rows
import pyarrow.parquet as pq
import pytest

from vlmdata.errors import DataError, MissingError
from vlmdata.manifest import Manifest
from vlmtrain import dpo, sft
from vlmtrain.data import open_data


def test_data_of_the_other_kind(tmp_path: Path) -> None:
    turns, pairs = rows.write(tmp_path / "turns", rows.colours(2)), rows.write(tmp_path / "pairs", rows.pairs(2))
    with pytest.raises(DataError, match="holds preference rows, expected messages: train on it with vlmtrain dpo"):
        sft.train(pairs, tmp_path / "run", model="vlmtrain:tiny")
    with pytest.raises(DataError, match="holds messages rows, expected preference: train on it with vlmtrain sft"):
        dpo.train(turns, tmp_path / "run", model="vlmtrain:tiny")
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_converted(tmp_path: Path) -> None:
    raw = tmp_path / "plates"
    raw.mkdir()
    (raw / "plates.json").write_text("[]")
    for place in (raw, raw / "plates.json"):
        with pytest.raises(
            DataError, match=r"convert it first, vlmdata convert SOURCE .* --out shards/plates"
        ) as error:
            open_data([place], "messages")
        assert "\n" not in str(error.value)
    with pytest.raises(MissingError, match="no folder .*nothing; expected the --out folder of vlmdata convert"):
        open_data([tmp_path / "nothing"], "messages")


def test_a_conversion_that_was_stopped(tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", rows.colours(2))
    (data / "manifest.json").unlink()
    (data / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="never finished.*vlmdata convert takes --resume"):
        open_data([data], "messages")
    (data / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_data([data], "messages")


def test_shards_that_lack_something(tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", rows.colours(4), files=2)
    (data / "data-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="lacks data-00001-of-00002.parquet of its manifest"):
        open_data([data], "messages")
    other = rows.write(tmp_path / "other", rows.colours(4))
    (file,) = other.glob("*.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["image_size"]), file)
    for streaming in (False, True):
        with pytest.raises(DataError, match="has no column image_size: convert it again"):
            open_data([other], "messages", streaming=streaming)


def test_no_row_is_left(tmp_path: Path, base: Path) -> None:
    data = rows.write(tmp_path / "data", rows.colours(3))
    values = json.loads((data / "manifest.json").read_text())
    empty = tmp_path / "empty"
    shutil.copytree(data, empty)
    Manifest.from_json({**values, "records": 0}).write(empty)
    with pytest.raises(DataError, match="holds no rows: vlmdata convert kept none"):
        open_data([empty], "messages")
    with pytest.raises(DataError, match=r"no row of 3 can be trained on: too_long 3; the first: \d+ text"):
        sft.train(data, tmp_path / "run", model=str(base), max_length=8, progress=False)
    streamed: dict[str, Any] = {"model": str(base), "max_length": 8, "streaming": True, "progress": False}
    with pytest.raises(DataError, match="no row of 3 can be trained on"):
        sft.train(data, tmp_path / "streamed", **streamed)


def test_a_finished_run_is_that_of_its_data_only(tmp_path: Path, base: Path) -> None:
    data, other = (rows.write(tmp_path / name, rows.colours(size)) for name, size in (("a", 4), ("b", 5)))
    options: dict[str, Any] = {"model": str(base), "max_steps": 1, "progress": False}
    run = sft.train(data, tmp_path / "run", **options)
    assert sft.train(data, tmp_path / "run", resume=True, **options).metrics == run.metrics
    with pytest.raises(DataError, match="the data of this run has changed"):
        sft.train(other, tmp_path / "run", resume=True, **options)
