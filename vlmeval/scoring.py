"""Answers to reports: its own step, which needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata import __version__
from vlmdata.errors import DataError
from vlmeval import leaks, measure, published, store
from vlmeval.models import prefix_check, usage
from vlmeval.responses import Coverage, gate
from vlmeval.task import Benchmark, Response, Score, Task

__all__ = ["finish"]

_SHOWN = 5


def finish(
    task: Task,
    benchmark: Benchmark,
    answers: Sequence[Response],
    source: Mapping[str, Any],
    out: Path | None,
    record: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    begin: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Score, summarize, write. No model is needed, and nothing is asked.

    Args:
        task: what the answers are to.
        benchmark: its data, opened.
        answers: answers, and failures: responses with an ``error``.
        source: where they come from, as the report tells it.
        out: evaluation folder whose reports are written; None writes nothing.
        record: the content of ``run.json``; stands in the report under ``run``.
        notes: what else a reader of the report must be told.
        begin: called when all is scored, before anything is written.

    Raises:
        DataError: there is no answer to any item.
    """
    failures = [said for said in answers if said.error is not None]
    given = [said for said in answers if said.error is None]
    joined, coverage = gate(benchmark, given, failures)
    if not joined:
        raise DataError(_wrong(task.name, benchmark, given, failures, coverage))
    scores: Sequence[Score] = [benchmark.score(item, answer) for item, answer in joined]
    scores = benchmark.together(scores) if benchmark.together else scores
    rows = [score.to_json() for score in scores]
    groups = [group for group in task.groups if any(group in item.groups for item in benchmark.items)]
    summary = benchmark.summarize(scores)
    leaked = leaks.overlap(source, benchmark.folder)
    own = [*benchmark.notes, *leaked.pop("notes", []), *summary.pop("notes", [])]
    spent = usage.usage(given)
    remarks = [*own, *_failed(failures, coverage), *usage.remarks(spent), *prefix_check.remarks(source), *notes]
    protocol = {**benchmark.protocol, **summary.pop("protocol", {})}
    run = dict(record or {})
    report = {
        "task": task.name,
        **({"task_file": run["task_file"]} if "task_file" in run else {}),
        "version": __version__,
        "headline": coverage.banner(),
        "protocol": {**protocol, "answers": dict(source), "data": dict(benchmark.data)},
        "coverage": coverage.to_json(),
        **({"overlap": leaked} if leaked else {}),
        **({"usage": spent} if spent else {}),
        **summary,
        **measure.columns(task, rows, groups),
        "notes": remarks,
    }
    if others := published.beside(task.name, report):
        report["published"] = others
    timed = run.get("timed")
    if timed and timed["answers"]:
        report["speed"] = {**timed, "seconds_per_answer": round(timed["seconds"] / timed["answers"], 4)}
    if run:
        # Hashes of single images are for going on; that over all of them says what was shown.
        images = {key: value for key, value in run["images"].items() if key != "files"}
        report["run"] = {**run, "images": images}
    if out is not None:
        from vlmeval.report import write

        with store.writing(out, "; the answers are kept: make room, and score them with vlmeval score"):
            if begin is not None:
                begin()
            store.write_rows(out / store.SCORES, rows)
            write(out, report, rows, task=task)
    return report


def _failed(failures: Sequence[Response], coverage: Coverage) -> list[str]:
    """Failures by reason; a reason is what stands before the first colon of an error."""
    if not coverage.failed:
        return []
    reasons = Counter(_reason(said) for said in failures)
    listed = "; ".join(f"{count} \N{MULTIPLICATION SIGN} {reason}" for reason, count in reasons.most_common(_SHOWN))
    more = f"; {len(reasons) - _SHOWN} further reasons" if len(reasons) > _SHOWN else ""
    return [
        f"{coverage.failed} of {coverage.expected} items could not be answered and are not scored: {listed}{more}. "
        f"They stand in {store.FAILURES}; --resume asks them again."
    ]


def _reason(said: Response) -> str:
    return (said.error or "").partition(":")[0].strip()[:100]


def _wrong(
    name: str, benchmark: Benchmark, answers: Sequence[Response], failures: Sequence[Response], coverage: Coverage
) -> str:
    if not answers:
        reason = f", the first with: {failures[0].error}" if failures else ""
        return f"no item of {name} has an answer: {len(failures)} could not be answered{reason}"
    expected = f"{benchmark.items[0].id} to {benchmark.items[-1].id}" if benchmark.items else "none"
    part = benchmark.protocol.get("part")
    where = f"part {part!r} of {name}" if part else name
    return (
        f"none of {len(answers)} answers is one to {where}: its ids are {expected}, the answers' ids are like "
        f"{answers[0].id!r}; {coverage.outside} belong to another part, {coverage.unknown} to nothing in these data, "
        f"{coverage.null} are null"
    )
