"""What people give by mistake: each a clear outcome."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amber_world
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted

from vlmdata.errors import ConfigError, DataError, MissingError, VlmError
from vlmeval import opening, responses, store
from vlmeval.cli import main
from vlmeval.run import evaluate
from vlmeval.task import Item, Response

SCRIPT = Path(__file__).parent / "scripted_run.py"
YES = '{"id": 5, "response": "Yes"}'
NO = '{"id": 6, "response": "No"}'


def amber(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["amber", *map(str, arguments)])


@pytest.fixture
def data(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(world, tmp_path / "amber"))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    found = Scripted()
    monkeypatch.setattr(opening.Who, "open", lambda who, images: found)
    return found


@pytest.mark.parametrize(
    "raw",
    [
        f"[{YES}, {NO}]".encode(),
        f"{YES}\n{NO}\n".encode(),
        f"\n{YES}\r\n\r\n{NO}\r\n".encode(),
        f"\ufeff{YES}\n{NO}".encode(),
        f"{YES}\n{NO}".encode("utf-16"),
        f"\ufeff[{YES},\r\n{NO}]".encode("utf-16-be"),
    ],
)
def test_ways_to_write_the_same_answers(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "r").write_bytes(raw)
    assert responses.read(tmp_path / "r") == [Response(5, "Yes"), Response(6, "No")]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"id,response\n5,Yes\n", "begins with 'id,response', expected JSON: an array or lines of objects like"),
        (b"Yes\nNo\n", "begins with 'Yes', expected JSON"),
        (b"PK\x03\x04" + bytes(40), "begins with 'PK"),
        (b"\xff\xff\x00", "is not UTF-8 text: invalid start byte at byte 0"),
        (YES.encode("utf-16")[:-1], "is not UTF-16 text: truncated data"),
        (b"", "holds no answers"),
        (b"\n\n", "holds no answers"),
        (b"[]", "holds no answers"),
        (f"[{YES},".encode(), "is not JSON: Expecting value in column 31; is it cut short?"),
        (f"{YES}\n{NO[:9]}".encode(), "line 2 is not JSON: "),
        (f"{YES} {NO}".encode(), "line 1 is not JSON: Extra data"),
        (b'{"5": "Yes", "6": "No"}', "row 1: expected an object with id and response, got 5, 6"),
        (b'[["5", "Yes"]]', "row 1: expected an object with id and response, got ['5', 'Yes']"),
        (b'{"id": 5.0, "response": "Yes"}', "row 1: id is 5.0, expected a whole number"),
        (b'{"id": true, "response": "Yes"}', "row 1: id is True, expected a whole number"),
        (b'{"id": 5, "response": ["Yes"]}', "row 1 (id 5): response is ['Yes'], expected text"),
        (b'{"id": 5, "response": 1}', "row 1 (id 5): response is 1, expected text"),
        (b'{"id": ' + b"9" * 5000 + b', "response": "Yes"}', "line 1 is not JSON: "),
        (b"[" * 100_000, "is JSON nested too deeply"),
        (b'{"id": "5", "response": "Yes"}', 'id is the text "5", expected the number 5; write ids unquoted'),
        (b'{"id": 7777, "response": "Yes"}', "none of 1 answers is one to part 'all' of amber"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_files_that_are_no_answers(data: Path, tmp_path: Path, raw: bytes, said: str) -> None:
    (tmp_path / "r").write_bytes(raw)
    result = amber("--data", data, "--responses", "r", "--out", "e")
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 500 and not (tmp_path / "e").exists()


def test_folders_given_as_files(data: Path, tmp_path: Path, model: Scripted) -> None:
    (tmp_path / "r").mkdir()
    result = amber("--data", data, "--responses", "r")
    assert result.exit_code == 2 and "'r' is a directory" in result.stderr
    evaluate("amber", data=data, model="m", out="e", quiet=True)
    with pytest.raises(VlmError, match=r"e is a folder, expected a responses file: the answers in it are e/resp"):
        evaluate("amber", data=data, responses="e")
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        evaluate("amber", data=data, model="m", out=data / "annotations.json")
    with pytest.raises(ConfigError, match=r"--out .*annotations.json/x cannot be made: .* is a file"):
        evaluate("amber", data=data, model="m", out=data / "annotations.json" / "x")


def test_the_wrong_file_for_the_part(data: Path, tmp_path: Path) -> None:
    amber_world.respond(tmp_path / "captions.json", {1: "a dog", 2: "a boat"})
    result = amber("--data", data, "--responses", "captions.json", "--part", "relation")
    assert result.exit_code == 2 and "2 belong to another part" in result.stderr


def test_odd_answers_are_counted_and_kept_as_they_are(data: Path, tmp_path: Path) -> None:
    """Null, empty, long, HTML, shell and control characters, half a surrogate pair; twice the same id."""
    odd = [
        "<script>alert(1)</script>",
        "`rm -rf /` $(reboot) '\"; --",
        "a\u2028b\x1b[31mred\x00",
        "ja " * 33_334,
        "\ud83d",
        "",
    ]
    rows: list[dict[str, Any]] = [{"id": 1 + number % 4, "response": text} for number, text in enumerate(odd)]
    rows += [{"id": 5, "response": None}, {"id": 1, "response": None}, {"id": 99, "response": "Yes"}]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    result = amber("--data", data, "--responses", "r.json", "--out", "e")
    assert result.exit_code == 0, result.output
    assert "\x1b[31m" not in result.output
    coverage = json.loads((tmp_path / "e" / "report.json").read_text())["coverage"]
    assert (coverage["answered"], coverage["duplicate"], coverage["null"], coverage["unknown"]) == (5, 2, 1, 1)
    assert coverage["answered"] + coverage["missing"] == 44
    kept = [json.loads(line) for line in (tmp_path / "e" / "responses.jsonl").read_bytes().split(b"\n")[:-1]]
    assert [row["response"] for row in kept[:6]] == [*odd[:4], "?", ""]


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                        st.sampled_from(["id", "response", "detail", "x"]), inner, max_size=4), max_leaves=12),
       st.sampled_from(["utf-8", "utf-16", "latin-1"]))  # fmt: skip
def test_any_json_is_answers_or_one_line(tmp_path_factory: pytest.TempPathFactory, value: Any, code: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(json.dumps(value).encode(code))
    try:
        found = responses.read(path)
    except VlmError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(said.id, (int, str)) and isinstance(said.text, (str, type(None))) for said in found)


def test_images_that_cannot_be_shown_are_refused_or_skipped(data: Path, tmp_path: Path, model: Scripted) -> None:
    (data / "images" / "AMBER_2.png").write_bytes(b"no picture")
    (data / "images" / "AMBER_3.png").unlink()
    result = amber("--data", data, "--model", "m", "--out", "e")
    assert result.exit_code == 2 and "1 of 4 images are not in" in result.stderr
    assert "images, 1 are no readable images: AMBER_3.png; --on-missing skip asks the rest" in result.stderr
    result = amber("--data", data, "--model", "m", "--out", "e", "--on-missing", "skip")
    assert result.exit_code == 0, result.output
    assert "PARTIAL 22/44 \N{MIDDLE DOT} 22 FAILED" in result.stderr
    failures = [json.loads(line) for line in (tmp_path / "e" / "failures.jsonl").read_text().splitlines()]
    reasons = {row["id"]: row["error"] for row in failures}
    shown = {query["id"]: query["image"] for query in amber_world.queries()}
    assert {ident: shown[ident] for ident in reasons} == {
        ident: image for ident, image in shown.items() if image in ("AMBER_2.png", "AMBER_3.png")
    }
    assert set(reasons.values()) == {"image unreadable: AMBER_2.png", "image missing: AMBER_3.png"}
    notes = " ".join(json.loads((tmp_path / "e" / "report.json").read_text())["notes"])
    assert "22 of 44 items could not be answered and are not scored" in notes
    assert "11 × image unreadable" in notes and "11 × image missing" in notes
    assert not set(reasons) & {ident for batch in model.asked for ident in batch}
    shutil.copy(data / "images" / "AMBER_1.png", data / "images" / "AMBER_3.png")
    asked = len(model.asked)
    result = amber("--data", data, "--model", "m", "--out", "e", "--on-missing", "skip", "--resume")
    assert "PARTIAL 33/44 \N{MIDDLE DOT} 11 FAILED" in result.stderr
    assert {shown[int(ident)] for batch in model.asked[asked:] for ident in batch} == {"AMBER_3.png"}
    for name in (1, 4):
        (data / "images" / f"AMBER_{name}.png").unlink()
    for name in (2, 3):
        (data / "images" / f"AMBER_{name}.png").write_bytes(b"")
    with pytest.raises(MissingError, match="2 of 4 images are not in .*, 2 are no readable images: AMBER_1.png, AMBER"):
        evaluate("amber", data=data, model="m", out="f", on_missing="skip", limit=8)


def test_an_exchanged_image_is_named(data: Path, model: Scripted) -> None:
    evaluate("amber", data=data, model="m", out="e", quiet=True, limit=12)
    shutil.copy(data / "images" / "AMBER_1.png", data / "images" / "AMBER_2.png")
    with pytest.raises(ConfigError, match=r"another set-up: image AMBER_2.png has other bytes; give the same one"):
        evaluate("amber", data=data, model="m", out="e", quiet=True, resume=True)


def test_failures_are_listed_by_reason_and_asked_again(data: Path, tmp_path: Path, model: Scripted) -> None:
    def say(item: Item) -> Response:
        if int(item.id) % 4 == 0:
            return Response(item.id, None, error=f"HTTP 400: prompt of item {item.id} is too long")
        return Response(item.id, "a dog" if item.kind == "text" else "No")

    kind = model.say
    model.say = say
    report = evaluate("amber", data=data, model="m", out="e", quiet=True)
    assert report["coverage"]["failed"] == report["coverage"]["missing"] == 11
    assert report["coverage"]["examples"]["failed"] == [4, 8, 12, 16, 20]
    assert any("11 × HTTP 400. They stand in failures.jsonl; --resume asks them again." in n for n in report["notes"])
    assert all(
        "error" not in json.loads(line) for line in (tmp_path / "e" / "responses.jsonl").read_text().splitlines()
    )
    model.say, asked = kind, len(model.asked)
    report = evaluate("amber", data=data, model="m", out="e", quiet=True, resume=True)
    assert report["coverage"]["complete"] and report["coverage"]["failed"] == 0
    assert sum(map(len, model.asked[asked:])) == 11 and not (tmp_path / "e" / "failures.jsonl").exists()
    model.say = lambda item: Response(item.id, None, error="HTTP 503: busy")
    with pytest.raises(
        DataError, match="no item of amber has an answer: 44 could not be answered, the first with: HTTP"
    ):
        evaluate("amber", data=data, model="m", out="f", quiet=True)
    assert len((tmp_path / "f" / "failures.jsonl").read_text().splitlines()) == 44


def test_a_folder_that_cannot_be_written(data: Path, model: Scripted) -> None:
    result = amber("--data", data, "--model", "m", "--out", "/proc/nowhere/e")
    assert result.exit_code == 2 and "--out /proc/nowhere/e cannot be written: /proc" in result.stderr
    assert result.stderr.count("\n") == 1 and not model.asked


def test_too_little_room_is_said_before(
    data: Path, tmp_path: Path, model: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000))
    with pytest.raises(ConfigError, match=r"--out e: 0.1 MB are free on its disk, .* 44 items may take 0.2 MB"):
        evaluate("amber", data=data, model="m", out="e")
    assert not (tmp_path / "e").exists() and not model.loads


def test_a_disk_that_fills_up_keeps_what_was_answered(world: Path, tmp_path: Path) -> None:
    """The limit of the system on the size of a file stands for a full disk: writing fails in the middle."""
    out = tmp_path / "e"
    command = [sys.executable, str(SCRIPT), "amber", "--data", str(world), "--model", "m", "--out", str(out)]
    limited = ["bash", "-c", 'ulimit -f 2 && exec "$@"', "-", *command]
    run = subprocess.run(limited, capture_output=True, text=True, check=False, env={**os.environ, "BIG": "1"})
    assert run.returncode == 2, run.stderr
    assert run.stderr.splitlines()[-1].endswith("give the same command with --resume"), run.stderr
    assert f"{out} cannot be written: File too large" in run.stderr and "Traceback" not in run.stderr
    run = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len((out / "responses.jsonl").read_text().splitlines()) == 44


def test_a_model_that_cannot_do_what_is_asked_leaves_all_as_it_was(
    data: Path, tmp_path: Path, model: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is known once it is loaded: an image classifier asked in words, a server that ranks nothing."""
    evaluate("amber", data=data, model="m", out="e", quiet=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}

    def refuse(*arguments: Any) -> Iterator[list[Response]]:
        raise ConfigError("classifies images and answers nothing")
        yield []

    monkeypatch.setattr(model, "answer", refuse)
    with pytest.raises(ConfigError, match="answers nothing"):
        evaluate("amber", data=data, model="m", out="e", quiet=True, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()} == before
    with pytest.raises(ConfigError, match="answers nothing"):
        evaluate("amber", data=data, model="m", out="f", quiet=True)
    assert not (tmp_path / "f").exists(), "the next command needs neither --resume nor --overwrite"


def test_another_run_on_the_folder_is_seen(data: Path, tmp_path: Path, model: Scripted) -> None:
    from vlmdata.lock import locked

    (tmp_path / "e").mkdir()
    with locked(tmp_path / "e"), pytest.raises(VlmError, match="another run is writing to e"):
        evaluate("amber", data=data, model="m", out="e", quiet=True)
    assert not model.asked


def test_only_what_is_written_is_said_to_be_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match="^in/e cannot be written: No such file or directory; make it$"):
        with store.writing(Path("in/e"), "; make it"):
            Path("in/e/x").write_text("")
    with pytest.raises(FileNotFoundError):
        with store.writing(Path("in/e")):
            Path("elsewhere/x").read_text()
    with pytest.raises(MissingError, match="^mine$"):
        with store.writing(Path("in/e")):
            raise MissingError("mine")
