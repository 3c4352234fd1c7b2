from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import amber_world
import pytest

from vlmeval import amberset, polling
from vlmeval.charts import Curve, Matrix, Scatter
from vlmeval.run import evaluate
from vlmeval.task import Item, Response, load

TRUTH = amber_world.truthful()
CAPTIONS = {ident: text for ident, text in TRUTH.items() if ident <= 4}
QUESTIONS = {ident: text for ident, text in TRUTH.items() if ident > 4}


def respond(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def scored(data: Path, folder: Path, answers: dict[int, Any], **settings: Any) -> dict[str, Any]:
    return evaluate("amber", data=data, responses=amber_world.respond(folder / "r.json", answers), **settings)


@pytest.fixture(scope="session")
def paired(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world with its attribute questions one after the other, and existence questions that name their objects."""
    folder = tmp_path_factory.mktemp("paired") / "amber"
    shutil.copytree(world, folder)
    notes, queries = [], []
    for kind in ("state", "number", "action"):
        for image in range(1, 5):
            for truth in ("yes", "no"):
                notes.append({"id": len(notes) + 1, "type": f"discriminative-attribute-{kind}", "truth": truth})
                queries.append({"id": len(notes), "image": f"AMBER_{image}.png", "query": f"Is it {kind} {truth}?"})
    for image, word in ((1, "dog"), (2, "cat"), (3, "cat"), (4, "dog"), (1, "bus")):
        notes.append({"id": len(notes) + 1, "type": "discriminative-hallucination", "truth": "no"})
        query = f"Is there a {word} in this image?"
        queries.append({"id": len(notes), "image": f"AMBER_{image}.png", "query": query})
    (folder / "annotations.json").write_text(json.dumps(notes))
    (folder / "query" / "query_all.json").write_text(json.dumps(queries))
    return folder


@pytest.mark.parametrize(("name", "expected"), [("d_flip10", 80.1), ("d_all_no", 0.0)])
def test_pairs_of_real_files(real: Path, name: str, expected: float) -> None:
    report = evaluate("amber", data=real, responses=real / "golden" / name / "responses.json")
    figure = report["rates"]["attribute"]["pairs"]
    assert (round(figure["value"], 1), figure["n"]) == (expected, 3814)
    assert report["rates"]["discriminative"]["pairs"] == figure
    by_type = [report["rates"][group]["pairs"]["n"] for group in ("state", "number", "action")]
    assert by_type == [2382, 1036, 396]
    assert report["rates"]["existence"]["pairs"]["value"] is None
    low, high = figure["interval"]
    assert low <= figure["value"] <= high


def test_every_real_attribute_question_is_in_one_pair(real: Path) -> None:
    amber = amberset.read(real)
    pairs = amberset.pairs(amber)
    asked = {ident for ident, note in amber.annotations.items() if "attribute" in note.groups}
    assert len(pairs) == 3814 and {ident for pair in pairs for ident in pair} == asked


def test_pairs_are_right_together_only(paired: Path, tmp_path: Path) -> None:
    truth = {n: "Yes" if n % 2 else "No" for n in range(1, 25)}
    answers = {**truth, 1: "No", 6: "Yes", 9: None}
    figure = scored(paired, tmp_path, answers)["rates"]
    assert figure["attribute"]["pairs"]["n"] == 12
    assert figure["attribute"]["pairs"]["value"] == pytest.approx(100 * 9 / 12)
    assert figure["state"]["pairs"]["value"] == 50.0
    # A pair with a question that was not answered is none.
    del answers[9]
    assert scored(paired, tmp_path, answers)["rates"]["number"]["pairs"]["n"] == 3
    for blind in ("Yes", "No"):
        assert scored(paired, tmp_path, dict.fromkeys(truth, blind))["rates"]["attribute"]["pairs"]["value"] == 0


def test_a_pair_answered_twice_counts_once(paired: Path, tmp_path: Path) -> None:
    rows = [{"id": 1, "response": "Yes"}, {"id": 2, "response": "No"}, {"id": 2, "response": "Yes"}]
    report = evaluate("amber", data=paired, responses=respond(tmp_path / "r.json", rows))
    assert report["rates"]["state"]["pairs"]["n"] == 1 and report["rates"]["state"]["pairs"]["value"] == 0
    assert report["counts"]["state"]["asked"] == 3


def test_questions_that_are_no_pairs(world: Path, paired: Path, tmp_path: Path) -> None:
    """The world's questions on one image do not follow each other; without queries images are unknown."""
    assert scored(world, tmp_path, QUESTIONS)["rates"]["attribute"]["pairs"] == {
        "value": None,
        "n": 0,
        "interval": None,
    }
    shutil.copytree(paired, tmp_path / "amber")
    shutil.rmtree(tmp_path / "amber" / "query")
    assert amberset.pairs(amberset.read(tmp_path / "amber")) == []


def test_amber_score_takes_captions_and_questions_together(world: Path, tmp_path: Path) -> None:
    report = scored(world, tmp_path, {**TRUTH, 3: "A cat.", 40: "No"})
    chair = report["exact"]["generative"]["chair"]["value"]
    f1 = report["exact"]["discriminative"]["f1"]["value"]
    figure = report["rates"]["overall"]["amber_score"]
    assert figure["value"] == pytest.approx((100 - chair + f1) / 2) and figure["n"] == 4
    assert figure["interval"][0] < figure["value"] < figure["interval"][1]
    assert "overall" not in report["official"] and "overall" not in report["exact"]
    assert "overall" not in scored(world, tmp_path, QUESTIONS)["rates"]
    # Asked both, answered one.
    assert scored(world, tmp_path, QUESTIONS, part="all")["rates"]["overall"]["amber_score"]["value"] is None


def test_objects_the_worst_first(paired: Path, tmp_path: Path) -> None:
    answers = dict.fromkeys(range(1, 30), "No") | {26: "Yes", 27: "Yes"}
    report = scored(paired, tmp_path, answers)
    rows = {row["object"]: row for row in report["objects"]}
    assert [row["object"] for row in report["objects"]] == ["cat", "dog", "bus"]
    assert rows["cat"] == {"object": "cat", "n": 2, "right": 0, "accuracy": 0.0, "named": 0, "hallucinated": 0}
    assert rows["dog"]["accuracy"] == 100.0
    table = next(table for table in report["tables"] if table["title"].startswith("Objects"))
    assert table["columns"] == ["Object", "Questions", "Accuracy"] and table["rows"][0] == ["cat", 2, "0.0"]


def test_most_invented_words(world: Path, tmp_path: Path) -> None:
    report = scored(world, tmp_path, {1: "A bus and a bus.", 2: "A bus, a boat.", 3: "A cat.", 4: "A cat."})
    assert report["invented"] == [
        {"word": "bus", "times": 3, "captions": 2, "id": 1},
        {"word": "cat", "times": 1, "captions": 1, "id": 3},
    ]
    rows = {row["object"]: (row["named"], row["hallucinated"]) for row in report["objects"]}
    assert rows == {"bus": (2, 2), "cat": (2, 1), "boat": (1, 0)}


def test_facets_and_choices(paired: Path) -> None:
    items = load("amber").open(paired, {}, None).items
    assert items[0].facets == {"type": "state"} and items[-1].facets == {"type": "existence", "object": "bus"}
    assert {item.choices for item in items} == {("Yes", "No")}


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("Is there a dog in this image?", "dog"),
        ("is there an e-book in the image? Answer yes or no.", "e-book"),
        ("Is there a traffic light in the picture?", "traffic light"),
        ("Is there one dog in this image?", None),
        ("Is the dog in this image?", None),
        ("", None),
    ],
)
def test_the_object_of_a_question(prompt: str, named: str | None) -> None:
    assert polling.object_of(prompt) == named


