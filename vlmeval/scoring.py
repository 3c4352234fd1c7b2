"""Answers to reports: its own step, which needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata import __version__
from vlmdata.errors import DataError
from vlmeval import measure, store
from vlmeval.responses import Coverage, gate
from vlmeval.task import Benchmark, Response, Task

__all__ = ["finish"]


def finish(
    task: Task,
    benchmark: Benchmark,
    answers: Sequence[Response],
    source: Mapping[str, Any],
    out: Path | None,
    timed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score, summarize, write."""
    joined, coverage = gate(benchmark, answers)
    if not joined:
        raise DataError(_wrong(task.name, benchmark, answers, coverage))
    scores = [benchmark.score(item, answer) for item, answer in joined]
    rows = [score.to_json() for score in scores]
    groups = [group for group in task.groups if any(group in item.groups for item in benchmark.items)]
    summary = benchmark.summarize(scores)
    notes = [*benchmark.notes, *summary.pop("notes", [])]
    protocol = {**benchmark.protocol, **summary.pop("protocol", {})}
    report = {
        "task": task.name,
        "version": __version__,
        "headline": coverage.banner(),
        "protocol": {**protocol, "answers": dict(source), "data": dict(benchmark.data)},
        "coverage": coverage.to_json(),
        **summary,
        **measure.columns(task, rows, groups),
        "notes": notes,
    }
    if timed:
        report["speed"] = {**timed, "seconds_per_answer": round(timed["seconds"] / timed["answers"], 4)}
    if out is not None:
        from vlmeval.report import write

        if source["kind"] == "responses":
            store.start(out, fresh=True)
            store.write_rows(out / store.RESPONSES, map(store.row, answers))
        store.write_rows(out / store.SCORES, rows)
        write(out, report, rows)
    return report


def _wrong(name: str, benchmark: Benchmark, answers: Sequence[Response], coverage: Coverage) -> str:
    expected = f"{benchmark.items[0].id} to {benchmark.items[-1].id}" if benchmark.items else "none"
    part = benchmark.protocol.get("part")
    where = f"part {part!r} of {name}" if part else name
    return (
        f"none of {len(answers)} answers is one to {where}: its ids are {expected}, the answers' ids are like "
        f"{answers[0].id!r}; {coverage.outside} belong to another part, {coverage.unknown} to nothing in these data, "
        f"{coverage.null} are null captions"
    )
