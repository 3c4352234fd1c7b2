from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rawfiles import encoded, shard_bytes

from vlmdata.adapter import digest, title
from vlmdata.cli import main
from vlmdata.convert import convert
from vlmdata.errors import ConfigError, DataError, MissingError, RecordError
from vlmdata.shards import open_shards
from vlmdata.source import documentation, load

ADAPTER = '''"""Riddles about pictures."""

from dataclasses import dataclass

from vlmdata.errors import RecordError
from vlmdata.fields import image_value, text_value
from vlmdata.records import Message, Sample, image, text
from vlmdata.source import Source


@dataclass(frozen=True)
class Riddle:
    words: str


def convert(row, row_id, options):
    riddle = Riddle(text_value(row, "riddle"))
    if riddle.words == "?":
        raise RecordError("empty_turn", "a riddle without words")
    user = Message("user", (image(), text(riddle.words)))
    answer = Message("assistant", (text(text_value(row, "solution")),))
    return [Sample(row_id, (image_value(row["photo"]),), (user, answer), "riddles")]


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"photo", "riddle", "solution"}),),
    convert=convert,
    url="https://example.org/riddles",
    licence="CC-BY-4.0",
    summary="riddles about pictures",
)
'''


@pytest.fixture
def riddles(tmp_path: Path) -> Path:
    (tmp_path / "1.jpg").write_bytes(encoded())
    rows = [{"photo": "1.jpg", "riddle": f"What am I, {n}?", "solution": f"It is {n}"} for n in range(30)]
    rows[3]["riddle"] = "?"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "riddles.py").write_text(ADAPTER)
    return tmp_path


def test_a_file_of_the_users_is_a_source_in_one_process_and_in_two(riddles: Path) -> None:
    adapter = str(riddles / "riddles.py")
    one = convert(adapter, riddles / "rows.jsonl", riddles / "one", shard_size="1MB")
    two = convert(adapter, riddles / "rows.jsonl", riddles / "two", shard_size="1MB", workers=2)
    assert len(one.manifest.shards) > 1
    assert (one.kept, one.rejected) == (29, {"empty_turn": 1})
    parquet = [{n: data for n, data in shard_bytes(done.out).items() if n.endswith(".parquet")} for done in (one, two)]
    assert parquet[0] == parquet[1]
    row = next(open_shards(one.out).rows())
    assert (row["licence"], row["source"]) == ("CC-BY-4.0", "riddles")
    assert not list(riddles.glob("__pycache__")), "nothing is written beside the user's file"


def test_manifests_hash_the_file_and_name_no_folder(riddles: Path) -> None:
    adapter = riddles / "riddles.py"
    done = convert(str(adapter), riddles / "rows.jsonl", riddles / "out")
    manifest = (done.out / "manifest.json").read_text()
    assert str(digest(str(adapter))) in manifest
    assert done.manifest.source == title(str(adapter)) == "riddles"
    assert str(riddles) not in manifest


def test_a_changed_file_is_another_conversion(riddles: Path) -> None:
    adapter = riddles / "riddles.py"
    convert(str(adapter), riddles / "rows.jsonl", riddles / "out")
    (riddles / "out" / "manifest.json").unlink()
    adapter.write_text(ADAPTER.replace("It is", "It was") + "\n# changed\n")
    with pytest.raises(ConfigError, match="adapter_sha256"):
        convert(str(adapter), riddles / "rows.jsonl", riddles / "out", resume=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("X = 1\n", "defines no SOURCE"),
        ("SOURCE = 1\n", "SOURCE of {path} is int"),
        ("import nothing_of_this_name\n", "{path} line 1 cannot be run: ModuleNotFoundError: No module named"),
        ("x = 1\ndef f(:\n", "{path} line 2: invalid syntax"),
        ("def f():\n    return 1 / 0\n\nf()\n", "{path} line 2 cannot be run: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "line 2 cannot be run: SystemExit"),
        ("raise ValueError\n", "no message"),
        ("a = '\x00'\n", "{path}"),
        (ADAPTER.replace('kind="messages"', 'kind="chat"'), "kind is 'chat'"),
        (ADAPTER.replace("convert=convert", "convert=3"), "convert is no function"),
        (ADAPTER.replace('(frozenset({"photo", "riddle", "solution"}),)', '["photo"]'), "columns is no tuple"),
        (ADAPTER.replace('frozenset({"photo", "riddle", "solution"})', '"photo"'), "expected such as"),
        (ADAPTER.replace('licence="CC-BY-4.0"', "licence=None"), "licence and summary should be texts"),
    ],
)
def test_files_that_are_no_source(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load(str(path))
    assert says.format(path=path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_import_is_told_from_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_of_mine.py").write_text("\n\n\ndef f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "mine.py"
    path.write_text("import broken_of_mine\n")
    with pytest.raises(DataError, match=r"mine.py line 1 cannot be run: SyntaxError: .*broken_of_mine.py, line 4"):
        load(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no file"):
        load(str(tmp_path / "gone.py"))
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(MissingError, match="cannot be read"):
        load(str(tmp_path / "folder.py"))
    with pytest.raises(MissingError, match="NAME.py"):
        load("gone")


@pytest.mark.parametrize(
    ("made", "found"), [("None", "NoneType"), ("[]", "an empty list"), ("[{}]", "dict"), ("[Riddle('a')]", "Riddle")]
)
def test_what_convert_gives_is_checked(riddles: Path, made: str, found: str) -> None:
    text = ADAPTER.replace("return [Sample(", f"return {made}\n    return [Sample(")
    (riddles / "riddles.py").write_text(text)
    with pytest.raises(DataError, match=f"gave {found} for row .* expected a list of Sample"):
        convert(str(riddles / "riddles.py"), riddles / "rows.jsonl", riddles / "out")


def test_a_bug_in_the_users_file_keeps_its_traceback(riddles: Path) -> None:
    (riddles / "riddles.py").write_text(ADAPTER.replace('row["photo"]', 'row["picture"]'))
    with pytest.raises(KeyError):
        convert(str(riddles / "riddles.py"), riddles / "rows.jsonl", riddles / "out")


def test_a_changed_file_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(ADAPTER)
    assert load(str(path)).licence == "CC-BY-4.0" and load(str(path)) is load(str(path))
    path.write_text(ADAPTER.replace("CC-BY-4.0", "CC0-1.0"))
    assert load(str(path)).licence == "CC0-1.0"
    assert documentation(str(path)) == "Riddles about pictures."
    with pytest.raises(RecordError):
        load(str(path)).convert({"riddle": "?"}, "row", None)  # type: ignore[arg-type]


def test_the_command_line_shows_and_runs_it(riddles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(riddles)
    shown = CliRunner().invoke(main, ["sources", "./riddles.py"])
    assert shown.exit_code == 0 and "Riddles about pictures." in shown.output and "photo, riddle" in shown.output
    done = CliRunner().invoke(main, ["convert", "./riddles.py", "rows.jsonl", "--out", "out", "--workers", "1"])
    assert done.exit_code == 0, done.output
    wrong = CliRunner().invoke(main, ["convert", "./gone.py", "rows.jsonl", "--out", "x"])
    assert wrong.exit_code == 2 and wrong.output.count("\n") == 1
