"""Curves of a run, and how much memory it took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
from killed import killed_before
from PIL import Image

from vlmtrain import dpo
from vlmtrain.watching import curves
from vlmtrain.watching.memory import Memory, lines, peak_memory


def panels(entries: list[dict[str, Any]], **options: Any) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Panel title -> line label -> its points, as they are drawn."""
    from matplotlib.figure import Figure

    found: dict[str, dict[str, Any]] = {}
    save = Figure.savefig

    def look(figure: Figure, *args: Any, **kwargs: Any) -> None:
        for axes in figure.axes:
            drawn = {str(line.get_label()): line for line in axes.get_lines()}
            found[axes.get_title(loc="left")] = {
                label: (list(line.get_xdata()), list(line.get_ydata())) for label, line in drawn.items()
            }
        save(figure, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", look)
        assert curves.draw(entries, **options)
    return found


def test_all_figures_of_a_log_are_drawn(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0, "reward_accuracy": 0.5, "reward_margin": 0.0, "reward_chosen": 0.1},
        {"step": 2, "loss": 1.0, "reward_accuracy": 0.75, "reward_margin": 0.2, "reward_rejected": -0.1},
        {"step": 2, "eval_loss": 1.5, "eval_reward_accuracy": 1.0, "eval_anls": 50.0, "eval_amber_f1": 80.0},
        {"step": 3, "loss": float("nan")},
    ]
    found = panels(entries, path=tmp_path / "c.png", metric="anls", best=2)
    assert found["Loss"]["training"] == ([1, 2], [2.0, 1.0]) and found["Loss"]["held out"] == ([2], [1.5])
    assert found["Loss"]["kept: step 2"][0] == [2, 2]
    assert found["Reward accuracy"]["training"][1] == [0.5, 0.75] and found["Rewards"]["rejected"] == ([2], [-0.1])
    assert found["anls of written answers"]["held out"] == ([2], [50.0]) and found["AMBER"]["f1"] == ([2], [80.0])
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG" and picture.width > 800 and len(picture.getcolors(1 << 20) or ()) > 10


def test_a_classifiers_figures_are_shares(tmp_path: Path) -> None:
    entries = [{"step": s, "eval_loss": 1.0, "eval_accuracy": s / 10, "eval_f1_macro": s / 20} for s in (1, 2)]
    found = panels(entries, path=tmp_path / "c.png", metric="accuracy")
    assert found["Classes held out"]["accuracy"] == ([1, 2], [0.1, 0.2]) and len(found) == 2


def test_too_little_is_not_drawn(tmp_path: Path) -> None:
    assert not curves.draw([], tmp_path / "c.png") and not curves.draw([{"step": 1, "loss": 1.0}], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_small_bars() -> None:
    entries = [{"step": step, "loss": float(8 - step)} for step in range(8)]
    assert curves.sparkline(entries) == "█▇▆▅▄▃▂▁  8.000 → 1.000"
    assert len(curves.sparkline(entries * 20).split()[0]) == 40
    assert curves.sparkline(entries[:1]) == "" and curves.sparkline([{"loss": 1.0}] * 2) == "▄▄  1.000 → 1.000"


def test_a_torn_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 2}\n{"step": 1, "loss": 1}\n{"step": 3, "lo')
    assert [entry["step"] for entry in curves.read_log(tmp_path / "log.jsonl")] == [1, 2]
    assert curves.read_log(tmp_path / "nothing.jsonl") == []


def test_the_run_folder_shows_them(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Preferences: loss, accuracy of rewards, margins; for the whole run, also what was before it was resumed."""
    data, out = rows.write(tmp_path / "pairs", rows.pairs(16)), tmp_path / "run"
    options = {"model": str(base), "batch_size": 4, "eval_fraction": 0.25, "logging_steps": 1, "save_steps": 2}
    with killed_before(dpo, 4):
        dpo.train(data, out, epochs=2, **options)
    assert not (out / "curves.png").exists()
    result = dpo.train(data, out, epochs=2, resume=True, **options)
    drawn = panels(curves.read_log(out / "log.jsonl"), path=tmp_path / "again.png")
    assert drawn["Loss"]["training"][0] == [1, 2, 3, 4, 5, 6]
    assert {"Loss", "Reward accuracy", "Reward margin", "Rewards"} <= drawn.keys()
    assert (out / "curves.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert "](curves.png)" in (out / "README.md").read_text()
    said = capsys.readouterr().err
    assert "loss   " in said and "→" in said and "before training, peak" in said
    memory = result.metrics["memory"]
    assert memory["start_bytes"] <= memory["peak_bytes"] <= memory["total_bytes"] and memory["device"] == "cpu"
    plainly = dpo.train(data, tmp_path / "plain", max_steps=2, curves=False, progress=False, **options)
    assert not (plainly.out / "curves.png").exists() and "curves.png" not in (plainly.out / "README.md").read_text()


def test_memory_is_this_processes_own(tmp_path: Path) -> None:
    """A child of a large process starts small; ``ru_maxrss`` would start at its parent's."""
    ballast = bytearray(600 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = (
        "import json\n"
        "from vlmtrain.watching.memory import Memory, peak_memory\n"
        "memory = Memory()\n"
        "before = peak_memory()\n"
        "block = bytearray(200 << 20); block[::4096] = b'x' * len(block[::4096]); del block\n"
        "print(json.dumps([before, peak_memory(), memory.report()]))\n"
    )
    own = peak_memory()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, report = json.loads(run.stdout)
    assert own > 600 << 20
    assert before < after and (180 << 20) < after - before < (260 << 20)
    assert report["training_bytes"] >= 180 << 20 and report["peak_bytes"] == after
    assert 0 < report["training_percent"] <= report["peak_percent"] < 100
    del ballast


def test_memory_in_words() -> None:
    report = {**Memory().report(), "device": "NVIDIA H100 80GB HBM3", "total_bytes": 79 << 30, "peak_percent": 100.0}
    shown = lines(report, 5400)
    assert shown[0].endswith("; 90.0 minutes") and all(len(line) <= 80 for line in shown), shown
