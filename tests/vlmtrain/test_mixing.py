"""Several datasets in shares: exact counts, every row as often as the others, the same order every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import colour_rows as rows
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmdata.errors import ConfigError, DataError
from vlmtrain import dpo, sft
from vlmtrain.mixing import check_weights, epoch_counts, take
from vlmtrain.ordering import Grouped, Part, whole
from vlmtrain.runs import RunResult
from vlmtrain.training import begin


def test_shares_are_exact_and_end_at_the_first_or_the_last() -> None:
    assert epoch_counts([100, 30], [], "first") == [100, 30]
    assert epoch_counts([100, 30], [1, 1], "first") == [30, 30]
    assert epoch_counts([100, 30], [1, 1], "all") == [100, 100]
    assert epoch_counts([100, 100], [0.7, 0.3], "first") == [100, 43]
    assert epoch_counts([100, 100], [0.7, 0.3], "all") == [233, 100]
    with pytest.raises(ConfigError, match="1e-06 gives dataset 2 no row"):
        epoch_counts([100, 100], [1, 1e-6], "first")
    with pytest.raises(ConfigError, match="give the small weight more"):
        epoch_counts([10**9, 10], [1e-9, 1], "all")


def test_weights_belong_to_datasets() -> None:
    check_weights((), ["a"])
    for weights, names, said in (
        ((1.0,), ["a"], "for several datasets"),
        ((1.0, 2.0, 3.0), ["a", "b"], "has 3 numbers for 2 datasets: a, b"),
        ((1.0, 0.0), ["a", "b"], "0 for b, expected a number above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_weights(weights, names)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 200), st.integers(1, 90))
def test_a_stretch_of_passes_is_what_stands_there(pieces: list[int], start: int, count: int) -> None:
    size = sum(pieces)
    ends = np.cumsum([0, *pieces])

    def passes(number: int) -> Any:
        for left, right in zip(ends, ends[1:], strict=False):
            yield np.arange(left, right) + 1000 * number

    found = np.concatenate(list(take(passes, size, start, count))).tolist()
    assert found == [at % size + 1000 * (at // size) for at in range(start, start + count)]


def test_over_the_epochs_every_row_is_seen_equally_often() -> None:
    parts = [Part(30, 20, whole(np.arange(30), 0, 0)), Part(10, 20, whole(np.arange(30, 40), 0, 1))]
    order = Grouped(parts, 4, 4, 0)
    seen: Counter[int] = Counter()
    for epoch in range(3):
        order.set_epoch(epoch)
        taken = list(order)
        assert sum(row < 30 for row in taken) == 20 == sum(row >= 30 for row in taken)
        assert [row < 30 for row in taken] != sorted(row < 30 for row in taken), "they are mixed"
        seen += Counter(taken)
    assert {seen[row] for row in range(30)} == {2} and {seen[row] for row in range(30, 40)} == {6}


def job(method: str, tmp_path: Path, base: Path, data: list[Path], **options: Any) -> Any:
    options = {"model": str(base), "batch_size": 2, **options}
    found = begin(method, data=data, out=tmp_path / "run", progress=False, options=options)
    assert not isinstance(found, RunResult)
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_says_what_it_took(tmp_path: Path, base: Path, streaming: bool) -> None:
    a, b = rows.write(tmp_path / "a", rows.colours(30), files=2), rows.write(tmp_path / "b", rows.colours(10))
    options = {"data_weights": (3, 1), "mix_stop": "all", "streaming": streaming, "model": str(base)}
    run = sft.train([a, b], tmp_path / "run", batch_size=10, progress=False, **options)
    assert run.metrics["steps"] == 4
    assert run.metrics["rows"]["mixture"] == [
        {"name": "a", "rows": 30, "in_an_epoch": 30},
        {"name": "b", "rows": 10, "in_an_epoch": 10},
    ]
    again = sft.train([a, b], tmp_path / "again", batch_size=10, progress=False, **options)
    assert again.metrics["final"]["loss"] == run.metrics["final"]["loss"]
    assert json.loads((tmp_path / "run" / "vlmtrain.json").read_text())["config"]["data_weights"] == [3.0, 1.0]


def test_a_dataset_of_which_no_row_is_left(tmp_path: Path, base: Path) -> None:
    long = [rows.sample("long", [rows.user("word " * 90), rows.assistant("a")], [])]
    data = [rows.write(tmp_path / "a", rows.colours(6)), rows.write(tmp_path / "b", long)]
    made = job("sft", tmp_path, base, data, max_length=60, data_weights=(1, 1))
    with pytest.raises(DataError, match="no row of b is left to train on"):
        sft.make_trainer(made)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_text_rows_among_rows_with_images(tmp_path: Path, base: Path, method: str) -> None:
    """Shards without a single image join others, and a batch may have none at all."""
    if method == "sft":
        bare = [rows.sample(f"t{i}", [rows.user(f"Say {i}."), rows.assistant(f"{i}")], []) for i in range(6)]
        pictures = rows.colours(6)
    else:
        bare = [rows.preference(f"t{i}", [rows.user(f"Say {i}.")], f"{i}", "no", []) for i in range(6)]
        pictures = rows.pairs(6)
    data = [rows.write(tmp_path / "bare", bare), rows.write(tmp_path / "pictures", pictures)]
    train: Any = {"sft": sft.train, "dpo": dpo.train}[method]
    run = train(data, tmp_path / "run", model=str(base), batch_size=2, epochs=1, progress=False)
    assert run.metrics["steps"] == 6 and run.metrics["rows"]["kept"] == 12
    assert torch.isfinite(torch.tensor(run.metrics["loss"]))
    module: Any = {"sft": sft, "dpo": dpo}[method]
    trainer = module.make_trainer(job(method, tmp_path / "b", base, data))
    no_images = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    assert "pixel_values" not in no_images
    mixed = trainer.data_collator([trainer.train_dataset[i] for i in (0, 11)])
    assert len(mixed["pixel_values"]) == 1
