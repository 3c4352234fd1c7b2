from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmdata.errors import DataError
from vlmeval import log
from vlmeval.task import Item, Response

ITEMS = [Item(ident, "?", (), "no", ("g",)) for ident in (3, "b", 1, 2)]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_of_several_processes_become_one_file_in_order(tmp_path: Path) -> None:
    for process, said in (
        (0, [Response(2, "two"), Response("b", "B")]),
        (1, [Response(3, "three"), Response(1, None)]),
    ):
        with log.Log(tmp_path, process) as written:
            written.append(said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["responses.rank0.jsonl", "responses.rank1.jsonl"]
    assert log.read(tmp_path).responses.keys() == {1, 2, 3, "b"}
    found = log.settle(tmp_path, ITEMS)
    assert list(found.responses) == [3, "b", 1, 2]
    assert [row["id"] for row in lines(tmp_path / "responses.jsonl")] == [3, "b", 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["responses.jsonl"]


def test_a_kill_between_merge_and_removal_counts_nothing_twice(tmp_path: Path) -> None:
    with log.Log(tmp_path, 0) as written:
        written.append([Response(1, "one"), Response(2, "two")])
    part = (tmp_path / "responses.rank0.jsonl").read_bytes()
    log.settle(tmp_path, ITEMS)
    (tmp_path / "responses.rank0.jsonl").write_bytes(part)
    assert [said.text for said in log.settle(tmp_path, ITEMS).responses.values()] == ["one", "two"]
    assert len(lines(tmp_path / "responses.jsonl")) == 2


def test_settling_what_is_settled_writes_nothing(tmp_path: Path) -> None:
    with log.Log(tmp_path) as written:
        written.append([Response(3, "x"), Response(2, None, error="HTTP 500: no")])
    log.settle(tmp_path, ITEMS)
    before = [(tmp_path / name).stat().st_mtime_ns for name in ("responses.jsonl", "failures.jsonl")]
    log.settle(tmp_path, ITEMS)
    assert before == [(tmp_path / name).stat().st_mtime_ns for name in ("responses.jsonl", "failures.jsonl")]


def test_failures_are_apart_and_forgotten_once_answered(tmp_path: Path) -> None:
    with log.Log(tmp_path) as written:
        written.append([Response(1, None, error="first"), Response(2, "two")])
    with log.Log(tmp_path) as written:
        written.append([Response(1, None, error="second: again")])
    found = log.read(tmp_path)
    assert found.failures == {1: Response(1, None, error="second: again")} and list(found.responses) == [2]
    assert lines(tmp_path / "failures.jsonl")[-1] == {"id": 1, "error": "second: again"}
    with log.Log(tmp_path, 4) as written:
        written.append([Response(1, "one")])
    assert not log.settle(tmp_path, ITEMS).failures and not (tmp_path / "failures.jsonl").exists()


@pytest.mark.parametrize(
    "torn", [b'{"id": 1, "resp', b'{"id": 1, "response": "Ye', b"\x00\x00", '{"id": "ü'.encode()[:-1]]
)
def test_a_torn_line_is_no_answer_and_is_written_over(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "responses.jsonl").write_bytes(b'{"id": 2, "response": "two"}\n' + torn)
    assert list(log.read(tmp_path).responses) == [2]
    with log.Log(tmp_path) as written:
        written.append([Response(1, "one")])
    assert [row["id"] for row in lines(tmp_path / "responses.jsonl")] == [2, 1]


@pytest.mark.parametrize(
    "line",
    ['{"id": 1}', "[]", "null", "7", '{"id": [1], "response": "x"}', '{"id": 1, "response": 5}', "\x00\x00", "x"],
)
def test_a_whole_line_that_is_no_answer_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "responses.jsonl").write_text(f'{{"id": 2, "response": "two"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2 is no answer"):
        log.read(tmp_path)


@given(st.lists(st.tuples(st.integers(1, 6), st.text(st.characters(codec=None), max_size=40)), max_size=8))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, said: list[tuple[int, str]]) -> None:
    """Line breaks of every kind, half surrogate pairs, quotes: one line an answer, the first answer stays."""
    folder = tmp_path_factory.mktemp("log")
    with log.Log(folder) as written:
        written.append(Response(ident, text) for ident, text in said)
    expected: dict[int, str] = {}
    for ident, text in said:
        expected.setdefault(ident, text.encode(errors="replace").decode())
    found = log.settle(folder, ITEMS)
    assert {ident: response.text for ident, response in found.responses.items()} == expected
    assert log.read(folder) == found
