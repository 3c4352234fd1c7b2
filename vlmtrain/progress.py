"""What a run shows while it goes, and what it writes down: live on a terminal, plain lines elsewhere, log.jsonl."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmdata.errors import ConfigError
from vlmtrain.watching.memory import peak_memory

__all__ = ["Reporter"]

# What TRL and transformers call it -> what we write.
_NAMES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/corrupted": "reward_corrupted",
    "rewards/image_margins": "image_margin",
    "rewards/image_accuracies": "image_accuracy",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
    "kl": "kl",
    "accuracy": "accuracy",
    "f1_macro": "f1_macro",
    "f1_weighted": "f1_weighted",
    "top5": "top5",
}


class Reporter(TrainerCallback):
    """Shows and logs a run.

    Attributes:
        history: the logged entries, as in ``log.jsonl``.
        unit: what a trainer's ``tokens_seen`` counts.
        watched: names of further figures of an evaluation; the first is the one that is shown.
    """

    unit = "tokens"
    watched: Sequence[str] = ()

    def __init__(self, log: Path, *, show: bool, write: bool = True) -> None:
        """Append to ``log`` if ``write``; ``show`` is whether anything is printed."""
        self.log_path, self.show, self.write = log, show, write
        self.console = Console(stderr=True, highlight=False)
        self.history: list[dict[str, Any]] = []
        self.trainer: Any = None
        self._bar: _Bar | None = None
        self._task: Any = None
        self._clock = self._started = time.monotonic()
        self._first_step = self._tokens = 0
        self._printed = (0, 0.0)

    def say(self, line: str) -> None:
        """One line for the user."""
        if self.show:
            self.console.print(line, soft_wrap=True, markup=False)

    def last(self, key: str) -> dict[str, Any]:
        """The latest entry that has this figure."""
        return next((entry for entry in reversed(self.history) if key in entry), {})

    def evaluation(self, step: int) -> dict[str, Any]:
        """The evaluation at this step, also where an earlier process of the run wrote it down."""
        entries = [json.loads(line) for line in self.log_path.read_text(encoding="utf-8").splitlines()]
        return next((e for e in reversed(entries) if e["step"] == step and "eval_loss" in e), {})

    def open(self, what: str, total: int) -> None:
        """Start a bar; on a terminal only."""
        self.close()
        if self.show and self.console.is_terminal:
            self._bar = _Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=40),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()

    def advance(self, done: int, info: str | None = None) -> None:
        """Move the bar to ``done``."""
        if self._bar is not None:
            self._bar.info = self._bar.info if info is None else info
            self._bar.update(self._task, completed=done)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._clock = self._started = time.monotonic()
        self._first_step = state.global_step
        self._tokens = self.trainer.tokens_seen
        self.open("train", state.max_steps)
        self.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move on."""
        self.advance(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one entry: training figures since the last one, or an evaluation."""
        logs = logs or {}
        if "train_runtime" in logs:
            return
        entry: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        if "eval_loss" in logs:
            names = {f"eval_{old}": f"eval_{new}" for old, new in _NAMES.items()}
            entry |= {new: logs[old] for old, new in names.items() if old in logs}
            entry |= {name: logs[name] for name in logs if name.removeprefix("eval_") in self.watched}
        else:
            now = time.monotonic()
            entry |= {new: logs[old] for old, new in _NAMES.items() if old in logs}
            if not math.isfinite(entry.get("loss", 0.0)):
                self.close()
                advice = "lower --learning-rate, or use --dtype bfloat16 or float32"
                raise ConfigError(f"the loss is {entry['loss']} at step {state.global_step}: {advice}")
            tokens = self.trainer.tokens_seen
            entry[f"{self.unit}_per_second"] = round((tokens - self._tokens) / max(now - self._clock, 1e-9), 1)
            entry["seconds"] = round(now - self._started, 2)
            self._clock, self._tokens = now, tokens
        self.history.append(entry)
        if self.write:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        self._print(entry, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the bar away."""
        self.close()

    def _print(self, entry: dict[str, Any], state: TrainerState) -> None:
        memory = f"{peak_memory() / 2**30:.1f} GiB"
        if self._bar is not None and "eval_loss" not in entry:
            self.advance(state.global_step, f"{_describe(entry)}  peak {memory}")
            return
        step, when = self._printed
        now = time.monotonic()
        due = state.global_step - step >= state.max_steps / 20 or now - when > 30
        if not (due or "eval_loss" in entry or state.global_step in (1, state.max_steps)):
            return
        self._printed = (state.global_step, now)
        left = ""
        if "eval_loss" not in entry and state.global_step > self._first_step:
            pace = (now - self._started) / (state.global_step - self._first_step)
            left = f"  {memory}  ETA {_clock(pace * (state.max_steps - state.global_step))}"
        if "reward_margin" in entry:
            # Everything does not fit into 80 columns.
            left_out = {"tokens_per_second", *(["learning_rate"] if "image_accuracy" in entry else [])}
            entry = {key: value for key, value in entry.items() if key not in left_out}
        self.say(f"step {state.global_step}/{state.max_steps}  {_describe(entry, self.watched)}{left}")


class _Bar(Progress):
    """A bar with the latest figures on a line below it."""

    info = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.info:
            yield Text(self.info, no_wrap=True, overflow="ellipsis")


def _describe(entry: dict[str, Any], watched: Sequence[str] = ()) -> str:
    """The figures people watch, short enough for one line of 80 columns."""
    scores = [f"{watched[0]} {entry[f'eval_{watched[0]}']:.1f}"] if watched and f"eval_{watched[0]}" in entry else []
    entry = {key: value for key, value in entry.items() if key.removeprefix("eval_") not in watched}
    forms = (
        ("loss", "loss {:.3f}"),
        ("eval_loss", "eval loss {:.3f}"),
        ("reward_accuracy", "acc {:.2f}"),
        ("reward_margin", "margin {:.2f}"),
        ("image_accuracy", "img acc {:.2f}"),
        ("eval_reward_accuracy", "eval acc {:.2f}"),
        ("eval_token_accuracy", "eval token acc {:.2f}"),
        ("learning_rate", "lr {:.1e}"),
        ("eval_accuracy", "eval acc {:.3f}"),
        ("eval_f1_macro", "macro F1 {:.3f}"),
        ("tokens_per_second", "{:,.0f} tok/s"),
        ("images_per_second", "{:,.0f} img/s"),
    )
    parts = [form.format(entry[key]).replace("e-0", "e-") for key, form in forms if key in entry]
    return "  ".join([*parts, *scores])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
