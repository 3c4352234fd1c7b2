"""What people see while a run goes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from vlmdata.errors import ConfigError
from vlmtrain.progress import Reporter
from vlmtrain.watching.memory import peak_memory

LOGS = {"loss": 0.6931, "learning_rate": 2.5e-4, "rewards/accuracies": 0.875, "rewards/margins": -0.123, "odd": 1.0}


def shown(tmp_path: Path, terminal: bool, logs: list[dict[str, Any]]) -> str:
    reporter = Reporter(tmp_path / "log.jsonl", show=True)
    stream = io.StringIO()
    reporter.console = Console(file=stream, force_terminal=terminal, width=80, highlight=False)
    reporter.trainer = SimpleNamespace(tokens_seen=0)
    arguments, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()
    state = TrainerState(max_steps=3000)
    reporter.on_train_begin(arguments, state, control)
    for step, entry in enumerate(logs):
        state.global_step, state.epoch = 1000 * (step + 1), 0.5
        reporter.trainer.tokens_seen += 12345
        reporter.on_step_end(arguments, state, control)
        reporter.on_log(arguments, state, control, logs=dict(entry))
    if reporter._bar:
        reporter._bar.refresh()
    reporter.on_train_end(arguments, state, control)
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_fit_into_eighty_columns(terminal: bool, tmp_path: Path) -> None:
    text = shown(tmp_path, terminal, [LOGS, {"eval_loss": 1.5, "eval_rewards/accuracies": 0.5}, LOGS])
    for word in ("loss 0.693", "acc 0.88", "margin -0.12", "lr 2.5e-4", "GiB", "eval loss 1.500"):
        assert word in text, word
    if terminal:
        assert "3000/3000" in text and "tok/s" in text
    else:
        assert all(len(line) <= 80 for line in text.splitlines()), text
        assert "step 1000/3000" in text and "ETA" in text


def test_log_holds_what_was_reported(tmp_path: Path) -> None:
    shown(tmp_path, False, [LOGS, {"eval_loss": 1.5}, {"train_runtime": 3.0}])
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["loss"] == 0.6931 and first["reward_margin"] == -0.123 and first["tokens_per_second"] > 0
    assert "odd" not in first and second == {"step": 2000, "epoch": 0.5, "eval_loss": 1.5}


def test_a_loss_that_is_no_number_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the loss is nan at step 1000: lower --learning-rate"):
        shown(tmp_path, True, [{"loss": float("nan")}])


def test_peak_memory_is_in_bytes() -> None:
    assert 1 << 26 < peak_memory() < 1 << 40
