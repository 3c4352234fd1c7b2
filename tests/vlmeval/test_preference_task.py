"""vlmeval preference: pairs of answers ranked by likelihood, on preference shards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "vlmtrain"))

import colour_rows as rows  # noqa: E402

from vlmdata.errors import DataError  # noqa: E402
from vlmeval import store  # noqa: E402
from vlmeval.cli import main  # noqa: E402
from vlmeval.compare import compare  # noqa: E402
from vlmeval.metrics.ranked import ranking  # noqa: E402
from vlmeval.run import evaluate  # noqa: E402
from vlmeval.task import Item, Response, load  # noqa: E402


def pair(name: str, chosen: str, rejected: str, colour: str = "red") -> dict[str, Any]:
    return rows.preference(name, [rows.user(rows.PLACE, "What is it?")], chosen, rejected, [rows.picture(colour)])


def said(first: float, second: float, tokens: tuple[int, int] = (2, 4)) -> dict[str, Any]:
    detail = {"log_likelihoods": [first, second], "tokens": list(tokens)}
    return {"response": str(int(second > first)), "detail": detail}


def answers(file: Path, found: dict[str, dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps({"id": key, **value}) + "\n" for key, value in found.items()))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [
        pair("a", "It is red.", "It is a big blue circle."),
        pair("b", "It is a red square on grass.", "Blue.", "blue"),
        pair("c", "Red.", "Tan.", "green"),
        pair("d", "No.", "Yes, it is.", "green"),
    ]
    return rows.write(tmp_path_factory.mktemp("pairs") / "d", samples)


def test_figures_of_the_definitions(data: Path, tmp_path: Path) -> None:
    given = {"a": said(-2, -6), "b": said(-9, -8), "c": said(-3, -3), "d": said(-4, -6)}
    file = answers(tmp_path / "r.jsonl", given)
    report = evaluate("preference", data=data, responses=file, out=tmp_path / "out")
    found = {name: figure["value"] for name, figure in report["exact"]["all"].items()}
    # a, d; per token b (-4.5, -2) is wrong as well, c (-1.5, -0.75) wrong, d (-2, -1.5) wrong.
    assert found == {
        "accuracy": 50,
        "accuracy_per_token": 25,
        "margin": 1.25,
        "margin_per_token": -0.8125,
    }
    assert report["rates"]["all"]["ties"]["value"] == 25
    assert {group: report["n"][group] for group in ("longer", "shorter", "same_length")} == {
        "longer": 1, "shorter": 2, "same_length": 1,
    }  # fmt: skip
    assert report["exact"]["longer"]["accuracy"]["value"] == 0
    assert report["exact"]["shorter"]["accuracy"]["value"] == 100
    assert report["clusters"] == 3, "pairs on one picture are one cluster"
    assert "1 of 4 pairs are ties, and count as wrong." in report["notes"]
    assert any(note.startswith("The longer answer is the better one in 25.0 % of 4 pairs") for note in report["notes"])
    scores = {row["id"]: row for row in store.read_rows(tmp_path / "out" / "scores.jsonl")}
    assert scores["a"]["answer"] == "chosen" and scores["b"]["answer"] == "rejected" and scores["c"]["answer"] == "tie"
    assert scores["a"]["facets"] == {"chosen is": "shorter", "source": "test"}
    assert scores["a"]["detail"]["margin"] == 4
    assert scores["a"]["target"] == {"chosen": "It is red.", "rejected": "It is a big blue circle."}


def test_answers_without_likelihoods_are_read_by_their_text(data: Path, tmp_path: Path) -> None:
    bad = {"response": "0", "detail": {"log_likelihoods": [-1, "x"], "tokens": [1, 1]}}
    given = {"a": {"response": "0"}, "b": {"response": "1"}, "c": {"response": "the first"}, "d": bad}
    report = evaluate("preference", data=data, responses=answers(tmp_path / "r.jsonl", given))
    exact = report["exact"]["all"]
    assert exact["accuracy"]["value"] == 50 and exact["margin"]["value"] is exact["accuracy_per_token"]["value"] is None
    notes = " ".join(report["notes"])
    assert "1 of 4 answers do not say which of the two is likelier" in notes
    assert "3 of 4 answers come without log-likelihoods" in notes


@pytest.mark.parametrize(
    ("detail", "first"),
    [
        ({"log_likelihoods": [-1.0, -2.0], "tokens": [3, 3]}, 0),
        ({"log_likelihoods": [-3.0, -2.0], "tokens": [3, 3]}, 1),
        ({"log_likelihoods": [-3.0, -2.0], "tokens": [0, 3]}, None),
        ({"log_likelihoods": [-3.0], "tokens": [3]}, None),
        ({"log_likelihoods": [float("nan"), -2.0], "tokens": [3, 3]}, None),
        ({"log_likelihoods": [True, False], "tokens": [3, 3]}, None),
        ({"log_likelihoods": "ab", "tokens": [3, 3]}, None),
        ({}, None),
    ],
)
def test_rankings_are_finite_numbers_one_for_each_choice(detail: dict[str, Any], first: int | None) -> None:
    item = Item("a", "?", (), None, ("all",), "choice", choices=("x", "y"))
    assert ranking(item, Response("a", "?", detail)).first == first


@pytest.mark.parametrize(
    ("text", "first"), [("1", 1), (" 0 ", 0), ("2", None), ("-1", None), ("²", None), ("9" * 99, None)]
)
def test_a_place_is_one_of_the_choices(text: str, first: int | None) -> None:
    item = Item("a", "?", (), None, ("all",), "choice", choices=("x", "y"))
    assert ranking(item, Response("a", text)).first == first


def test_rows_that_cannot_be_ranked_are_listed_not_asked(tmp_path: Path) -> None:
    turns = [rows.user(rows.PLACE, "Colour?"), rows.assistant("Red."), rows.user("Shape?")]
    many = rows.preference("multi", turns, "Square.", "Circle.", [rows.picture("red")])
    longer = {**pair("two", "A.", "B."), "chosen": [rows.assistant("A."), rows.user("?"), rows.assistant("C.")]}
    unasked = {**pair("open", "A.", "B."), "prompt": [rows.user(rows.PLACE, "?"), rows.assistant("Hm.")]}
    samples = [many, pair("same", "Red. ", "Red."), pair("empty", " ", "Red."), longer, unasked]
    bench = load("preference").open(rows.write(tmp_path / "d", samples), {}, None)
    (item,) = bench.items
    assert item.choices == ("Square.", "Circle.") and list(item.turns) == turns and item.prompt == "Shape?"
    assert item.kind == "choice" and len(item.images) == 1
    assert bench.protocol["pairs"] == 1 and bench.protocol["not_asked"] == 4
    told = " ".join(bench.notes)
    for ident, reason in (
        ("same", "their two answers are the same"),
        ("empty", "an answer of theirs is empty"),
        ("two", "an answer of theirs is not one turn of the assistant"),
        ("open", "their prompt does not end with a question"),
    ):
        assert f"1 rows are not asked, {reason}: {ident}." in told
    with pytest.raises(DataError, match="holds two answers that can be ranked: 1 rows are not asked"):
        load("preference").open(rows.write(tmp_path / "none", samples[1:2]), {}, None)
    plain = rows.write(tmp_path / "plain", rows.colours(2))
    with pytest.raises(DataError, match="holds messages rows, expected preference"):
        load("preference").open(plain, {}, None)


def test_a_model_ranks_and_two_models_compare(data: Path, tiny: Path, tmp_path: Path) -> None:
    command = ["preference", "--data", str(data), "--model", str(tiny), "--out", str(tmp_path / "a")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    scores = store.read_rows(tmp_path / "a" / "scores.jsonl")
    assert [len(row["detail"]["log_likelihoods"]) for row in scores] == [2] * 4
    assert all(value < 0 for row in scores for value in row["detail"]["log_likelihoods"])
    assert all(row["correct"] == (row["detail"]["margin"] > 0) for row in scores)
    # The figures come back from the file of answers.
    replayed = evaluate("preference", data=data, responses=tmp_path / "a" / "responses.jsonl", out=tmp_path / "b")
    assert replayed["exact"] == store.read_json(tmp_path / "a" / "report.json")["exact"]
    (pairs,) = compare([tmp_path / "a", tmp_path / "b"]).pairs
    assert pairs.common == 4 and {row["difference"] for row in pairs.differences} == {0}
