from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rawfiles import CAULDRON, cauldron_rows, chat, write_json, write_parquet

from vlmdata.cli import main
from vlmdata.progress import Progress
from vlmdata.source import names


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "x.parquet", cauldron_rows(6), CAULDRON)


def test_sources_are_listed_and_described() -> None:
    listing = run("sources")
    assert listing.exit_code == 0
    assert all(name in listing.output for name in names())
    assert max(map(len, listing.output.splitlines())) <= 84
    for name in names():
        described = run("sources", name).output
        assert "Raw row" in described and "Rejected" in described and "columns:" in described
    unknown = run("sources", "nothing")
    assert unknown.exit_code == 2 and "football" in unknown.output and unknown.output.count("\n") == 1


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_too_long_for_the_system_is_one_line(raw: Path, tmp_path: Path, length: int) -> None:
    run("convert", "the_cauldron", raw, "--out", tmp_path / "in")
    long = tmp_path / ("x" * length)
    for words in (("filter", tmp_path / "in", "--where", "1", "--out", long), ("stats", f"{long}{'y' * 50}")):
        result = run(*words)
        assert result.exit_code == 2 and result.stderr.splitlines()[-1].endswith("give a shorter one")


def test_convert_then_validate(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("convert", "the_cauldron", raw, "--out", out, "--workers", 1, "--turns", "split", "--limit", 5)
    assert done.exit_code == 0, done.output
    assert "5 read = 5 kept + 0 rejected" in done.output and "10 messages, one for each turn" in done.output
    checked = run("validate", out)
    assert checked.exit_code == 0 and "10 messages records" in checked.output
    (out / "data-00000-of-00001.parquet").write_bytes(b"x")
    broken = run("validate", out)
    assert broken.exit_code == 1 and "sha256 differs" in broken.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["football", "RAW", "--out", "OUT"], "expected columns image, text"),
        (["nothing", "RAW", "--out", "OUT"], "no source named"),
        (["the_cauldron", "GONE", "--out", "OUT"], "no file or folder"),
        (["the_cauldron", "RAW", "--out", "OUT", "--scale", "3"], "scale is 3.0"),
        (["the_cauldron", "RAW", "--out", "OUT", "--workers", "0"], "workers is 0"),
        (["the_cauldron", "RAW", "--out", "OUT", "--prompt", "Hi"], "--prompt"),
    ],
)
def test_mistakes_are_one_line_and_status_2(raw: Path, tmp_path: Path, words: list[str], says: str) -> None:
    names = {"RAW": raw, "OUT": tmp_path / "out", "GONE": tmp_path / "gone.parquet"}
    result = run("convert", *(names.get(word, word) for word in words))
    assert result.exit_code == 2 and says in result.output
    assert result.output.count("\n") == 1 and result.output.startswith("vlmdata: ")


def test_prompt_may_be_nothing(tmp_path: Path) -> None:
    sample = run("sample", "--out", tmp_path / "raw", "--rows", 20, "--test-scenes", 6)
    assert sample.exit_code == 0, sample.output
    assert "the_cauldron" in sample.output
    done = run("convert", "football", tmp_path / "raw" / "football", "--out", tmp_path / "out", "--prompt", "")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]["prompt"] == ""


def test_the_command_itself(tmp_path: Path) -> None:
    raw = write_json(tmp_path / "plates.json", [chat("Hi", "Yo"), chat("Hi", "")])
    code = "from vlmdata.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", "ocr_json", str(raw), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 read = 1 kept + 1 rejected" in done.stdout and "1 blank_answer" in done.stdout
    assert done.stderr.startswith("convert: 2 rows in")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "--overwrite" in again.stderr and again.stderr.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_terminals_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("vlmdata.progress._PLAIN_SECONDS", 0)
    screen, plain, silent = Terminal(), io.StringIO(), io.StringIO()
    for file, shown in ((screen, True), (plain, True), (silent, False)):
        with Progress("convert", 4, file=file, shown=shown) as bar:
            bar.advance(2)
            bar.advance(2)
    assert "4/4" in screen.getvalue() and "rows/s" in screen.getvalue()
    first, _, last = plain.getvalue().splitlines()
    assert first.startswith("convert: 2 of 4 rows (50 %)") and "left" in first
    assert last.startswith("convert: 4 rows in ")
    assert silent.getvalue() == ""
