from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made import assert_valid, ids_of, labelled, messages, preferences, row, rows_of
from rawfiles import shard_bytes

from vlmdata.commands.mix import mix as command
from vlmdata.errors import ConfigError, DataError, OutputExistsError
from vlmdata.mix import Ids, Weighted, mix_rows, parse_weighted, schedule

SIZES = st.lists(st.integers(1, 40), min_size=2, max_size=4)


@settings(deadline=None)
@given(SIZES, st.data())
def test_schedules_end_where_they_should(sizes: list[int], data: st.DataObject) -> None:
    weights = [data.draw(st.integers(1, 5)) for _ in sizes]
    seed = data.draw(st.integers(0, 5))
    first = schedule(sizes, weights, seed=seed)
    counts = np.bincount(first, minlength=len(sizes))
    assert (counts <= sizes).all() and (counts == sizes).any()
    every = schedule(sizes, weights, stop="all", seed=seed)
    counts = np.bincount(every, minlength=len(sizes))
    assert (counts >= sizes).all() and counts[every[-1]] == sizes[every[-1]]
    assert every[: len(first)].tolist() == first.tolist()
    capped = schedule(sizes, weights, stop="all", max_epochs=2, seed=seed)
    assert (np.bincount(capped, minlength=len(sizes)) <= 2 * np.array(sizes)).all()
    assert len(first) <= len(capped) <= len(every)
    rows = data.draw(st.integers(1, 3 * sum(sizes)))
    assert schedule(sizes, weights, rows=rows, stop="all", seed=seed).tolist()[: len(every)] == every.tolist()[:rows]
    assert len(schedule(sizes, weights, rows=rows, stop="all", seed=seed)) == rows
    if rows <= len(first):
        assert schedule(sizes, weights, rows=rows, seed=seed).tolist() == first.tolist()[:rows]


def test_schedules_follow_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    order = schedule([10**6, 10**6, 10**6], [5, 3, 2], rows=200_000)
    assert np.abs(np.bincount(order) / 200_000 - [0.5, 0.3, 0.2]).max() < 0.01
    monkeypatch.setattr("vlmdata.mix._DRAWN", 7)
    assert schedule([10**6] * 3, [5, 3, 2], rows=500).tolist() == order[:500].tolist()
    assert len(schedule([3, 50], [1, 1], stop="all")) >= 50


def test_schedules_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="ends after .*; --stop all"):
        schedule([10, 10], [1, 1], rows=100)
    with pytest.raises(ConfigError, match="give more --max-epochs"):
        schedule([10, 10], [1, 1], rows=100, stop="all", max_epochs=2)
    with pytest.raises(ConfigError, match="rows would be written"):
        schedule([10, 10], [1, 1e-12], stop="all")


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["x", "y", "a/x", "b/x", "x#2", "a/x#2"]), unique=True), min_size=2, max_size=2),
    st.integers(1, 3),
)
def test_new_ids_are_never_the_same(ids: list[list[str]], epochs: int) -> None:
    fresh = Ids(["a", "b"], ids)
    named = [
        (one, fresh.new(parent, one, time))
        for time in range(1, epochs + 1)
        for parent, held in enumerate(ids)
        for one in held
    ]
    assert len({new for _, new in named}) == len(named)
    shared = set(ids[0]) & set(ids[1])
    assert all(new == one for one, new in named[: sum(map(len, ids))] if one not in shared)


def test_rows_of_both_in_their_order(tmp_path: Path) -> None:
    one = messages(tmp_path, 30, "one", shard_size=3000)
    two = messages(tmp_path, 20, "two", licence="MIT", turns="split")
    done = mix_rows([Weighted(one, 0.7), Weighted(two, 0.3)], tmp_path / "out", seed=2)
    rows = rows_of(done.out)
    everything = {held["id"]: held for folder in (one, two) for held in rows_of(folder)}
    assert all(held == everything[held["id"]] for held in rows)
    for folder in (one, two):
        order = ids_of(folder)
        here = [held["id"] for held in rows if held["id"] in set(order)]
        assert here == order[: len(here)]
    assert {parent.name: parent.taken for parent in done.manifest.parents} == Counter(
        held["id"].split(".")[0] for held in rows
    )
    assert done.manifest.rows.read == done.manifest.rows.kept == len(rows)
    licences = [manifest["licence"] for manifest in rows[:1]]
    assert done.manifest.licence.endswith("; MIT") and licences[0] in done.manifest.licence
    assert done.manifest.options["weights"] == {"one": 0.7, "two": 0.3}
    assert_valid(done.out)
    again = mix_rows([Weighted(one, 0.7), Weighted(two, 0.3)], tmp_path / "again", seed=2)
    assert shard_bytes(done.out) == shard_bytes(again.out)
    assert ids_of(mix_rows([Weighted(one, 0.7), Weighted(two, 0.3)], tmp_path / "s", seed=3).out) != ids_of(done.out)


