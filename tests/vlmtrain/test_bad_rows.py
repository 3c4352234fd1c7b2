"""Rows that cannot be read are replaced, named and counted, alike whatever reads them; no run ends by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import colour_rows as rows
import numpy as np
import pytest
from killed import killed_after
from run_files import same

from vlmdata.errors import ConfigError, DataError
from vlmtrain import dpo, sft
from vlmtrain.bad_rows import BAD, Ledger, Tolerant


def spoil(made: list[Any], places: tuple[int, ...]) -> list[Any]:
    """Cut the images of some rows short, as a shard made elsewhere may hold them: sizes still stand beside them."""
    for place in places:
        made[place]["images"][0]["bytes"] = made[place]["images"][0]["bytes"][:50]
    return made


def entries(run: Path) -> list[dict[str, Any]]:
    file = run / "bad_rows.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_the_next_row_takes_the_place() -> None:
    data = [{"row": 10 + i, "id": f"r{i}", "length": 1, "value": None if i in (1, 2, 5) else i} for i in range(6)]

    def collate(batch: Any) -> dict[str, Any]:
        return {"values": [row["value"] + 0 for row in batch]}

    tolerant = Tolerant(collate, [(data, np.arange(10, 16))])
    assert tolerant(data[3:5]) == {"values": [3, 4]}
    found = tolerant([data[0], data[1], data[5]])
    assert found["values"] == [0, 3, 0], "row 2 is bad too, and after the last comes the first"
    assert [(place, number, name) for place, number, name, _ in found[BAD]] == [(1, 11, "r1"), (2, 15, "r5")]
    assert tolerant([data[1], data[2]])["values"] == [3, 3], "no batch is empty"


def test_faults_that_are_no_rows_are_raised() -> None:
    data = [{"row": i, "id": f"r{i}", "length": 1} for i in range(4)]

    def together(batch: Any) -> dict[str, Any]:
        if len(batch) > 1:
            raise DataError("these do not go together")
        return {}

    with pytest.raises(DataError, match="do not go together"):
        Tolerant(together, [(data, None)])(data[:2])

    def settings(batch: Any) -> dict[str, Any]:
        raise ConfigError("no chat template")

    with pytest.raises(ConfigError, match="no chat template"):
        Tolerant(settings, [(data, None)])(data[:2])

    def never(batch: Any) -> dict[str, Any]:
        raise AttributeError("a mistake of ours")

    with pytest.raises(DataError, match="4 rows on end cannot be read, from 'r0' on: a mistake of ours"):
        Tolerant(never, [(data, None)])(data[:2])


def test_the_ledger_survives_its_run(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "bad_rows.jsonl"
    ledger = Ledger(file, said.append, fail=False)
    noted = {BAD: [(0, 7, "seven", "cut"), (2, 3, "three", "odd\nlines")], "x": 1}
    assert ledger.take(noted) == [0, 2] and noted == {"x": 1}
    ledger.take({BAD: [(0, 7, "seven", "cut")]})
    with file.open("a") as stream:
        stream.write('{"row": 1, "id": "cut sh')
    again = Ledger(file, said.append, fail=False)
    again.take({BAD: [(1, 3, "three", "odd"), *((0, n, str(n), "bad") for n in range(10, 14))]})
    assert again.close() == [3, 7, 10, 11, 12, 13]
    assert [entry["row"] for entry in entries(tmp_path)] == [3, 7, 10, 11, 12, 13]
    assert said[-1] == "more rows cannot be read: see bad_rows.jsonl" and len(said) == 6
    with pytest.raises(DataError, match="row 'seven' cannot be read, and on_bad_row is fail: cut"):
        Ledger(file, said.append, fail=True).take({BAD: [(0, 7, "seven", "cut")]})


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_run_goes_on(method: str, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In training, in the reference pass and in evaluation; workers change nothing."""
    made = rows.colours(16) if method == "sft" else rows.pairs(16)
    data = rows.write(tmp_path / "data", spoil(made, (2, 3, 11)))
    held = rows.write(tmp_path / "held", spoil(rows.colours(6) if method == "sft" else rows.pairs(6), (5,)))
    train: Any = {"sft": sft.train, "dpo": dpo.train}[method]
    options: dict[str, Any] = {"model": str(base), "batch_size": 4, "learning_rate": 1e-3, "eval_data": [held]}
    run = train(data, tmp_path / "run", **options)
    said = capfd.readouterr().err
    assert "4 rows could not be read, others took their places (bad_rows.jsonl)" in said
    assert "image 0" in said and run.metrics["steps"] == 4
    counts = run.metrics["rows"]
    assert (counts["read"], counts["kept"], counts["unreadable"]) == (16, 13, 3)
    assert (counts["eval"]["read"], counts["eval"]["kept"], counts["eval"]["unreadable"]) == (6, 5, 1)
    found = entries(tmp_path / "run")
    assert [entry["row"] for entry in found] == [2, 3, 11, 21] and "decoded" in found[0]["reason"]
    train(data, tmp_path / "workers", **options, workers=2, progress=False)
    assert same(tmp_path / "run", tmp_path / "workers") and entries(tmp_path / "workers") == found


