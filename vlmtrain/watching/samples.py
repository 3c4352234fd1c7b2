"""Answers to a few held-out rows before, during and after training, shown and kept in ``samples.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from vlmdata.atomic import write_lines
from vlmdata.terminal import harmless
from vlmtrain import distributed
from vlmtrain.watching.answers import Asker, askable, prompts_of

if TYPE_CHECKING:
    from vlmtrain.job import Job
    from vlmtrain.watching.trackers import Trackers

__all__ = ["FILE", "Samples", "read_samples"]

FILE = "samples.jsonl"
_WIDTH = 50


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of a run so far; a line that was cut short is left out."""
    found = []
    path = folder / FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(dict(json.loads(line)))
        except ValueError:
            continue
    return found


class Samples(TrainerCallback):
    """Asks the same rows every so many steps.

    The rows are spread evenly over those held out. Greedy answers depend on the weights alone; drawn ones on seed and
    step as well.
    """

    def __init__(self, asker: Asker, job: Job, trackers: Trackers) -> None:
        """Choose the rows."""
        self._w, self._asker, self._trackers = job.config.watching, asker, trackers
        self._folder, self._reporter, self._seed = job.folder.path, job.reporter, job.config.training.seed
        places = askable(job)
        count = min(self._w.sample_rows, len(places))
        found = prompts_of(job.eval_rows, [places[number * len(places) // count] for number in range(count)])
        self._prompts = [prompt for prompt in found if prompt is not None]
        self._taken: set[int] = set()
        self._told = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the untrained model; after a resume, forget what will be asked again."""
        before = read_samples(self._folder) if state.global_step else []
        kept = [row for row in before if row["step"] <= state.global_step]
        self._taken = {row["step"] for row in kept}
        if distributed.is_first() and (self._folder / FILE).is_file():
            write_lines(self._folder / FILE, iter(kept))
        if state.global_step == 0:
            self.take(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask when it is time."""
        if state.global_step % self._w.sample_steps == 0:
            self.take(state.global_step)

    def take(self, step: int) -> None:
        """Ask, unless this step's answers are there."""
        if step in self._taken:
            return
        self._taken.add(step)
        w = self._w
        answers = self._asker.answers(
            self._prompts,
            w.sample_tokens,
            temperature=w.sample_temperature,
            min_p=w.sample_min_p,
            seed=(self._seed << 20) + step,
        )
        rows = [
            {"step": step, "id": prompt.id, "prompt": prompt.text, "reference": prompt.reference, "answer": answer}
            for prompt, answer in zip(self._prompts, answers, strict=True)
            if answer is not None
        ]
        if distributed.is_first():
            with (self._folder / FILE).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self._trackers.table(step, rows)
            self._show(step, rows)

    def _show(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Question and right answer once, then what is said at each step."""
        say = self._reporter.say
        for number, row in enumerate(rows, 1):
            if not self._told:
                say(f"row {number}  asked  {_short(row['prompt'])}")
                say(f"{'':<7}right  {_short(row['reference'])}")
        for number, row in enumerate(rows, 1):
            say(f"row {number}  said   {_short(row['answer'])}  [step {step}]")
        self._told = True


def _short(text: str) -> str:
    shown = harmless(text) or "(nothing)"
    return shown if len(shown) <= _WIDTH else shown[: _WIDTH - 2] + " …"