def test_rows_that_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmdata.mix.ROW_GROUP_BYTES", 3000)
    few, many = messages(tmp_path, 3, "few"), messages(tmp_path, [row(n) for n in range(12)], "many")
    done = mix_rows([Weighted(few, 1), Weighted(many, 1)], tmp_path / "out", stop="all")
    ids = ids_of(done.out)
    assert {one for one in ids if one.startswith("many")} >= set(ids_of(many))
    again = [one for one in ids if one.startswith("few")]
    assert again[:4] == ["few.parquet:0", "few.parquet:1", "few.parquet:2", "few.parquet:0#2"]
    by_id = {held["id"]: held for held in rows_of(done.out)}
    assert by_id["few.parquet:0#2"]["image_sha256"] == by_id["few.parquet:0"]["image_sha256"]
    assert done.manifest.parents[0].taken == len(again) > 3
    assert_valid(done.out)
    exact = mix_rows([Weighted(few, 1), Weighted(many, 1)], tmp_path / "exact", rows=40, stop="all")
    assert exact.manifest.records == 40


def test_ids_that_both_have(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    one, two = messages(tmp_path / "x", 4), messages(tmp_path / "y", 4)
    done = mix_rows([Weighted(one, 1), Weighted(two, 1)], tmp_path / "out", rows=6, stop="all")
    assert all(held.startswith(("x/geo/geo.parquet:", "y/geo/geo.parquet:")) for held in ids_of(done.out))
    assert list(done.manifest.options["weights"]) == ["x/geo", "y/geo"]
    assert_valid(done.out)


def test_only_what_is_alike_is_mixed(tmp_path: Path) -> None:
    geo, pairs = messages(tmp_path, 3), preferences(tmp_path, 3)
    food = labelled(tmp_path, [0, 1], ["a", "b"])
    other = labelled(tmp_path, [0, 1], ["a", "c"], "other")
    for left, right, says in (
        (geo, pairs, "one kind"),
        (geo, food, "0 and 2 classes"),
        (food, other, "class 1 is b and c"),
    ):
        with pytest.raises(DataError, match=says):
            mix_rows([Weighted(left, 1), Weighted(right, 1)], tmp_path / "out")
    same = labelled(tmp_path, [1, 1], ["a", "b"], "same")
    done = mix_rows([Weighted(food, 1), Weighted(same, 1)], tmp_path / "out", stop="all")
    assert done.manifest.label_names == ("a", "b")
    assert_valid(done.out)


def test_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert parse_weighted(["x=0.7", "y", "z=2", str(tmp_path / "a=b"), f"{tmp_path / 'a=b'}=.5"]) == [
        Weighted(Path("x"), 0.7),
        Weighted(Path("y"), 1),
        Weighted(Path("z"), 2),
        Weighted(tmp_path / "a=b", 1),
        Weighted(tmp_path / "a=b", 0.5),
    ]
    for bad in ("x=0", "x=-1", "x=nan", "x=", "x=much", "x=" + "9" * 400, "x=0." + "0" * 400 + "1"):
        with pytest.raises(ConfigError, match="expected a number above 0"):
            parse_weighted([bad])


def test_options_that_cannot_work(tmp_path: Path) -> None:
    geo, two = Weighted(messages(tmp_path, 3), 1), Weighted(messages(tmp_path, 3, "two"), 1)
    with pytest.raises(ConfigError, match="expected 2 to 100"):
        mix_rows([geo], tmp_path / "out")
    with pytest.raises(ConfigError, match="geo is given twice"):
        mix_rows([geo, geo], tmp_path / "out")
    for options, says in (
        ({"rows": 0}, "--rows is 0"),
        ({"max_epochs": 2}, "--max-epochs is for"),
        ({"max_epochs": 0, "stop": "all"}, "--max-epochs is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"stop": "never"}, "valid: all, first"),
    ):
        with pytest.raises(ConfigError, match=says):
            mix_rows([geo, two], tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(OutputExistsError, match="input itself"):
        mix_rows([geo, two], two.path, overwrite=True)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path) -> None:
    one, two = messages(tmp_path, 8, "one"), messages(tmp_path, 8, "two")
    words = [f"{one}=3", str(two), "--out", str(tmp_path / "out"), "--rows", "6"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    assert "6 read = 6 kept + 0 dropped" in result.output and "8 records in one" in result.output
