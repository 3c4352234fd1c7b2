from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import amber_world
import pytest
from click.testing import CliRunner, Result

from vlmdata.errors import ConfigError, DataError
from vlmeval.cli import main
from vlmeval.run import evaluate

TRUTH = amber_world.truthful()
CAPTIONS = {ident: text for ident, text in TRUTH.items() if ident <= 4}
QUESTIONS = {ident: text for ident, text in TRUTH.items() if ident > 4}


def amber(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["amber", *map(str, arguments)])


def scored(world: Path, folder: Path, answers: dict[int, Any], **settings: Any) -> dict[str, Any]:
    return evaluate("amber", data=world, responses=amber_world.respond(folder / "r.json", answers), **settings)


def test_the_truth_scores_full_marks(world: Path, tmp_path: Path) -> None:
    report = scored(world, tmp_path, TRUTH)
    assert report["coverage"]["complete"] and report["headline"] == ""
    assert report["coverage"]["expected"] == 44 and report["protocol"]["part"] == "all"
    for group, figures in report["official"].items():
        if group != "generative":
            assert figures == {"accuracy": 100.0, "precision": 100.0, "recall": 100.0, "f1": 100.0}
    # Nothing varied, so nothing can be resampled: a proportion has its score interval, F1 has none.
    assert report["exact"]["discriminative"]["f1"] == {"value": 100.0, "n": 40, "interval": None}
    low, high = report["exact"]["discriminative"]["accuracy"]["interval"]
    assert 0 < low < high == 100
    assert report["exact"]["generative"]["chair"]["value"] == 0
    # Slots of child and the second dog are stolen, light is safe: 6 of 9 are covered.
    assert report["official"]["generative"] == {"chair": 0.0, "cover": 66.7, "hal": 0.0, "cog": 0.0}
    assert report["rates"]["discriminative"]["yes_rate"]["value"] == 40


def test_the_columns_of_a_report(world: Path, tmp_path: Path) -> None:
    report = scored(world, tmp_path, TRUTH)
    groups = ["discriminative", "existence", "attribute", "state", "number", "action", "relation", "generative"]
    assert sorted(report["official"]) == sorted(groups) == sorted(report["exact"])
    names = ["accuracy", "precision", "recall", "f1"]
    for group in groups[:-1]:
        assert list(report["exact"][group]) == list(report["official"][group]) == names
        for figure in report["exact"][group].values():
            assert set(figure) == {"value", "n", "interval"}
    assert list(report["exact"]["generative"]) == list(report["official"]["generative"])
    assert report["counts"]["generative"]["captions"] == 4
    assert report["clusters"] == 4
    assert report["n"] == {
        "discriminative": 40, "existence": 8, "attribute": 24, "state": 8, "number": 8, "action": 8, "relation": 8,
        "generative": 4, "overall": 44,
    }


def test_baselines_are_what_blind_answers_score(world: Path, tmp_path: Path) -> None:
    blind = {name: scored(world, tmp_path, dict.fromkeys(QUESTIONS, name)) for name in ("Yes", "No")}
    report = scored(world, tmp_path, TRUTH)
    assert report["baselines"]["all_no"] == blind["No"]["official"]
    assert report["baselines"]["all_yes"] == blind["Yes"]["official"]
    assert blind["No"]["official"]["existence"]["f1"] == 100.0
    assert blind["Yes"]["exact"]["existence"]["precision"]["value"] is None


@pytest.mark.parametrize(
    ("part", "expected", "groups"),
    [
        ("generative", 4, {"generative"}),
        ("existence", 8, {"existence"}),
        ("relation", 8, {"relation"}),
        ("attribute", 24, {"attribute", "state", "number", "action"}),
        ("discriminative", 40, {"discriminative", "existence", "attribute", "state", "number", "action", "relation"}),
    ],
)
def test_parts(world: Path, tmp_path: Path, part: str, expected: int, groups: set[str]) -> None:
    report = scored(world, tmp_path, TRUTH, part=part)
    assert set(report["official"]) == groups == set(report["exact"])
    coverage = report["coverage"]
    assert (coverage["expected"], coverage["outside"]) == (expected, 44 - expected)
    assert coverage["complete"] and "answers of other parts" in report["headline"]