def test_unread_answers_are_listed(world: Path, tmp_path: Path) -> None:
    answers = {**QUESTIONS, 5: None, 6: "", 7: "<b>maybe</b> $(rm -rf /)", 8: "x" * 100_000}
    report = scored(world, tmp_path, answers, read_answers="word")
    assert [row["id"] for row in report["unread"]] == [5, 6, 7, 8]
    assert report["unread"][2]["response"] == "<b>maybe</b> $(rm -rf /)"
    assert len(report["unread"][3]["response"]) < 300 and "100000 characters" in report["unread"][3]["response"]
    assert report["protocol"]["unread"] == {"word": 4, "none": 4, "of": 40}
    assert scored(world, tmp_path, QUESTIONS)["unread"] == []


def probable(answers: dict[int, str], wrong: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    """Answers with probabilities that say the same, but for ``wrong`` ones."""
    rows = []
    for ident, text in answers.items():
        yes = (text == "Yes") != (ident in wrong)
        high, low = 0.5 + ident / 100, 0.2
        found = {"Yes": high if yes else low, "No": low if yes else high}
        rows.append({"id": ident, "response": text, "detail": {"probabilities": found}})
    return rows


def test_calibration_in_the_report(world: Path, tmp_path: Path) -> None:
    rows = probable(QUESTIONS, frozenset((5, 6, 7)))
    del rows[-1]["detail"]
    report = evaluate("amber", data=world, responses=respond(tmp_path / "r.json", rows), out=tmp_path / "e")
    found = report["calibration"]
    assert (found["n"], found["without"]) == (39, 1)
    assert list(found["groups"]) == list(report["official"])
    assert found["groups"]["state"]["n"] == 8 and found["groups"]["existence"]["auroc"]["value"] is None
    # Three are decided wrongly, and are still ranked above all that are not so.
    assert found["groups"]["discriminative"]["accuracy"]["value"] == pytest.approx(36 / 39)
    assert found["groups"]["discriminative"]["auroc"]["value"] == 1
    disagreement = found["disagreement"]
    assert (disagreement["n"], disagreement["of"], disagreement["ids"]) == (3, 39, [5, 6, 7])
    assert disagreement["table"]["Yes"]["No"] == 3 and disagreement["table"]["No"]["Yes"] == 0
    assert sum(sum(row.values()) for row in disagreement["table"].values()) == 39
    assert "differ for 3 of 39 questions" in " ".join(report["notes"])
    assert "1 answers have no probabilities" in " ".join(report["notes"])
    assert report["tables"][0]["title"] == "Probabilities of yes and no" and len(report["tables"][0]["rows"]) == 7
    curve, matrix = load("amber").charts(json.loads((tmp_path / "e" / "report.json").read_text()))
    assert isinstance(curve, Curve) and curve.diagonal and sum(weight for *_, weight in curve.points) == 39
    assert isinstance(matrix, Matrix) and matrix.cells[0][1] == 3
    first = json.loads((tmp_path / "e" / "scores.jsonl").read_text().splitlines()[0])
    assert first["detail"] == {"probabilities": {"Yes": 0.2, "No": 0.55}, "likelier": "No"}


def test_without_probabilities_there_is_no_calibration(world: Path, tmp_path: Path) -> None:
    report = scored(world, tmp_path, TRUTH)
    assert "calibration" not in report
    (chart,) = load("amber").charts(report)
    assert isinstance(chart, Scatter) and chart.points[0][2:] == ("this run", True)


@pytest.mark.parametrize(
    "probabilities",
    [
        None,
        {},
        {"Yes": 0.5},
        {"Yes": "0.5", "No": 0.5},
        {"Yes": float("nan"), "No": 0.1},
        {"Yes": -1.0, "No": 2.0},
        {"Yes": 0.0, "No": 0.0},
        [0.5, 0.5],
    ],
)
def test_probabilities_that_cannot_be_used(probabilities: Any) -> None:
    assert polling.detail(Response(1, "Yes", {"probabilities": probabilities})) == {}


def test_a_tie_is_no_answer() -> None:
    assert polling.detail(Response(1, "Yes", {"probabilities": {"Yes": 0.2, "No": 0.2}}))["likelier"] is None


def test_little_mass_is_said(world: Path, tmp_path: Path) -> None:
    rows = [
        {"id": ident, "response": text, "detail": {"probabilities": {"Yes": 0.01, "No": 0.02}}}
        for ident, text in QUESTIONS.items()
    ]
    report = evaluate("amber", data=world, responses=respond(tmp_path / "r.json", rows))
    assert any("only 3 % of the first token's probability" in note for note in report["notes"])


def test_published_captions_stand_in_the_plot(real: Path) -> None:
    report = evaluate("amber", data=real, responses=real / "golden" / "g_mixed" / "responses.json")
    (chart,) = load("amber").charts(report)
    names = [name for *_, name, own in chart.points if not own]
    assert len(names) == 5 and "GPT-4V (AMBER paper)" in names


def test_the_synonym_table_is_named_by_its_hash(world: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    table.write_text("dog\tcat\n")
    protocol = scored(world, tmp_path, CAPTIONS, synonyms=str(table))["protocol"]
    assert (
        len(protocol["synonyms_sha256"]) == 64 and protocol["synonyms"] == f"table {protocol['synonyms_sha256'][:12]}"
    )


def test_items_of_training_have_the_same_first_group(world: Path) -> None:
    """vlmtrain scores by the widest group."""
    items: tuple[Item, ...] = load("amber").open(world, {}, None).items
    assert {item.groups[0] for item in items} == {"discriminative", "generative"}