def test_a_whole_batch_can_be_bad(base: Path, tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", spoil(rows.colours(8), (0, 1, 2, 3, 4, 5, 6)))
    run = sft.train(data, tmp_path / "run", model=str(base), batch_size=2, progress=False)
    assert run.metrics["steps"] == 4 and run.metrics["rows"]["unreadable"] == 7
    with pytest.raises(DataError, match=r"8 rows on end cannot be read, from 'row-\d' on: image 0"):
        every = rows.write(tmp_path / "every", spoil(rows.colours(8), tuple(range(8))))
        sft.train(every, tmp_path / "none", model=str(base), batch_size=2, progress=False)


def test_bad_rows_can_be_an_error(base: Path, tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", spoil(rows.colours(8), (3,)))
    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            sft.train(
                data, tmp_path / f"{workers}", model=str(base), on_bad_row="fail", workers=workers, progress=False
            )
        assert str(caught.value).startswith("row 'row-3' cannot be read, and on_bad_row is fail: image 0")
        assert "\n" not in str(caught.value)


def test_resumed_with_bad_rows_is_undisturbed(base: Path, tmp_path: Path) -> None:
    from test_resume import OPTIONS

    data = rows.write(tmp_path / "data", spoil(rows.colours(30), (1, 8, 9, 20, 29)))
    options: dict[str, Any] = {**OPTIONS, "model": str(base)}
    sft.train(data, tmp_path / "whole", **options)
    with killed_after(sft, 5):
        sft.train(data, tmp_path / "cut", **options, workers=2)
    resumed = sft.train(data, tmp_path / "cut", resume=True, **options)
    assert resumed.metrics["resumed_from_step"] == 4
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert entries(tmp_path / "whole") == entries(tmp_path / "cut") and len(entries(tmp_path / "cut")) == 5


def test_streamed_bad_rows_are_the_same(base: Path, tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", spoil(rows.colours(16), (2, 15)), files=4)
    run = sft.train(data, tmp_path / "run", model=str(base), streaming=True, shuffle_buffer=8, progress=False)
    # Files take turns in being written: rows are numbered as they lie.
    assert {entry["id"] for entry in entries(tmp_path / "run")} == {"row-2", "row-15"}
    assert run.metrics["rows"]["unreadable"] == 2 and run.metrics["rows"]["kept"] == 14


def test_a_shape_the_processor_cannot_take(bases: dict[str, Path], tmp_path: Path) -> None:
    """400 x 1, stored as 40 x 40: what Qwen2-VL's processor raises is found when the row is read."""
    made = rows.colours(8)
    made[5]["images"][0]["bytes"] = rows.picture("red", (400, 1))
    run = sft.train(rows.write(tmp_path / "data", made), tmp_path / "run", model=str(bases["qwen2_vl"]), progress=False)
    (found,) = entries(tmp_path / "run")
    assert found["id"] == "row-5" and "ratio" in found["reason"] and run.metrics["steps"] == 2
