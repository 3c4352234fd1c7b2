from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmdata.errors import ConfigError, DataError
from vlmdata.plan import Plan, fingerprint, make_tasks, select_rows
from vlmdata.readers import Contents, Input
from vlmdata.source import Options

SEGMENTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 500)), max_size=4).map(tuple)
CONTENTS = st.lists(SEGMENTS.map(lambda segments: Contents(segments, ())), min_size=1, max_size=4)


def rows_of(contents: list[Contents], **options: int | None) -> list[tuple[int, int]]:
    tasks = make_tasks(contents, **{"limit": None, "shuffle_seed": None, "shard_bytes": 300, **options})  # type: ignore[arg-type]
    return [(p.input, row) for task in tasks for p in task.pieces for row in range(p.start, p.stop)]


@given(contents=CONTENTS, limit=st.none() | st.integers(1, 40), size=st.integers(1, 2000))
def test_every_row_up_to_the_limit_once_and_in_order(contents: list[Contents], limit: int | None, size: int) -> None:
    every = [(index, row) for index, held in enumerate(contents) for row in range(held.rows)]
    assert rows_of(contents, limit=limit, shard_bytes=size) == every[:limit]


@given(contents=CONTENTS, limit=st.none() | st.integers(1, 40), seed=st.integers(0, 5))
def test_a_seed_chooses_from_all_rows(contents: list[Contents], limit: int | None, seed: int) -> None:
    every = {(index, row) for index, held in enumerate(contents) for row in range(held.rows)}
    chosen = rows_of(contents, limit=limit, shuffle_seed=seed)
    assert len(set(chosen)) == len(chosen) == min(len(every), limit or len(every))
    assert set(chosen) <= every
    assert chosen == rows_of(contents, limit=limit, shuffle_seed=seed)


def test_seeds_differ_and_reach_the_whole_file() -> None:
    first, second = (select_rows(10_000, 100, seed) for seed in (1, 2))
    assert first != second
    assert min(start for start, _ in first) < 1000 and max(stop for _, stop in first) > 9000


def test_shards_are_cut_by_bytes_across_files() -> None:
    contents = [Contents(((10, 1000),), ()), Contents(((10, 1000),), ())]
    tasks = make_tasks(contents, limit=None, shuffle_seed=None, shard_bytes=800)
    assert [task.rows for task in tasks] == [8, 8, 4]
    assert [task.shard for task in tasks] == [f"data-0000{index}-of-00003.parquet" for index in range(3)]
    assert [(p.input, p.start, p.stop) for p in tasks[1].pieces] == [(0, 8, 10), (1, 0, 6)]


def test_pieces_of_json_know_where_their_first_row_begins() -> None:
    contents = [Contents(((4, 400),), (), offsets=array("Q", [1, 11, 21, 31, 41]))]
    tasks = make_tasks(contents, limit=None, shuffle_seed=None, shard_bytes=200)
    assert [task.pieces[0].offset for task in tasks] == [1, 21]


def test_a_plan_refuses_to_go_on_with_another(tmp_path: Path) -> None:
    def plan(limit: int | None, source: str = "football") -> Plan:
        tasks = make_tasks([Contents(((9, 9),), ())], limit=limit, shuffle_seed=None, shard_bytes=5)
        options = {"limit": limit, "shuffle_seed": None}
        return Plan(source, "messages", source, options, Options(turns="keep"), (), tasks)

    plan(5).write(tmp_path)
    plan(5).check_same(tmp_path)
    assert Plan.read(tmp_path) == plan(5)
    with pytest.raises(ConfigError, match="limit was 5, is 6"):
        plan(6).check_same(tmp_path)
    with pytest.raises(ConfigError, match="another source"):
        plan(5, "rlaif_v").check_same(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        plan(5).check_same(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        Plan.read(tmp_path)


def test_fingerprints_tell_contents_not_places(tmp_path: Path) -> None:
    def of(name: str, data: bytes) -> str | None:
        path = tmp_path / name
        path.write_bytes(data)
        return fingerprint(Input(str(path), name, "json", len(data)))

    assert of("a", b"same") == of("b", b"same") != of("c", b"else")
    large = b"x" * 200_000
    assert of("d", large + b"1") != of("e", large + b"2")
    assert fingerprint(Input("hf://datasets/a/b@c/d", "d", "parquet", 1)) is None
