"""The page on a new task in CONTRIBUTING.md: its example is taken out, put down as a file, and really run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import vlmeval.tasks
from vlmeval import store, task
from vlmeval.cli import main

ROOT = Path(__file__).parents[2]
FLAGS = [("Paris", "europe"), ("Rome", "europe"), ("Cairo", "africa"), ("Accra", "africa")]


@pytest.fixture(scope="module")
def code() -> str:
    page = (ROOT / "CONTRIBUTING.md").read_text().split("## A new task", 1)[1].split("\n## ", 1)[0]
    return page.split("```python\n", 1)[1].split("```", 1)[0]


@pytest.fixture
def file(code: str, tmp_path: Path) -> Path:
    (tmp_path / "capitals.py").write_text(code)
    return tmp_path / "capitals.py"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "flags"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, (capital, continent) in enumerate(FLAGS, 1):
        Image.new("RGB", (30, 20), (number * 50, 0, 90)).save(folder / "images" / f"{number}.png")
        lines.append({"id": number, "image": f"{number}.png", "capital": capital, "continent": continent})
    (folder / "capitals.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    said = ["It is Paris.", "Rome", "Lagos", ""]
    rows = [json.dumps({"id": number, "response": text}) for number, text in enumerate(said, 1)]
    (tmp_path / "answers.jsonl").write_text("\n".join(rows))
    return tmp_path / "answers.jsonl"


def test_it_fits_a_page_and_is_written_as_our_files_are(code: str, file: Path) -> None:
    assert len(code.splitlines()) < 100
    check = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(ROOT / "ruff.toml"), str(file)]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    if "No module named" in checked.stderr:
        pytest.skip("ruff is not installed")
    assert checked.returncode == 0, checked.stdout


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def test_as_a_file_with_answers(file: Path, data: Path, answers: Path, tmp_path: Path) -> None:
    output = run(file, "--data", data, "--responses", answers, "--out", tmp_path / "a")
    assert "2 of 4 answers name another city, or none." in output
    report = store.read_json(tmp_path / "a" / "report.json")
    assert report["task"] == "capitals" and report["task_file"]["path"] == str(file)
    assert {group: report["exact"][group]["accuracy"]["value"] for group in ("all", "europe", "africa")} == {
        "all": 50, "europe": 100, "africa": 0,
    }  # fmt: skip
    assert report["exact"]["all"]["accuracy"]["interval"] is not None
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Wrong answers" in page and "Lagos" in page and "<svg" in page
    run(file, "--data", data, "--responses", answers, "--out", tmp_path / "b", "--strict", "yes")
    strict = store.read_json(tmp_path / "b" / "report.json")
    assert strict["exact"]["all"]["accuracy"]["value"] == 25 and strict["protocol"]["strict"] == "yes"
    compared = run("compare", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "c.json")
    assert "strict differs: a no, b yes" in " ".join(compared.split())
    (pair,) = store.read_json(tmp_path / "c.json")["pairs"]
    assert {(row["group"], row["difference"]) for row in pair["differences"] if row["metric"] == "accuracy"} == {
        ("all", -25), ("europe", -50), ("africa", 0),
    }  # fmt: skip


def test_as_a_file_with_a_model(file: Path, data: Path, tiny: Path, tmp_path: Path) -> None:
    command = [file, "--data", data, "--model", tiny, "--max-answer-tokens", 4, "--out", tmp_path / "out"]
    run(*command)
    report = store.read_json(tmp_path / "out" / "report.json")
    assert report["coverage"]["complete"] and report["protocol"]["answers"]["kind"] == "local"
    asked = store.read_rows(tmp_path / "out" / "responses.jsonl")
    assert [row["id"] for row in asked] == [1, 2, 3, 4]
    run(*command, "--resume")
    assert store.read_rows(tmp_path / "out" / "responses.jsonl") == asked


@pytest.fixture
def dropped(file: Path) -> Iterator[None]:
    """The file as one of ``vlmeval/tasks``."""
    places = vlmeval.tasks.__spec__.submodule_search_locations
    assert places is not None
    places.append(str(file.parent))
    yield
    places.remove(str(file.parent))
    sys.modules.pop("vlmeval.tasks.capitals", None)


def test_dropped_among_the_tasks_it_is_a_command(dropped: None, data: Path, answers: Path, tmp_path: Path) -> None:
    assert "capitals" in task.names() and "capitals" in run("--help")
    assert "--strict" in run("capitals", "--help")
    run("capitals", "--data", data, "--responses", answers, "--out", tmp_path / "out")
    report = store.read_json(tmp_path / "out" / "report.json")
    assert report["exact"]["all"]["accuracy"]["value"] == 50 and "task_file" not in report


def test_its_mistakes_end_in_one_line(file: Path, data: Path, answers: Path) -> None:
    lines = (data / "capitals.jsonl").read_text()
    for text, told in ((None, "expected a folder with capitals.jsonl"), (lines + "\n{}", "line 5: expected id, image")):
        if text is None:
            (data / "capitals.jsonl").rename(data / "away")
        else:
            (data / "capitals.jsonl").write_text(text)
        result = CliRunner().invoke(main, [str(file), "--data", str(data), "--responses", str(answers)])
        assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1, result.output
