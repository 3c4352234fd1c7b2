"""What the README shows, runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py", run_name="__main__")
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "runs/sft/adapter_model.safetensors").exists()


def test_the_first_screen_is_short_and_has_the_two_commands() -> None:
    screen = README.splitlines()[:25]
    assert any("make demo" in line for line in screen) and any("make test" in line for line in screen)
    assert not re.search(r"@[A-Z]+@", README), "a figure is missing"
