"""Opening, holding out and ordering rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import colour_rows as rows
import numpy as np
import pytest

from vlmdata.errors import ConfigError, DataError
from vlmtrain import data as module
from vlmtrain.data import hold_out, open_data
from vlmtrain.ordering import Batches, Grouped, Part, shuffled, whole


def test_datasets_are_joined_in_order(tmp_path: Path) -> None:
    first, second = rows.write(tmp_path / "a", rows.colours(5), files=2), rows.write(tmp_path / "b", rows.colours(3))
    opened = open_data([first, second], "messages")
    assert len(opened.rows) == 8
    assert [entry["name"] for entry in opened.origin] == ["a", "b"]
    assert opened.rows[0]["images"][0]["bytes"].startswith(b"\x89PNG"), "images stay encoded"
    assert opened.rows[0]["messages"][0]["content"][0] == {"type": "image", "text": None}


def test_large_data_is_memory_mapped_to_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = rows.write(tmp_path / "a", rows.colours(5), files=2)
    small = open_data([folder], "messages").rows
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    large = open_data([folder], "messages").rows
    assert large.cache_files and not small.cache_files
    assert [large[i] for i in range(5)] == [small[i] for i in range(5)]


def test_no_data() -> None:
    with pytest.raises(ConfigError, match="no data given"):
        open_data([], "messages")


def test_held_out_rows_share_no_image(tmp_path: Path) -> None:
    made = rows.colours(40) + [rows.sample(f"t{i}", [rows.user("a"), rows.assistant("b")], []) for i in range(10)]
    opened = open_data([rows.write(tmp_path / "a", made)], "messages").rows
    train, held = hold_out(opened, 0.3, seed=0)
    assert sorted(train + held) == list(range(50)) and len(held) >= 15
    hashes = opened["image_sha256"]
    assert not {h for i in train for h in hashes[i]} & {h for i in held for h in hashes[i]}
    assert hold_out(opened, 0.3, seed=0) == (train, held)
    assert hold_out(opened, 0.3, seed=1) != (train, held)
    one = open_data([rows.write(tmp_path / "b", rows.colours(1) * 3)], "messages").rows
    with pytest.raises(DataError, match="--eval-fraction 0.5 of 3 rows on 1 images leaves one side empty"):
        hold_out(one, 0.5, seed=0)


def grouped(lengths: list[int], step: int, seed: int = 0, group: bool = True, **options: Any) -> Grouped:
    size = len(lengths)
    measure = (lambda chosen: [lengths[row] for row in chosen]) if group else None
    return Grouped([Part(size, size, whole(np.arange(size), seed))], step, step, seed, measure, **options)


def test_order_is_decided_by_seed_and_epoch() -> None:
    lengths = [(i * 37) % 101 for i in range(203)]
    order = grouped(lengths, 8, 3)
    first = list(order)
    assert sorted(first) == list(range(203)) == sorted(range(len(order)))
    assert list(order) == first
    order.set_epoch(1)
    second = list(order)
    assert second != first and sorted(second) == sorted(first)
    assert list(grouped(lengths, 8, 4)) != first
    order.set_epoch(0)
    assert list(order) == first
    assert all(type(row) is int for row in first), "what datasets index with"


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = [(i * 37) % 101 for i in range(400)]

    def padding(rows_in_order: list[int]) -> int:
        batches = [rows_in_order[i : i + 8] for i in range(0, 400, 8)]
        return sum(max(lengths[r] for r in batch) - lengths[r] for batch in batches for r in batch)

    assert padding(list(grouped(lengths, 8))) < padding(list(grouped(lengths, 8, group=False))) / 10


def test_only_the_last_batch_is_small() -> None:
    order = list(grouped(list(range(21)), 4))
    for start in range(0, 20, 4):
        batch = order[start : start + 4]
        assert max(batch) - min(batch) <= 4, "a full batch of neighbours in length, but for the one left over"


@pytest.mark.parametrize("rows_in_all", [48, 45, 41, 33, 7, 1])
def test_a_step_has_the_same_rows_however_it_is_divided(rows_in_all: int) -> None:
    """8 rows a step: in one batch, in accumulated ones, on two or four devices."""
    lengths = [(i * 37) % 101 for i in range(rows_in_all)]
    order = list(grouped(lengths, 8))
    expected = [sorted(order[start : start + 8]) for start in range(0, rows_in_all, 8)]
    for batch, accumulate, processes in ((8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4)):
        batches = Batches(grouped(lengths, 8), 8, batch, processes)
        found = list(batches)
        assert len(found) == len(batches) and not len(found) % processes
        rounds = [found[at : at + processes] for at in range(0, len(found), processes)]
        assert all(len({len(one) for one in turn}) == 1 for turn in rounds), "each device has as many rows"
        steps = [rounds[at : at + accumulate] for at in range(0, len(rounds), accumulate)]
        taken = [sorted(row for turn in step for one in turn for row in one) for step in steps]
        last = expected[-1] + (expected[-1] * processes)[: -len(expected[-1]) % processes]
        assert taken[:-1] == expected[:-1]
        assert sorted(set(taken[-1])) == expected[-1] and len(taken[-1]) == len(last)


def test_rows_that_are_left_out_make_room_for_the_first_of_the_epoch() -> None:
    """The length of an epoch is known before it is read; every row that can be used is in it."""
    size = 100
    measure = lambda chosen: [None if row % 10 == 3 else int(row) for row in chosen]  # noqa: E731
    order = Grouped([Part(size, size, whole(np.arange(size), 0))], 8, 4, 0, measure, run=16)
    taken = list(order)
    good = {row for row in range(size) if row % 10 != 3}
    assert len(taken) == len(order) == size and set(taken) == good
    assert taken[90:] == taken[:10]
    with pytest.raises(DataError, match="no row of 100 can be trained on"):
        list(Grouped([Part(size, size, whole(np.arange(size), 0))], 8, 4, 0, lambda chosen: [None] * len(chosen)))


def test_groups_come_shuffled_and_a_buffer_holds_few_of_them() -> None:
    groups = [10] * 30
    order = list(Grouped([Part(300, 300, shuffled(groups, 1))], 4, 4, 1, run=40))
    assert sorted(order) == list(range(300))
    for start in range(0, 300, 40):
        assert len({row // 10 for row in order[start : start + 40]}) <= 5, "rows of a buffer lie in so many groups"
    assert [row // 10 for row in order[:40]] != sorted(row // 10 for row in order[:40])
