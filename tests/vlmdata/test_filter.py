from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made import assert_valid, ids_of, labelled, messages, preferences, row, rows_of
from rawfiles import image, pairs, reject_lines

from vlmdata.commands.filter import filter_command
from vlmdata.errors import ConfigError, DataError
from vlmdata.expression import FUNCTIONS, parse
from vlmdata.filter import Conditions, filter_rows
from vlmdata.row_fields import FIELDS, Values

ROW: dict[str, Any] = {
    "id": "x:1",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Who is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A Dog."}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
    ],
    "label": 1,
    "source": "the_cauldron",
    "licence": "CC-BY-4.0",
    "provenance": {"dataset": "d", "config": None, "revision": None, "file": "f.parquet", "row": 3},
    "meta": '{"score": 3, "tags": ["a", "b"], "name": "n"}',
    "image_size": [{"width": 200, "height": 100}, {"width": 30, "height": 60}],
}


def holds(text: str) -> bool:
    return parse(text).holds(Values(ROW, ("cat", "dog")))


def test_fields_of_a_row() -> None:
    values = Values(ROW, ("cat", "dog"))
    assert {name: values[name] for name in FIELDS} == {
        "id": "x:1",
        "source": "the_cauldron",
        "licence": "CC-BY-4.0",
        "dataset": "d",
        "config": "",
        "file": "f.parquet",
        "label": "dog",
        "images": 2,
        "width": 200,
        "height": 100,
        "min_side": 30,
        "max_side": 200,
        "pixels": 21800,
        "min_pixels": 1800,
        "max_pixels": 20000,
        "aspect": 2.0,
        "turns": 2,
        "question": "Who is it?\nSure?",
        "answer": "A Dog.\nYes",
        "rejected": "",
        "text": "Be kind.\nWho is it?\nA Dog.\nYes".replace("A Dog.\n", "A Dog.\nSure?\n"),
        "question_chars": 15,
        "answer_chars": 9,
    }


@pytest.mark.parametrize(
    "text",
    [
        "turns == 2 and images != 1",
        "1 < turns <= 2 < images + 1",
        "not turns > 2 or False",
        "pixels / 2 == 10900.0 and pixels // 3 == 7266 and pixels % 7 == 2 and -turns < 0 and 2 * turns - 1 == 3",
        "label in ('dog', 'cow') and source not in ['x']",
        "'Dog' in answer and 'dog' not in answer",
        "contains(lower(answer), 'dog') and startswith(answer, 'A') and endswith(answer, 'Yes')",
        r"matches(question, '^Who\s') and not matches(text, '\d')",
        "len(answer) == 10 and len(lower(label)) == 3",
        "meta('score') >= 3 and meta('score') == 3 and 'a' in meta('tags') and meta('name') == 'n'",
        "not meta('nothing') and not meta('nothing') > 3 and not meta('name') > 3 and meta('nothing') != 0",
        "label < 'e'",
        "(turns)",
        "  turns == 2\n",
    ],
)
def test_expressions_that_hold(text: str) -> None:
    assert holds(text)
    assert not holds(f"not ({text.strip()})")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__import__('os').system('x')", "is no function here"),
        ("open('x')", "is no function here; valid: contains"),
        ("id.__class__", "is not allowed; allowed: fields"),
        ("id[0]", "is not allowed"),
        ("[x for x in id]", "is not allowed"),
        ("(lambda: 1)()", "is no function here"),
        ("lambda: 1", "is not allowed"),
        ("f'{id}'", "is not allowed"),
        ("turns if turns else 1", "is not allowed"),
        ("(turns := 3)", "is not allowed"),
        ("b'x' == id", "numbers and texts in quotes"),
        ("None == id", "numbers and texts in quotes"),
        ("2 ** 99999999", "arithmetic only"),
        ("~turns", "only - and not"),
        ("turns is 1", "only < <="),
        ("turn == 1", "no field named 'turn'; valid: answer, answer_chars"),
        ("turns == 'two'", "'turns' is a number, \"'two'\" a text"),
        ("label + 'x' == 'dogx'", "'label' is a text, expected a number"),
        ("-label == 1", "expected a number"),
        ("len(turns) == 1", "expected a text"),
        ("len(id, id) == 1", "expected len\\(text\\)"),
        ("contains(text=id)", "expected contains"),
        ("contains(*id)", "expected contains"),
        ("turns in 3", "expected a text"),
        ("matches(id, '(')", "pattern '\\(' cannot be read"),
        ("matches(id, label)", "a text in quotes"),
        ("turns ==", "cannot be read: invalid syntax"),
        ("turns == 1; turns", "cannot be read"),
        ("", "cannot be read"),
        ("x" * 20_000, "at most 10000"),
        ("(" * 5000 + ")" * 5000, "cannot be read"),
        ("not " * 2400 + "turns", "cannot be read"),
        ("turns == \x00", "cannot be read"),
    ],
)
def test_expressions_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        parse(text)
    assert len(str(raised.value)) < 700


