"""Exports of wild texts: whatever stands in a row comes back."""

from __future__ import annotations

import tempfile
from pathlib import Path

from export_rules import BACK, lines
from exported import by_id, made, parts
from hypothesis import given, settings
from hypothesis import strategies as st
from made import rows_of
from rawfiles import RLAIF, chat, rlaif_row, write_parquet

from vlmdata.convert import convert
from vlmdata.errors import DataError
from vlmdata.export import export
from vlmdata.marked import JOINER, escape, join, layout, split, unescape
from vlmdata.target import load, names

MARKED = [name for name in names() if load(name).marks]
PIECES = ["<image>", "<video>", "{{image}}", "<", "image>", JOINER, "a", "\n", " ", "é", "{"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
CONTENT = st.lists(st.one_of(st.none(), TEXT), max_size=7)


@settings(deadline=None, max_examples=200)
@given(CONTENT, st.sampled_from(MARKED))
def test_any_content_comes_back_from_its_string(content: list[str | None], target: str) -> None:
    marks = load(target).marks
    held = [{"type": "image" if item is None else "text", "text": item} for item in content]
    value = join(held, marks)
    assert split(value, marks, layout(held)) == held
    assert value.count("<image>") == content.count(None)
    assert not any(mark in value for mark in marks if mark != "<image>")


@settings(deadline=None, max_examples=200)
@given(TEXT)
def test_escaping_is_reversible(value: str) -> None:
    marks = load("llamafactory").marks
    assert unescape(escape(value, marks), marks) == value
    assert not any(mark in escape(value, marks) for mark in marks)
    if not any(mark in value.replace(JOINER, "") for mark in marks):
        assert escape(value, marks) == value


WILD = st.one_of(TEXT, st.text(max_size=8))
TURN = st.lists(st.one_of(st.integers(0, 3), WILD), max_size=5)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(TURN, WILD), min_size=1, max_size=6))
def test_any_rows_come_back(turns: list[tuple[list[str | int], str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held = [chat(parts("?", *content), parts(answer, ".")) for content, answer in turns]
        shards = made(folder, held)
        rows = rows_of(shards)
        for target in names():
            escaped = "escape" if load(target).marks else None
            try:
                done = export(shards, target, folder / target, literal_mark=escaped)
            except DataError:
                assert target == "llava"
                continue
            found = BACK[target](done.out)
            skipped = {line["id"] for line in lines(done.out / "skipped.jsonl")}
            assert by_id(found) == by_id([row for row in rows if row["id"] not in skipped])
            assert target == "llava" or not skipped


@settings(deadline=None, max_examples=5)
@given(st.lists(st.tuples(WILD, WILD, WILD), min_size=1, max_size=5))
def test_any_preferences_come_back(texts: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = [
            rlaif_row(number, question=question + "?", chosen=chosen + "+", rejected=rejected + "-")
            for number, (question, chosen, rejected) in enumerate(texts)
        ]
        shards = convert("rlaif_v", write_parquet(folder / "x.parquet", raw, RLAIF), folder / "shards").out
        for target in names():
            if "preference" in load(target).kinds:
                escaped = "escape" if load(target).marks else None
                done = export(shards, target, folder / target, literal_mark=escaped)
                assert BACK[target](done.out) == rows_of(shards)
