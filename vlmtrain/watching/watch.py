"""Everything that watches a run, brought to its trainer and brought to an end with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtrain import distributed
from vlmtrain.evaluate import greater_is_better
from vlmtrain.watching import curves
from vlmtrain.watching.answers import Asker
from vlmtrain.watching.best import KeepBest
from vlmtrain.watching.checks import keeps_best
from vlmtrain.watching.memory import Memory, lines
from vlmtrain.watching.samples import Samples, read_samples
from vlmtrain.watching.scores import scores
from vlmtrain.watching.trackers import Trackers

if TYPE_CHECKING:
    from vlmtrain.job import Job

__all__ = ["Watch", "sections"]

# A classifier's name for a figure.
_CLASSIFIER = {"f1": "f1_macro"}
_QUOTED = 240


class Watch:
    """What watches one run.

    Attributes:
        metric: the figure of evaluations the best weights are told by.
        trackers: where figures go besides the log.
    """

    def __init__(self, trainer: Any, job: Job) -> None:
        """Attach trackers, samples, scores and the keeping of the best; the last thing before training."""
        w, text = job.config.watching, job.config.method != "classify"
        self._trainer, self._job = trainer, job
        self.memory = Memory()
        self.trackers = Trackers(job)
        for adapter in getattr(trainer.model, "peft_config", {}).values():
            # peft notes the folder that the base was loaded from, and trackers send it.
            adapter.base_model_name_or_path = job.loaded.base
        self.metric = w.eval_metric if text else _CLASSIFIER.get(w.eval_metric, w.eval_metric)
        asks = text and (w.sample_steps or w.eval_metric != "loss" or w.eval_amber)
        asker = Asker(trainer, job) if asks and job.eval_rows is not None else None
        judge = scores(asker, job) if asker is not None else None
        if judge is not None:
            trainer.judge, job.reporter.watched = judge, judge.names
            job.reporter.say(f"scores {judge.names[0]}: {judge.asked:,} answers are written at each evaluation")
        for callback in self.trackers.callbacks:
            trainer.add_callback(callback)
        self.samples = Samples(asker, job, self.trackers) if asker is not None and w.sample_steps else None
        if self.samples is not None:
            trainer.add_callback(self.samples)
        if keeps_best(job.config, job.eval_rows is not None):
            trainer.add_callback(KeepBest(trainer, self.metric, not text or greater_is_better(w.eval_metric)))

    def __enter__(self) -> Watch:
        """Training begins."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the trackers of a run that failed."""
        if kind is not None:
            self.close()

    def trained(self, step: int) -> None:
        """The weights are what they will be: ask once more.

        Args:
            step: after which the weights were as they are now.
        """
        if self.samples is not None:
            self.samples.take(step)

    def figures(self, best: int | None) -> dict[str, Any]:
        """For ``metrics.json``: memory, what evaluations are for, and which one was the best."""
        state = self._trainer.state
        found: dict[str, Any] = {"eval_metric": self.metric, "memory": self.memory.report()}
        if best is not None:
            found["best"] = {"step": best, "metric": self.metric, "value": state.best_metric}
        return found

    def finish(self, metrics: dict[str, Any]) -> None:
        """Say how it went and draw the curves; for the first process.

        Args:
            metrics: the content of ``metrics.json``.
        """
        job, w = self._job, self._job.config.watching
        say, entries = job.reporter.say, curves.read_log(job.folder.log)
        bars = curves.sparkline(entries)
        if bars:
            say(f"loss   {bars}")
        if "best" in metrics:
            best = metrics["best"]
            say(f"best   step {best['step']}: {best['metric']} {best['value']:.4g}; the run ends with its weights")
        for line in lines(metrics["memory"], metrics["train_seconds"]):
            say(line)
        if w.curves:
            best_step = metrics["best"]["step"] if "best" in metrics else None
            curves.draw(entries, job.folder.path / curves.FILE, metric=w.eval_metric, best=best_step)

    def close(self, out: Path | None = None) -> None:
        """Close the trackers.

        Args:
            out: the finished run folder; None where it is not finished.
        """
        if distributed.is_first():
            self.trackers.finish(out)


def sections(folder: Path, metrics: dict[str, Any]) -> str:
    """What the card of a run folder says of its curves, its best step and its answers; Markdown.

    Args:
        folder: the run folder.
        metrics: the content of ``metrics.json``.
    """
    parts = []
    if (folder / curves.FILE).is_file():
        parts.append(f"## Curves\n\n![loss and other figures by step]({curves.FILE})\n")
    if "best" in metrics:
        best = metrics["best"]
        by = f"{best['metric']} ({best['value']:.4g})"
        parts.append(f"These are the weights of step {best['step']}, the best of its evaluations by {by}.\n")
    samples = read_samples(folder)
    if samples:
        first, last = min(row["step"] for row in samples), max(row["step"] for row in samples)
        kept = metrics["best"]["step"] if "best" in metrics else last
        last = kept if any(row["step"] == kept for row in samples) else last
        before = {row["id"]: row["answer"] for row in samples if row["step"] == first}
        after = [row for row in samples if row["step"] == last]
        rows = "\n".join(
            f"| {_cell(row['prompt'])} | {_cell(row['reference'])} | {_cell(before.get(row['id'], ''))} |"
            f" {_cell(row['answer'])} |"
            for row in after
        )
        head = f"| asked | right | before (step {first}) | after (step {last}) |\n|---|---|---|---|\n"
        parts.append(f"## Answers to rows that were not trained on\n\n{head}{rows}\n")
    return "".join(f"\n{part}" for part in parts)


def _cell(text: str) -> str:
    flat = " ".join(text.split())
    flat = flat if len(flat) <= _QUOTED else flat[: _QUOTED - 2] + " …"
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
