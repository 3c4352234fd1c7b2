from __future__ import annotations

import json
from pathlib import Path

import amber_world
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmeval.metrics import yesno
from vlmeval.run import evaluate

PRINTED = {"Descriminative Task": "discriminative", "Exsitence": "existence"}
GOLDEN = ("d_all_no", "d_existence_only", "d_flip10", "d_half_ids", "d_odd5")
ANSWERS = st.sampled_from(["Yes", "No", "yes", "No.", "", None, "Yes and no", "No "])
QUESTION_IDS = [row["id"] for row in amber_world.annotations() if row["type"] != "generative"]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_official_numbers_of_real_files(real: Path, name: str) -> None:
    folder = real / "golden" / name
    report = evaluate("amber", data=real, responses=folder / "responses.json")
    printed = json.loads((folder / "official.json").read_text())["printed"]
    ours = {group: list(figures.values()) for group, figures in report["official"].items()}
    theirs = {PRINTED.get(group, group.lower()): list(figures.values()) for group, figures in printed.items()}
    assert ours == theirs


def test_existence_alone_has_its_own_epsilon(real: Path) -> None:
    folder = real / "golden" / "d_existence_only"
    report = evaluate("amber", data=real, responses=folder / "responses.json", part="existence")
    printed = json.loads((folder / "official_de.json").read_text())["printed"]["Exsitence"]
    assert report["official"] == {"existence": {name.lower(): value for name, value in printed.items()}}
    assert report["coverage"]["complete"]


def test_counters_of_real_files(real: Path) -> None:
    """The summed counters are the script's own, to the unit."""
    folder = real / "golden" / "d_odd5"
    report = evaluate("amber", data=real, responses=folder / "responses.json")
    raw = json.loads((folder / "official.json").read_text())["counters"]
    prefixes = {"": "discriminative", "as_": "state", "an_": "number", "aa_": "action", "asso_": "relation"}
    for prefix, group in {**prefixes, "ha_": "existence"}.items():
        counts = report["counts"][group]
        assert counts["right"] == raw[f"{prefix}qa_correct_score"]
        assert counts["asked"] + 0.001 == raw[f"{prefix}qa_correct_num"]
        assert counts["caught"] == raw[f"{prefix}qa_no_score"] == raw[f"{prefix}qa_ans_no_score"]
        assert counts["is_no"] + 0.001 == raw[f"{prefix}qa_no_num"]
        assert counts["said_no"] + 0.001 == raw[f"{prefix}qa_ans_no_num"]


@pytest.mark.parametrize(
    ("answer", "total", "relation"),
    [
        ("Yes", [33.7, 0.0, 0.0, 0.0], [58.6, 0.0, 0.0, 0.0]),
        ("No", [66.3, 66.3, 100.0, 79.7], [41.4, 41.4, 100.0, 58.6]),
        (None, [100.0, 100.0, 100.0, 100.0], [100.0, 100.0, 100.0, 100.0]),
    ],
)
def test_constant_and_true_answers_to_all_real_questions(
    real: Path, tmp_path: Path, answer: str | None, total: list[float], relation: list[float]
) -> None:
    notes = [note for note in json.loads((real / "annotations.json").read_text()) if note["type"] != "generative"]
    answers = {note["id"]: answer or note["truth"].capitalize() for note in notes}
    report = evaluate("amber", data=real, responses=amber_world.respond(tmp_path / "r.json", answers))
    assert list(report["official"]["discriminative"].values()) == total
    assert list(report["official"]["relation"].values()) == relation
    assert report["coverage"]["complete"] and report["clusters"] == 1004


@given(st.lists(st.tuples(st.sampled_from(QUESTION_IDS), ANSWERS), min_size=1, max_size=120))
def test_any_file_scores_as_the_description_says(world: Path, pairs: list[tuple[int, str | None]]) -> None:
    """Random files, with repeated ids, half sets and answers that are neither."""
    from vlmeval.responses import gate
    from vlmeval.task import Response, load

    benchmark = load("amber").open(world, {"part": "discriminative"}, frozenset())
    joined, coverage = gate(benchmark, [Response(*pair) for pair in pairs])
    official = benchmark.summarize([benchmark.score(item, text) for item, text in joined])["official"]
    rows = [{"id": ident, "response": text} for ident, text in pairs]
    expected = amber_world.official_discriminative(amber_world.annotations(), rows)
    assert {group: list(figures.values()) for group, figures in official.items()} == expected
    assert coverage.answered + coverage.duplicate == len(pairs)
    assert coverage.answered + coverage.missing == len(QUESTION_IDS)


def test_numbers_worked_out_by_hand() -> None:
    """Of ten: 6 are no, 5 said No, 4 of them rightly, 7 right in all."""
    sums = {"asked": 10, "right": 7, "said_no": 5, "is_no": 6, "caught": 4}
    starts = {"correct": 0.001, "ans_no": 0.001, "no": 0.001}
    assert yesno.official(sums, starts, 0.0001) == {"accuracy": 70.0, "precision": 80.0, "recall": 66.7, "f1": 72.7}
    one = {"asked": 1, "right": 1, "said_no": 1, "is_no": 1, "caught": 1}
    assert yesno.official(one, starts, 0.001)["accuracy"] == 99.9


@pytest.mark.parametrize(
    ("text", "written", "word"),
    [
        ("Yes", "Yes", "Yes"),
        ("No", "No", "No"),
        ("No.", None, "No"),
        ("no", None, "No"),
        (" No ", None, "No"),
        ("Yes, there is.", None, "Yes"),
        ("Yes and no", None, None),
        ("Nothing is there", None, None),
        ("I do not know", None, None),
        ("Yesterday", None, None),
        ("", None, None),
        (None, None, None),
        ("The answer:\nNO!", None, "No"),
        ("yes/no", None, None),
        ("No, no, no", None, "No"),
    ],
)
def test_reading(text: str | None, written: str | None, word: str | None) -> None:
    assert yesno.as_written(text) == written
    assert yesno.by_word(text) == word
