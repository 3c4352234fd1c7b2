from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vlmdata.errors import DataError, MissingError
from vlmeval.cli import main
from vlmeval.task import load, recorded

CAPITALS = """
import json
from vlmeval.task import Benchmark, Item, Metric, Option, Score, Task, ratio

def _open(data, settings, answered):
    rows = json.loads((data / "capitals.json").read_text())
    lower = settings.get("case") == "any"
    items = tuple(Item(row["id"], row["ask"], (), row["truth"], ("all",)) for row in rows)

    def score(item, response):
        said, truth = (response.text or "").strip(), item.target
        right = said.lower() == truth.lower() if lower else said == truth
        return Score(item, response.text, {"asked": 1.0, "right": float(right)}, right, said)

    data = {"capitals.json": "0" * 64}
    return Benchmark(items, frozenset(), data, {"case": settings.get("case")}, score, lambda _: {})

def _accuracy(sums):
    return 100 * ratio(sums["right"], sums["asked"])

TASK = Task(
    name="capitals", summary="Capitals of countries.", open=_open, images=False, groups={"all": "All"},
    metrics=(Metric("accuracy", "Accuracy", ("all",), _accuracy, "asked", proportion=("right", "asked")),),
    headline=(("all", "accuracy"),), options=(Option("case", "any or same.", "same", ("any", "same")),),
)
"""
ROWS = [
    {"id": "fr", "ask": "Capital of France?", "truth": "Paris"},
    {"id": "it", "ask": "Of Italy?", "truth": "Rome"},
]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "capitals_of.py").write_text(CAPITALS)
    (tmp_path / "capitals.json").write_text(json.dumps(ROWS))
    said = [{"id": "fr", "response": "Paris"}, {"id": "it", "response": "rome"}]
    (tmp_path / "said.json").write_text(json.dumps(said))
    return tmp_path


def vlmeval(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def report(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "report.json").read_text())
    return found


def test_a_task_file_is_a_command(own: Path) -> None:
    result = vlmeval("./capitals_of.py", "--data", own, "--responses", "said.json", "--out", "e", "--case", "any")
    assert result.exit_code == 0, result.output
    assert "CAPITALS" in result.output and "100" in result.output
    written = report(own / "e")
    assert written["task"] == "capitals" and written["task_file"]["path"] == "./capitals_of.py"  # type: ignore[index]
    shown = vlmeval("./capitals_of.py", "--help").output
    assert "Capitals of countries." in shown and "--case [any|same]" in shown
    assert "--images" not in shown and "--answers" not in shown, "neither has an effect on this task"


def test_scoring_finds_the_file_again_and_says_when_it_changed(own: Path) -> None:
    vlmeval("capitals_of.py", "--data", own, "--responses", "said.json", "--out", "e")
    assert report(own / "e")["exact"]["all"]["accuracy"]["value"] == 50.0  # type: ignore[index]
    result = vlmeval("score", "e", "--set", "case=any")
    assert result.exit_code == 0 and report(own / "e")["exact"]["all"]["accuracy"]["value"] == 100.0  # type: ignore[index]
    assert not report(own / "e")["notes"]
    (own / "capitals_of.py").write_text(CAPITALS + "\n# another version\n")
    assert vlmeval("score", "e").exit_code == 0
    assert report(own / "e")["notes"] == ["The task's file, capitals_of.py, changed since the answers were given."]
    (own / "capitals_of.py").rename(own / "moved.py")
    result = vlmeval("score", "e")
    assert result.exit_code == 2 and "not at capitals_of.py any more: give --task FILE" in result.stderr
    assert vlmeval("score", "e", "--task", "moved.py").exit_code == 0
    (own / "other.py").write_text(CAPITALS.replace('"capitals"', '"cities"'))
    result = vlmeval("score", "e", "--task", "other.py")
    assert result.exit_code == 2 and "holds task 'cities', expected 'capitals'" in result.stderr


def test_a_file_may_use_the_files_beside_it(own: Path) -> None:
    (own / "names_of_mine.py").write_text('TITLE = "All of them"\n')
    (own / "uses.py").write_text("import names_of_mine\n" + CAPITALS.replace('"All"', "names_of_mine.TITLE"))
    assert load(str(own / "uses.py")).groups == {"all": "All of them"}


def test_what_did_not_change_is_run_once(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "loud.py").write_text('print("run")\n' + CAPITALS)
    assert load("./loud.py") is load(str(own / "loud.py")) is recorded({"task": "capitals"}, "loud.py")
    assert capsys.readouterr().out == "run\n"
    (own / "loud.py").write_text('print("again")\n' + CAPITALS)
    load("./loud.py")
    assert capsys.readouterr().out == "again\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (1\n", "mine.py, line 1 is not Python: '(' was never closed"),
        ("", "mine.py defines no TASK: expected TASK = vlmeval.task.Task"),
        ("TASK = 7\n", "mine.py: TASK is an int, expected vlmeval.task.Task"),
        ("a = 1\nb = a / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import a_module_nobody_has\n", "mine.py, line 1: ModuleNotFoundError: No module named 'a_module_nobody_has'"),
        (CAPITALS.replace('name="capitals"', 'name="a/b"'), "mine.py: TASK.name is 'a/b'"),
        (CAPITALS.replace('name="capitals"', "name=7"), "mine.py: TASK.name is an int, expected str"),
        (CAPITALS.replace("open=_open", "open='data'"), "mine.py: TASK.open is a str, expected a function"),
        (CAPITALS.replace("options=(Option", "options=('case', Option"), "TASK.options holds a str, expected vlmeval"),
        (
            CAPITALS.replace('("all",), _accuracy', '("some",), _accuracy'),
            "metric 'accuracy' is for group 'some'; TASK",
        ),
        (CAPITALS.replace('("all", "accuracy"),)', '("all", "f1"),)'), "TASK.headline has ('all', 'f1'), which is no"),
        (CAPITALS.replace("metrics=(Metric", "metrics=() and (Metric"), "mine.py: TASK has no metrics"),
        ("\0", "mine.py"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(own: Path, text: str, said: str) -> None:
    (own / "mine.py").write_text(text)
    result = vlmeval("./mine.py", "--data", own, "--responses", "said.json")
    assert result.exit_code == 2, result.output
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_a_file_that_is_not_there(own: Path) -> None:
    result = vlmeval("./nowhere.py", "--data", own)
    assert result.exit_code == 2 and result.stderr.endswith(": no task file nowhere.py: No such file or directory\n")
    with pytest.raises(MissingError, match="a task of your own is the path of its Python file"):
        load("nowhere")
    (own / "folder.py").mkdir()
    with pytest.raises(MissingError, match="no task file"):
        load("folder.py")


def test_an_error_beside_the_file_names_that_file(own: Path) -> None:
    (own / "broken_one.py").write_text("def f(:\n")
    (own / "mine.py").write_text("import broken_one\n")
    with pytest.raises(DataError, match=r"broken_one.py, line 1 is not Python: .* \(imported by .*mine.py\)"):
        load(str(own / "mine.py"))
