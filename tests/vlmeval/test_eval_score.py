from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import amber_world
import pytest
from click.testing import CliRunner, Result
from scripted import Scripted

from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmdata.lock import locked
from vlmeval import opening, rescore
from vlmeval.cli import main
from vlmeval.run import evaluate
from vlmeval.task import Item, Response


def vlmeval(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture
def data(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(world, tmp_path / "amber"))


def say(item: Item) -> Response:
    truth = amber_world.truthful()[int(item.id)]
    return Response(item.id, truth if int(item.id) % 5 else f"{truth}. Or maybe not.", {"tokens": 3})


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(opening.Who, "open", lambda who, images: Scripted(say))
    evaluate("amber", data="amber", model="m", out="e", quiet=True)
    return tmp_path / "e"


def test_scoring_again_gives_the_same_report(run: Path) -> None:
    before = {name: (run / name).read_bytes() for name in ("report.json", "scores.jsonl", "report.md", "run.json")}
    (run / "scores.jsonl").unlink()
    (run / "report.json").unlink()
    result = vlmeval("score", "e")
    assert result.exit_code == 0, result.output
    assert {name: (run / name).read_bytes() for name in before} == before


def test_another_rule_needs_no_model_and_leaves_the_record(run: Path) -> None:
    before = (run / "run.json").read_bytes(), (run / "responses.jsonl").read_bytes()
    unread = report(run)["protocol"]["unread"]
    assert vlmeval("score", "e", "--set", "read-answers=none").exit_code == 0
    assert report(run)["protocol"]["read_answers"] == "none"
    assert report(run)["run"]["settings"]["read_answers"] == "none"
    accuracy = report(run)["exact"]["discriminative"]["accuracy"]["value"]
    assert accuracy == pytest.approx(100 - 100 * unread["none"] / unread["of"])
    assert (run / "run.json").read_bytes() == before[0] and (run / "responses.jsonl").read_bytes() == before[1]
    assert vlmeval("score", "e", "--set", "part=relation").exit_code == 0
    assert report(run)["coverage"]["expected"] == 8 and report(run)["coverage"]["outside"] == 36


def test_scoring_imports_no_torch(run: Path) -> None:
    code = (
        "import sys\n"
        "from vlmeval.cli import main\n"
        "main(['score', 'e'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'peft', 'vlmtrain'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_interrupted_run_is_scored_as_far_as_it_got(run: Path) -> None:
    for name in ("report.json", "scores.jsonl"):
        (run / name).unlink()
    lines = (run / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (run / "responses.jsonl").write_bytes(b"".join(lines[:20]) + lines[20][:9])
    (run / "responses.rank1.jsonl").write_bytes(b"".join(lines[18:30]))
    result = vlmeval("score", "e")
    assert result.exit_code == 0 and "PARTIAL 30/44" in result.stderr
    assert report(run)["coverage"]["answered"] == 30 and not report(run)["coverage"]["complete"]
    assert (run / "responses.rank1.jsonl").is_file(), "scoring changes no answers"
    result = vlmeval("score", "e", "--fail-under", "accuracy=0.1")
    assert result.exit_code == 1 and "discriminative.accuracy is not known: PARTIAL 30/44" in result.stderr


def test_changed_data_are_refused_unless_on_purpose(run: Path, data: Path) -> None:
    (data / "safe_words.txt").write_text("light\norange\nsnack")
    result = vlmeval("score", "e")
    assert result.exit_code == 2 and "safe_words.txt in amber has changed since e was answered" in result.stderr
    assert vlmeval("score", "e", "--data", "amber").exit_code == 0
    assert "Scored with data that changed since the answers were given: safe_words.txt." in report(run)["notes"]
    data.rename(data.with_name("moved"))
    with pytest.raises(MissingError, match="not at amber any more: give --data FOLDER"):
        rescore.score("e")
    assert rescore.score("e", data="moved", images="moved/images")["protocol"]["answers"]["images"] == "moved/images"


def test_a_scored_file_is_scored_again(data: Path, tmp_path: Path) -> None:
    """Answers that stand twice are scored twice, now as then; null answers stay what they were."""
    rows = [{"id": 5, "response": "Yes"}, {"id": 5, "response": "No"}, {"id": 6, "response": None}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first = evaluate("amber", data="amber", responses="r.jsonl", out="e")
    assert first["coverage"]["duplicate"] == 1 and first["run"]["answers"]["file"] == "r.jsonl"
    (tmp_path / "r.jsonl").unlink()
    assert rescore.score("e") == first


def test_what_cannot_be_scored_is_one_line(run: Path, data: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["nowhere"], "nowhere/run.json is missing: nowhere is no evaluation folder"),
        (["amber"], "amber is no evaluation folder: it has no run.json, and no folder in it has"),
        (["e", "--set", "reading=none"], "--set reading: amber has no such option; its own options: "),
        (["e", "--set", "read-answers=loud"], "--set read-answers=loud: valid: none, word"),
        (["e", "--set", "read-answers"], "--set 'read-answers': expected KEY=VALUE"),
        (["e", "--fail-under", "f2=1"], "limit f2=1: amber has no metric 'f2'; valid: "),
        (["e", "--csv", "no/where.csv"], "--csv no/where.csv: there is no folder no"),
        (["e", "e/../e", "--junit", "x.xml"], "--junit x.xml is a file of one evaluation"),
        (["e", "--task", "mine.py"], "no task file mine.py"),
    ):
        result = vlmeval("score", *arguments)
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr
    with locked(run), pytest.raises(OutputExistsError, match="another run is writing to e"):
        rescore.score("e")
    (run / "responses.jsonl").unlink()
    with pytest.raises(MissingError, match="holds no answers yet"):
        rescore.score("e")
    (run / "run.json").write_text("{}")
    with pytest.raises(DataError, match="is of format 1, expected 2"):
        rescore.score("e")


def test_limits_and_files_for_other_programs(run: Path, tmp_path: Path) -> None:
    result = vlmeval("score", "e", "--fail-under", "relation.f1=0.5", "--junit", "x.xml", "--csv", "x.csv")
    assert result.exit_code == 0, result.output
    suite = ElementTree.parse(tmp_path / "x.xml").getroot()[0]
    assert suite.get("failures") == "0" and int(suite.get("tests", 0)) > 5
    assert (tmp_path / "x.csv").read_text().splitlines()[0].startswith("task,group,metric,value")
    result = vlmeval("score", "e", "--fail-over", "cover=0", "--fail-under", "f1=1", "--junit", "x.xml")
    assert result.exit_code == 1
    assert ElementTree.parse(tmp_path / "x.xml").getroot()[0].get("failures") == str(result.stderr.count("limit not"))


def test_a_folder_of_evaluations_stands_for_all_in_it(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "all" / name)
        (tmp_path / "all" / name / "report.json").unlink()
    result = vlmeval("score", "all", "--fail-over", "cover=10")
    assert result.exit_code == 1 and all((tmp_path / "all" / name / "report.json").is_file() for name in ("a", "b"))
    assert [line.split()[4] for line in result.stderr.splitlines()] == ["all/a:", "all/b:"]


def test_a_finished_run_that_goes_on_takes_new_settings_of_scoring(run: Path) -> None:
    """What only changes the scoring is no other set-up; what changes the questions is, and is named."""
    found = evaluate("amber", data="amber", model="m", out="e", read_answers="none", resume=True, quiet=True)
    assert found["protocol"]["read_answers"] == "none" and found["run"]["settings"]["read_answers"] == "none"
    with pytest.raises(ConfigError, match="--part was left out, is relation"):
        evaluate("amber", data="amber", model="m", out="e", part="relation", resume=True, quiet=True)
