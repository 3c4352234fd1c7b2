"""Opening, holding out and ordering rows."""

from __future__ import annotations

from pathlib import Path

import colour_rows as rows
import pytest

from vlmdata.errors import ConfigError, DataError
from vlmtrain import data as module
from vlmtrain.data import Grouped, hold_out, open_data


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


def test_order_is_decided_by_seed_and_epoch() -> None:
    lengths = [(i * 37) % 101 for i in range(203)]
    order = Grouped(203, 8, 3, lengths)
    first = list(order)
    assert sorted(first) == list(range(203)) == sorted(range(len(order)))
    assert list(order) == first
    order.set_epoch(1)
    second = list(order)
    assert second != first
    assert list(Grouped(203, 8, 4, lengths)) != first
    order.set_epoch(0)
    assert list(order) == first


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = [(i * 37) % 101 for i in range(400)]

    def padding(rows_in_order: list[int]) -> int:
        batches = [rows_in_order[i : i + 8] for i in range(0, 400, 8)]
        return sum(max(lengths[r] for r in batch) - lengths[r] for batch in batches for r in batch)

    assert padding(list(Grouped(400, 8, 0, lengths))) < padding(list(Grouped(400, 8, 0, None))) / 10


def test_only_the_last_batch_is_small() -> None:
    lengths = list(range(21))
    order = list(Grouped(21, 4, 0, lengths))
    for start in range(0, 20, 4):
        batch = order[start : start + 4]
        assert max(batch) - min(batch) == 3, "a full batch of neighbours in length"
