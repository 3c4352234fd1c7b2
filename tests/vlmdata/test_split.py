from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made import assert_valid, ids_of, labelled, messages, preferences, row, rows_of
from rawfiles import shard_bytes

from vlmdata.commands.split import split as command
from vlmdata.errors import ConfigError, DataError, OutputExistsError
from vlmdata.grouping import allot, quotas, together
from vlmdata.manifest import Manifest
from vlmdata.split import parse_parts, split_lines, split_rows

KEYS = st.lists(st.lists(st.integers(0, 15), max_size=3), max_size=30)


@settings(deadline=None)
@given(KEYS)
def test_groups_are_the_connected_rows(keys: list[list[int]]) -> None:
    """Against plain repeated merging."""
    sets = [{place} for place in range(len(keys))]
    for left in range(len(keys)):
        for right in range(left):
            if set(keys[left]) & set(keys[right]):
                merged = sets[left] | sets[right]
                for place in merged:
                    sets[place] = merged
    groups = together(keys)
    for left in range(len(keys)):
        for right in range(len(keys)):
            assert (groups[left] == groups[right]) == (right in sets[left])
    firsts = [int(np.flatnonzero(groups == number)[0]) for number in range(len(set(groups.tolist())))]
    assert firsts == sorted(firsts)


@settings(deadline=None)
@given(st.integers(0, 500), st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_quotas_add_up_and_are_near(rows: int, weights: list[int]) -> None:
    shares = np.array(weights) / sum(weights)
    found = quotas(rows, shares)
    assert found.sum() == rows
    assert (np.abs(found - rows * shares) < 1).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_groups_fill_the_parts(sizes: list[int], weights: list[int]) -> None:
    held = np.array(sizes)
    targets = quotas(int(held.sum()), np.array(weights) / sum(weights)).tolist()
    parts = allot(held, targets, range(len(sizes)))
    got = np.bincount(parts, held, len(targets))
    assert got.sum() == held.sum()
    # No part is over its target by a group or more.
    assert (got - targets < held.max()).all()
    if held.max() == 1:
        assert got.tolist() == targets


def assert_apart(out: Path, made: Path) -> dict[str, list[str]]:
    """No image in two parts, every row in one; the ids by part."""
    told = json.loads((out / "split.json").read_text())
    images: dict[str, set[str]] = {}
    ids = {}
    for name, part in told["parts"].items():
        rows = rows_of(out / name)
        assert part["records"] == len(rows)
        images[name] = {sha256 for held in rows for sha256 in held["image_sha256"]}
        ids[name] = [held["id"] for held in rows]
        manifest = Manifest.read(out / name)
        assert manifest.rows.read == manifest.rows.kept == len(rows) == manifest.parents[0].taken
        assert manifest.split == name and manifest.command == "split"
        assert_valid(out / name)
    assert sum(map(len, images.values())) == len(set().union(*images.values()))
    assert sorted(one for held in ids.values() for one in held) == sorted(ids_of(made))
    assert sum(part["records"] for part in told["parts"].values()) == told["parent"]["records"]
    return ids


@settings(max_examples=8, deadline=None)
@given(seeds=st.lists(st.lists(st.integers(0, 25), max_size=3), min_size=12, max_size=24), seed=st.integers(0, 9))
def test_no_image_stands_in_two_parts(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[list[int]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    # Rows of their own see to it that there is something for every part.
    made = messages(folder, [row(*held) for held in seeds] + [row(100 + number) for number in range(30)])
    try:
        split_rows(made, folder / "out", "a=0.6,b=0.4", seed=seed)
    except DataError as error:
        assert "would be empty" in str(error)
        return
    assert_apart(folder / "out", made)


def test_shares_are_met_and_order_is_kept(tmp_path: Path) -> None:
    made = messages(tmp_path, [row(number) for number in range(60)], shard_size=3000)
    done = split_rows(made, tmp_path / "out")
    ids = assert_apart(done.out, made)
    assert {name: len(held) for name, held in ids.items()} == {"train": 48, "validation": 6, "test": 6}
    order = {one: place for place, one in enumerate(ids_of(made))}
    assert all(held == sorted(held, key=order.__getitem__) for held in ids.values())
    assert "48 + 6 + 6 = 60" in split_lines(done)[-1]


def test_the_seed_decides(tmp_path: Path) -> None:
    made = messages(tmp_path, [row(number) for number in range(40)])
    one, two, other = (split_rows(made, tmp_path / str(n), seed=seed).out for n, seed in enumerate((3, 3, 4)))
    for name in ("train", "validation", "test"):
        assert shard_bytes(one / name) == shard_bytes(two / name)
    assert (one / "split.json").read_bytes() == (two / "split.json").read_bytes()
    assert ids_of(one / "test") != ids_of(other / "test")


def test_turns_of_one_image_and_linked_images_stay_together(tmp_path: Path) -> None:
    rows = [row(1, 2), *[row(10 + n) for n in range(9)], row(2, 3), row(3), row(1, question="Again?")]
    made = messages(tmp_path, rows)
    done = split_rows(made, tmp_path / "out", "train=rest,test=4", seed=1)
    ids = assert_apart(done.out, made)
    linked = {"geo.parquet:0", "geo.parquet:10", "geo.parquet:11", "geo.parquet:12"}
    assert all(not linked & set(held) or linked <= set(held) for held in ids.values())
    assert len(ids["test"]) == 4


def test_classes_are_spread_evenly(tmp_path: Path) -> None:
    labels = [number % 3 if number < 54 else 3 for number in range(60)]
    made = labelled(tmp_path, labels, ["a", "b", "c", "d"])
    done = split_rows(made, tmp_path / "out", "train=0.5,test=0.5", by="label")
    assert_apart(done.out, made)
    parts = done.counts["parts"]
    assert parts["train"]["labels"] == {"a": 9, "b": 9, "c": 9, "d": 3} == parts["test"]["labels"]
    found = Counter(held["label"] for held in rows_of(done.out / "test"))
    assert found == {0: 9, 1: 9, 2: 9, 3: 3}
    odd = split_rows(made, tmp_path / "odd", "train=0.8,test=0.2", by="label").counts["parts"]
    assert odd["train"]["records"] == 48  # classes of 18 and 6 cannot be met each, all together can
    counts = odd["test"]["labels"]
    assert all(abs(counts[name] - 0.2 * (6 if name == "d" else 18)) < 1 for name in "abcd")


def test_rows_with_the_same_value_stay_together(tmp_path: Path) -> None:
    made = labelled(tmp_path, [number % 6 for number in range(36)], list("abcdef"))
    done = split_rows(made, tmp_path / "out", "train=0.5,test=0.5", group_keys=["label"])
    parts = done.counts["parts"]
    assert not set(parts["train"]["labels"]) & set(parts["test"]["labels"])
    assert parts["train"]["groups"] == 3
    pairs = preferences(tmp_path, 6)
    split_rows(pairs, tmp_path / "idx", "a=0.5,b=0.5", group_keys=["meta.idx"])
    with pytest.raises(ConfigError, match="no row of"):
        split_rows(pairs, tmp_path / "none", "a=0.5,b=0.5", group_keys=["meta.nothing"])
    with pytest.raises(DataError, match="1 groups"):
        split_rows(pairs, tmp_path / "file", "a=0.5,b=0.5", group_keys=["file"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=0.5,b=0.5", {"a": 50, "b": 50}),
        ("a=0.333,b=0.667", {"a": 33, "b": 67}),
        ("a=10, b=90", {"a": 10, "b": 90}),
        ("a=rest,b=90", {"a": 10, "b": 90}),
        ("a=0.25,b=rest,c=0.25", {"a": 25, "b": 50, "c": 25}),
    ],
)
def test_parts_are_read(text: str, expected: dict[str, int]) -> None:
    assert parse_parts(text, 100) == expected
    assert list(parse_parts(text, 100)) == list(expected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a=0.5,b=0.4", "add up to 0.9, expected 1; one part may be rest"),
        ("a=0.8,b=0.4", "add up to 1.2, expected 1"),
        ("a=50,b=60", "add up to 110, expected 100 rows"),
        ("a=0.5,b=50", "not both"),
        ("a=1,b=rest,c=rest", "2 times rest"),
        ("a=100,b=rest", "leave nothing"),
        ("a", "name=share"),
        ("a=1.0,b=0.5", "between 0 and 1"),
        ("a=x,b=0.5", "expected a share"),
        ("a=nan,b=0.5", "between 0 and 1"),
        ("a=0,b=100", "between 0 and 1"),
        ("a=0.5,a=0.5", "twice"),
        ("Train=0.5,train=0.5", "twice, case aside"),
        ("../a=0.5,b=0.5", "name=share"),
        ("a=100", "two or more"),
        ("", "name=share"),
    ],
)
def test_parts_that_cannot_work(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_parts(text, 100)


def test_mistakes_come_before_work(tmp_path: Path) -> None:
    made = messages(tmp_path, 6)
    with pytest.raises(ConfigError, match="needs labels"):
        split_rows(made, tmp_path / "out", by="label")
    with pytest.raises(ConfigError, match="valid: source"):
        split_rows(made, tmp_path / "out", group_keys=["colour"])
    with pytest.raises(ConfigError, match="have none"):
        split_rows(made, tmp_path / "out", group_keys=["label"])
    with pytest.raises(ConfigError, match="--seed"):
        split_rows(made, tmp_path / "out", seed=-1)
    with pytest.raises(DataError, match="part validation would be empty"):
        split_rows(messages(tmp_path, [row(1)] * 3, "same"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path) -> None:
    made = messages(tmp_path, [row(number) for number in range(20)])
    words = ["--parts", "train=0.75,test=0.25", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(command, [str(made), *words])
    assert result.exit_code == 0, result.output
    assert "train    15 records, 75.0 %, 15 groups" in result.output
    again = CliRunner().invoke(command, [str(made), *words])
    assert isinstance(again.exception, OutputExistsError)
    replaced = CliRunner().invoke(command, [str(made), "--out", str(tmp_path / "out"), "--overwrite"])
    assert replaced.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["split.json", "test", "train", "validation"]
