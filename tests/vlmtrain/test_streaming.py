"""Streamed rows are the rows of the plain way, read when they are needed, in the same order every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import colour_rows as rows
import numpy as np
import pytest
import torch
from killed import killed_after
from safetensors.torch import load_file

from vlmdata.errors import ConfigError, DataError
from vlmtrain import dpo, sft
from vlmtrain.data import open_data
from vlmtrain.runs import RunResult
from vlmtrain.training import begin

BUFFER = 12


def conversations(number: int) -> list[Any]:
    """Rows of many lengths; eight of forty are too long for 60 tokens."""
    made = rows.colours(number)
    for place, row in enumerate(made):
        row["messages"][0]["content"][1]["text"] += " really" * (place % 5) + " word" * (80 if place % 7 == 3 else 0)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("stream") / "data", conversations(40), files=8)


def job(data: list[Any], out: Path, base: Path, method: str = "sft", **options: Any) -> Any:
    options = {"model": str(base), "batch_size": 4, "max_length": 60, **options}
    found = begin(method, data=data, out=out, progress=False, options=options)
    assert not isinstance(found, RunResult)
    return found


def streamed(data: list[Any], out: Path, base: Path, method: str = "sft", **options: Any) -> Any:
    return job(data, out, base, method, streaming=True, shuffle_buffer=BUFFER, **options)


def test_rows_are_those_of_the_plain_way(data: Path, base: Path, tmp_path: Path) -> None:
    plain, stream = job([data], tmp_path / "a", base), streamed([data], tmp_path / "b", base)
    for row in plain.rows:
        found = stream.rows[row["row"]]
        found["answers"] = [list(span) for span in found["answers"]]
        assert {key: found[key] for key in row} == row
    several = stream.rows[[5, 0, 39, 5]]
    assert several["row"] == [5, 0, 39, 5] and several["id"][0] == several["id"][3]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_that_of_the_plain_way(data: Path, base: Path, tmp_path: Path, workers: int) -> None:
    """Each pass has every row that fits, once; as many as did not fit come a second time."""
    plain = job([data], tmp_path / "a", base)
    made = streamed([data], tmp_path / "b", base, workers=workers)
    trainer = sft.make_trainer(made)
    seen: list[int] = []
    plain_collate = trainer.data_collator.collate

    def collate(batch: Any) -> Any:
        return {**plain_collate(batch), "numbers": torch.tensor([row["row"] for row in batch])}

    trainer.data_collator.collate = collate
    for batch in trainer.get_train_dataloader():
        seen += batch["numbers"].tolist()
    kept = set(plain.rows["row"])
    assert len(kept) == 32 and len(seen) == 40
    assert set(seen) == kept and Counter(Counter(seen).values()) == {1: 24, 2: 8}
    names = [name for _, (name, *_) in sorted(made.fitting.dropped.items())]
    assert names == [entry["id"] for entry in dropped(plain)]
    assert seen != sorted(seen)


def dropped(made: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((made.folder.path / "dropped.json").read_text())
    return found


def test_images_are_read_once_and_few_are_held(data: Path, base: Path, tmp_path: Path) -> None:
    made = streamed([data], tmp_path / "b", base)
    trainer = sft.make_trainer(made)
    stream = made.fitting.stream
    held, plain = [], stream.table

    def table(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        held.append(sum(len(group) for (_, images), group in stream._kept.items() if images))
        return found

    stream.table = table
    stream.reads = 0
    assert sum(len(batch["labels"]) for batch in trainer.get_train_dataloader()) == 40
    # Eight row groups, each once for its texts and once with its images, and those of the first rows again at the end.
    assert 16 <= stream.reads <= 22
    assert 0 < max(held) <= BUFFER + 2 * 5


def test_what_is_skipped_is_not_read(data: Path, base: Path, tmp_path: Path) -> None:
    """At --resume the order is made again from texts; images of rows that were trained on stay where they are."""
    from accelerate import skip_first_batches

    made = streamed([data], tmp_path / "b", base)
    trainer = sft.make_trainer(made)
    stream = made.fitting.stream
    numbers: list[int] = []
    plain = stream.table

    def table(chosen: Any, *, images: bool = True) -> Any:
        if images:
            numbers.extend(int(one) for one in np.asarray(chosen))
        return plain(chosen, images=images)

    stream.table = table
    everything = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    numbers.clear()
    rest = [batch["input_ids"] for batch in skip_first_batches(trainer.get_train_dataloader(), 7)]
    assert len(numbers) == 40 - 7 * 4
    assert len(rest) == 3 and all(torch.equal(a, b) for a, b in zip(everything[7:], rest, strict=True))


def test_killed_and_resumed_is_undisturbed(data: Path, base: Path, tmp_path: Path) -> None:
    """Mixed, streamed, with workers and accumulation, killed in the middle of the second epoch."""
    other = rows.write(tmp_path / "other", rows.colours(12), files=3)
    options: dict[str, Any] = {
        "model": str(base), "batch_size": 2, "accumulate": 2, "max_length": 60, "epochs": 2, "learning_rate": 1e-3,
        "streaming": True, "shuffle_buffer": BUFFER, "data_weights": (2, 1), "lora_dropout": 0.2, "save_steps": 2,
        "progress": False,
    }  # fmt: skip
    sft.train([data, other], tmp_path / "whole", **options)
    with killed_after(sft, 5):
        sft.train([data, other], tmp_path / "cut", **options, workers=2)
    resumed = sft.train([data, other], tmp_path / "cut", resume=True, **options, workers=1)
    assert resumed.metrics["resumed_from_step"] == 4 and resumed.metrics["steps"] == 18
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    counts = [json.loads((tmp_path / name / "metrics.json").read_text())["rows"] for name in ("whole", "cut")]
    assert counts[0] == counts[1] and counts[0]["dropped"] == {"too_long": 8}
    assert len(json.loads((tmp_path / "whole" / "dropped.json").read_text())) == 8


def test_preferences_are_streamed_with_a_live_reference(base: Path, tmp_path: Path) -> None:
    data = rows.write(tmp_path / "pairs", rows.pairs(12), files=3)
    options: dict[str, Any] = {"model": str(base), "streaming": True, "batch_size": 4, "progress": False}
    run = dpo.train(data, tmp_path / "run", **options)
    assert run.config["reference"] == "live" and run.metrics["steps"] == 3
    plain = dpo.train(data, tmp_path / "plain", model=str(base), max_steps=1, batch_size=12, progress=False)
    assert plain.metrics["final"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    with pytest.raises(ConfigError, match="reference=precompute goes through all rows"):
        dpo.train(data, tmp_path / "no", reference="precompute", **options)


def test_a_row_that_does_not_fit_can_be_an_error(data: Path, base: Path, tmp_path: Path) -> None:
    trainer = sft.make_trainer(streamed([data], tmp_path / "b", base, on_long="fail"))
    with pytest.raises(DataError, match=r"row 'row-\d+' does not fit \(too_long: .*on_long is fail"):
        list(trainer.get_train_dataloader())


def test_what_needs_all_rows_is_refused(data: Path, base: Path, tmp_path: Path) -> None:
    for more, said in (
        ({"streaming": True, "eval_fraction": 0.2}, "vlmdata split and --eval-data"),
        ({"streaming": True, "weight_by": "weight"}, "weight_by needs all rows"),
        ({"shuffle_buffer": 5}, "shuffle_buffer is for streaming=true"),
    ):
        with pytest.raises(ConfigError, match=said):
            job([data], tmp_path / "x", base, **more)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_from_an_object_store(data: Path, base: Path, tmp_path: Path, store: Any, streaming: bool) -> None:
    store.put(str(data), "/bucket/data", recursive=True)
    address = "memory://bucket/data"
    local = open_data([data], "messages").rows
    far = open_data([address], "messages", streaming=streaming)
    assert far.origin == open_data([data], "messages").origin
    assert [far.rows[i] for i in (0, 17, 39)] == [local[i] for i in (0, 17, 39)]
    run = sft.train(
        address, tmp_path / "run", model=str(base), max_steps=2, max_length=60, streaming=streaming, progress=False
    )
    assert run.metrics["steps"] == 2
    assert not Path("memory:").exists()


def test_shared_images_are_counted(data: Path, base: Path, tmp_path: Path) -> None:
    """A quarter of the evaluation rows is red, which is trained on."""
    evaluated = [rows.sample("a", [rows.user(rows.PLACE, "?"), rows.assistant("!")], [rows.picture(c)]) for c in
                 ("red", "#010203", "#020304", "#030405")]  # fmt: skip
    held = rows.write(tmp_path / "held", evaluated)
    for streaming in (False, True):
        found = begin(
            "sft",
            data=[data],
            eval_data=[held],
            out=tmp_path / f"run-{streaming}",
            progress=False,
            options={"model": str(base), "streaming": streaming},
        )
        assert not isinstance(found, RunResult)
        assert found.counts["eval_rows_on_training_images"] == 1