def test_what_fails_at_a_row_names_it() -> None:
    failing = ("1 / (turns - 2) > 0", "meta('name') - 1 > 0", "-meta('nothing') > 0")
    # Texts are not multiplied, to whatever size, nor formatted; a list is not repeated.
    for text in (*failing, "meta('name') * 99999999999 > 0", "meta('name') % 5 > 0", "meta('tags') * 2 == 1"):
        with pytest.raises(ConfigError, match="fails at row x:1"):
            holds(text)


@settings(deadline=None)
@given(st.text(alphabet="()[]'\"<>=.,+-*/% abinotrde19_{}:\\", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever is written, nothing but a ``ConfigError`` comes of it."""
    try:
        holds(text)
    except ConfigError as error:
        assert str(error)


@settings(deadline=None)
@given(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
def test_comparisons_are_those_of_python(left: int, right: int, sign: str) -> None:
    text = f"{left} {sign} {right} - turns + 2"
    assert holds(text) == {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}.get(
        sign, (left == right) == (sign == "==")
    )


def test_every_condition_drops_for_its_reason(tmp_path: Path) -> None:
    rows = [
        row(1, size=(40, 40), answer="Fine."),
        row(2, size=(10, 40)),
        row(3, size=(90, 40)),
        row(4, 5, size=(40, 41)),
        {"images": [image(6, size=(40, 42))], "texts": pairs(("a", "b"), ("c", "d"), ("e", "f"))},
        row(7, size=(40, 43), answer="A long answer " * 9),
        row(8, size=(40, 44), question="Why?"),
        {"images": [], "texts": pairs(("No image?", "None."))},
    ]
    made = messages(tmp_path, rows)
    conditions = Conditions(
        licences=("CC-*", "*"),
        min_side=20,
        max_side=80,
        max_aspect=2.0,
        max_turns=2,
        max_answer_chars=50,
        where="images < 2 and question != 'Why?'",
    )
    done = filter_rows(made, tmp_path / "out", conditions)
    assert [int(one.split(":")[1]) for one in ids_of(done.out)] == [0, 7]
    found = {int(line["id"].split(":")[1]): (line["reason"], line["detail"]) for line in reject_lines(done.out)}
    assert found == {
        1: ("filtered_size", "min_side 10, expected at least 20"),
        2: ("filtered_size", "max_side 90, expected at most 80"),
        3: ("filtered_expression", "not images < 2 and question != 'Why?'"),
        4: ("filtered_turns", "turns 3, expected at most 2"),
        5: ("filtered_answer", "answer_chars 126, expected at most 50"),
        6: ("filtered_expression", "not images < 2 and question != 'Why?'"),
    }
    assert done.manifest.rejected == Counter(reason for reason, _ in found.values())
    assert done.manifest.options["max_side"] == 80 and done.manifest.options["min_turns"] is None
    assert_valid(done.out)


def test_pixels_aspect_and_least_lengths(tmp_path: Path) -> None:
    made = messages(tmp_path, [row(1, size=(40, 40)), row(2, size=(80, 40), answer="Longer answer."), row(3)])
    kept = {
        "pixels": Conditions(min_pixels=400, max_pixels=2000),
        "aspect": Conditions(max_aspect=1.5),
        "answer": Conditions(min_answer_chars=6),
        "turns": Conditions(min_turns=1, where="width == 24"),
    }
    found = {name: ids_of(filter_rows(made, tmp_path / name, held).out) for name, held in kept.items()}
    assert {name: [one[-1] for one in held] for name, held in found.items()} == {
        "pixels": ["0"],
        "aspect": ["0", "2"],
        "answer": ["1"],
        "turns": ["2"],
    }


def test_licences(tmp_path: Path) -> None:
    free = messages(tmp_path, 3, licence="CC-BY-4.0")
    assert len(ids_of(filter_rows(free, tmp_path / "a", Conditions(licences=("cc-by-*",))).out)) == 3
    with pytest.raises(DataError, match="filtered_licence 3.*licence CC-BY-4.0, expected mit or apache"):
        filter_rows(free, tmp_path / "b", Conditions(licences=("mit", "apache*")))
    assert len(ids_of(filter_rows(free, tmp_path / "c", Conditions(no_non_commercial=True)).out)) == 3
    bound = preferences(tmp_path, 2)
    with pytest.raises(DataError, match="forbids commercial use"):
        filter_rows(bound, tmp_path / "d", Conditions(no_non_commercial=True))


def test_labels(tmp_path: Path) -> None:
    made = labelled(tmp_path, [0, 1, 2, 1], ["a", "b", "c"])
    done = filter_rows(made, tmp_path / "out", Conditions(labels=("b", "c"), where="label != 'c'"))
    assert [held["label"] for held in rows_of(done.out)] == [1, 1]
    assert done.manifest.label_names == ("a", "b", "c")
    assert done.manifest.rejected == {"filtered_expression": 1, "filtered_label": 1}
    with pytest.raises(ConfigError, match="no class of .*; valid: a, b, c"):
        filter_rows(made, tmp_path / "x", Conditions(labels=("d",)))
    with pytest.raises(ConfigError, match="have no label"):
        filter_rows(messages(tmp_path, 3), tmp_path / "x", Conditions(labels=("d",)))


def test_preferences(tmp_path: Path) -> None:
    made = preferences(tmp_path, 4)
    where = "turns == 1 and contains(rejected, 'dog') and not contains(answer, 'dog') and endswith(question, '3?')"
    assert len(ids_of(filter_rows(made, tmp_path / "out", Conditions(where=where)).out)) == 1
    longest = max(len("A gradient."), len("A gradient and a dog."))
    done = filter_rows(made, tmp_path / "chars", Conditions(min_answer_chars=longest, max_answer_chars=longest))
    assert done.manifest.records == 4
    assert len(ids_of(filter_rows(made, tmp_path / "meta", Conditions(where="meta('idx') == '2'")).out)) == 1


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        (Conditions(), "no condition is given"),
        (Conditions(min_side=-1), "--min-side is -1, expected a number of at least 0"),
        (Conditions(max_aspect=0.5), "--max-aspect is 0.5, expected a number of at least 1"),
        (Conditions(max_aspect=float("nan")), "--max-aspect is nan"),
        (Conditions(max_aspect=float("inf")), "--max-aspect is inf"),
        (Conditions(min_turns=3, max_turns=2), "--min-turns 3 is above --max-turns 2"),
        (Conditions(where="colour == 1"), "no field named 'colour'"),
    ],
)
def test_conditions_that_cannot_work(tmp_path: Path, conditions: Conditions, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        filter_rows(messages(tmp_path, 2), tmp_path / "out", conditions)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path) -> None:
    made = messages(tmp_path, 9)
    result = CliRunner().invoke(
        filter_command, [str(made), "--out", str(tmp_path / "out"), "--licence", "*", "--where", "images == 1"]
    )
    assert result.exit_code == 0, result.output
    assert "9 read = 6 kept + 3 dropped" in result.output and "3 filtered_expression" in result.output
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]["licences"] == ["*"]
    shown = CliRunner().invoke(filter_command, ["--help"]).output
    assert all(name in shown for name in (*FIELDS, *FUNCTIONS))