def test_the_file_decides_the_part(world: Path, tmp_path: Path) -> None:
    assert scored(world, tmp_path, CAPTIONS)["protocol"]["part"] == "generative"
    assert scored(world, tmp_path, QUESTIONS)["protocol"]["part"] == "discriminative"
    existence = {ident: text for ident, text in QUESTIONS.items() if 29 <= ident <= 36}
    report = scored(world, tmp_path, existence)
    assert report["headline"] == "PARTIAL 8/40"
    assert any("--part existence" in note for note in report["notes"])
    assert report["official"]["relation"] == {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert report["exact"]["relation"]["accuracy"] == {"value": None, "n": 0, "interval": None}
    assert "No answers at all for: attribute, state, number, action, relation." in " ".join(report["notes"])


def test_coverage_adds_up_and_is_loud(world: Path, tmp_path: Path) -> None:
    rows = [{"id": ident, "response": text} for ident, text in TRUTH.items() if ident not in (7, 8, 9)]
    rows += [{"id": 5, "response": "No"}, {"id": 0, "response": "Yes"}, {"id": -1, "response": "Yes"}]
    rows += [{"id": 999, "response": "Yes"}]
    rows[0]["response"] = None
    path = tmp_path / "r.json"
    path.write_text(json.dumps(rows))
    out = tmp_path / "eval"
    result = amber("--responses", path, "--data", world, "--out", out)
    assert result.exit_code == 0
    coverage = json.loads((out / "report.json").read_text())["coverage"]
    assert {name: coverage[name] for name in ("expected", "answered", "missing", "duplicate", "unknown", "null")} == {
        "expected": 44, "answered": 40, "missing": 4, "duplicate": 1, "unknown": 3, "null": 1,
    }
    assert len(rows) == sum(coverage[name] for name in ("answered", "duplicate", "unknown", "outside", "null"))
    assert coverage["complete"] is False
    assert coverage["examples"] == {"missing": [1, 7, 8, 9], "duplicate": [5], "unknown": [0, -1, 999], "null": [1]}
    headline = "PARTIAL 40/44 · 1 DUPLICATE answers scored again · 3 UNKNOWN ids not scored · 1 null answers"
    for text in (result.stdout, result.stderr, *((out / name).read_text() for name in ("report.md", "report.html"))):
        assert headline in " ".join(text.split())
    # Every heading over figures says so.
    markdown = (out / "report.md").read_text().splitlines()
    assert all("PARTIAL 40/44" in line for line in markdown if line.startswith(("# AMBER", "## Disc", "## Gen")))


def test_duplicates_are_scored_twice_as_the_script_does(world: Path, tmp_path: Path) -> None:
    rows = [{"id": 6, "response": "No"}] * 3 + [{"id": ident, "response": "Yes"} for ident in QUESTIONS]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    report = evaluate("amber", data=world, responses=tmp_path / "r.json")
    expected = amber_world.official_discriminative(amber_world.annotations(), rows)
    assert {group: list(figures.values()) for group, figures in report["official"].items()} == expected
    assert report["exact"]["discriminative"]["accuracy"]["n"] == 43
    assert not report["coverage"]["complete"] and report["coverage"]["missing"] == 0


def test_answers_as_they_are_and_by_word(world: Path, tmp_path: Path) -> None:
    answers = {ident: text + "." for ident, text in QUESTIONS.items()}
    strict, word = (scored(world, tmp_path, answers, read_answers=rule) for rule in ("none", "word"))
    assert strict["official"]["discriminative"]["accuracy"] == 0.0
    assert word["official"]["discriminative"]["accuracy"] == 100.0
    for report, rule in ((strict, "none"), (word, "word")):
        assert report["protocol"]["read_answers"] == rule
        assert report["protocol"]["unread"] == {"word": 0, "none": 40, "of": 40}
    assert "--read-answers word would read 40" in " ".join(strict["notes"])
    assert strict["rates"]["discriminative"]["no_answer_rate"]["value"] == 100
    assert scored(world, tmp_path, answers)["protocol"]["read_answers"] == "none"


def test_a_null_answer_is_wrong_not_fatal(world: Path, tmp_path: Path) -> None:
    report = scored(world, tmp_path, {**QUESTIONS, 5: None, 6: ""})
    assert report["counts"]["discriminative"]["unread"] == 2
    assert report["counts"]["discriminative"]["right"] == 38
    assert report["coverage"]["complete"]


def test_empty_captions_are_pointed_out(world: Path, tmp_path: Path) -> None:
    report = scored(world, tmp_path, {1: "", 2: "", 3: "A dog.", 4: "a cat"})
    assert report["official"]["generative"]["hal"] == 0.0
    assert any("2 of 4 captions name nothing" in note or "3 of 4" in note for note in report["notes"])
    assert report["rates"]["generative"]["words"]["value"] == 1.0


def test_the_engine_is_named(world: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    table.write_text("# similar\ndog\tcat\n")
    plain = scored(world, tmp_path, {**CAPTIONS, 3: "a cat"})
    tabled = scored(world, tmp_path, {**CAPTIONS, 3: "a cat"}, synonyms=str(table))
    assert plain["protocol"]["nouns"] == "embedded" and plain["protocol"]["synonyms"] == "exact"
    assert tabled["protocol"]["synonyms"].startswith("table ")
    assert plain["counts"]["generative"]["hallucinated"] == 1
    assert tabled["counts"]["generative"]["hallucinated"] == 0
    assert "embedded" in " ".join(plain["notes"])
    assert "nouns" not in scored(world, tmp_path, QUESTIONS)["protocol"]


def test_json_lines_byte_order_mark_and_extra_keys(world: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": ident, "response": text, "model": "x"}) for ident, text in TRUTH.items()]
    path = tmp_path / "r.jsonl"
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    assert evaluate("amber", data=world, responses=path)["coverage"]["complete"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no answers"),
        ("[]", "holds no answers"),
        ('[{"id": 5, "response": "Yes"}', "is not JSON"),
        ('{"id": 5, "response": "Yes"}\n{"id": 6, "resp', "line 2 is not JSON"),
        ("Yes\nNo\n", "expected JSON"),
        ('{"5": "Yes"}', "row 1: expected an object with id and response, got 5"),
        ("[" * 100_000, "nested too deeply"),
        ('["Yes"]', "row 1: expected an object with id and response"),
        ('[{"id": 5}]', "row 1: expected an object with id and response, got id"),
        ('[{"id": "5", "response": "Yes"}]', 'row 1: id is the text "5", expected the number 5'),
        ('[{"id": 5.0, "response": "Yes"}]', "row 1: id is 5.0"),
        ('[{"id": true, "response": "Yes"}]', "row 1: id is True"),
        ('[{"id": null, "response": "Yes"}]', "row 1: id is None"),
        ('[{"id": [5], "response": "Yes"}]', "row 1: id is [5]"),
        ('[{"id": 5, "response": ["Yes"]}]', "row 1 (id 5): response is ['Yes'], expected text"),
        ('[{"id": 5, "response": 1}]', "row 1 (id 5): response is 1, expected text"),
        ('[{"id": 700, "response": "Yes"}]', "none of 1 answers is one to part 'all' of amber"),
        ('[{"id": 1, "response": null}]', "1 are null"),
        ('[{"id": "AMBER_5", "response": "Yes"}]', "the answers' ids are like 'AMBER_5'"),
    ],
)
def test_bad_files_end_in_one_line(world: Path, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    result = amber("--responses", path, "--data", world, "--out", tmp_path / "eval")
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "eval").exists()


def test_a_file_of_the_wrong_part_ends_in_one_line(world: Path, tmp_path: Path) -> None:
    path = amber_world.respond(tmp_path / "r.json", QUESTIONS)
    result = amber("--responses", path, "--data", world, "--part", "generative")
    assert result.exit_code == 2 and "40 belong to another part" in result.stderr


def test_half_a_surrogate_pair(world: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"id": 1, "response": "a dog \\ud800"}]')
    report = evaluate("amber", data=world, responses=tmp_path / "r.json", out=tmp_path / "e")
    assert report["counts"]["generative"]["hallucinated"] == 1
    assert json.loads((tmp_path / "e" / "responses.jsonl").read_text())["response"] == "a dog ?"


def test_not_text_at_all(world: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xfa\xfb\x00[")
    with pytest.raises(DataError, match="not UTF-8"):
        evaluate("amber", data=world, responses=tmp_path / "r.json")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("annotations.json", "[", "is not JSON"),
        ("annotations.json", "{}", "expected a JSON array"),
        ("annotations.json", '[{"id": 1}]', "item 1: expected an object with id, type and truth"),
        ("annotations.json", '[{"id": 1, "type": "odd", "truth": "no"}]', "type is 'odd'; valid:"),
        ("annotations.json", '[{"id": 1, "type": "relation", "truth": "maybe"}]', "truth is 'maybe'"),
        ("annotations.json", '[{"id": 1, "type": "generative", "truth": ["ufo"]}]', "'ufo' is no key of relation.json"),
        ("annotations.json", '[{"id": 1, "type": "relation", "truth": "no"}]' , "the answers' ids"),
        ("relation.json", '{"cat": "dog"}', "expected a list of words"),
        ("metrics.txt", "qa_correct_num=__import__('os')", "expected a number"),
        ("metrics.txt", "qa_correct_score=5", "scores start at 0"),
        ("query/query_all.json", '[{"id": 1}]', "expected an object with id, image and query"),
    ],
)
def test_bad_data_end_in_one_line(world: Path, tmp_path: Path, name: str, content: str, said: str) -> None:
    copy = tmp_path / "amber"
    shutil.copytree(world, copy)
    (copy / name).write_text(content)
    path = amber_world.respond(tmp_path / "r.json", {40: "Yes"})
    result = amber("--responses", path, "--data", copy)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


def test_data_folder_by_its_parent_and_missing_files(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "repo" / "data")
    path = amber_world.respond(tmp_path / "r.json", TRUTH)
    assert evaluate("amber", data=tmp_path / "repo", responses=path)["coverage"]["complete"]
    (tmp_path / "repo" / "data" / "relation.json").unlink()
    result = amber("--responses", path, "--data", tmp_path / "repo")
    assert result.exit_code == 2 and "relation.json is missing" in result.stderr
    result = amber("--responses", path, "--data", tmp_path / "nowhere")
    assert result.exit_code == 2 and "no AMBER data in" in result.stderr


def test_starting_values_come_from_the_file(world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "amber"
    shutil.copytree(world, copy)
    (copy / "metrics.txt").write_text("qa_correct_num=40\nchair_num = 0.5\n\nqa_correct_score=0")
    report = scored(copy, tmp_path, TRUTH)
    assert report["official"]["discriminative"]["accuracy"] == 50.0
    assert report["exact"]["discriminative"]["accuracy"]["value"] == 100


def test_without_queries_answers_stand_alone(world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "amber"
    shutil.copytree(world, copy)
    shutil.rmtree(copy / "query")
    report = scored(copy, tmp_path, TRUTH)
    assert report["clusters"] == 44 and "treat answers as independent" in " ".join(report["notes"])


def test_unknown_settings_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'temperature'; its own options: nouns, part"):
        scored(world, tmp_path, TRUTH, temperature="1")
    with pytest.raises(ConfigError, match="--part is 'some'; valid: all, attribute"):
        scored(world, tmp_path, TRUTH, part="some")
