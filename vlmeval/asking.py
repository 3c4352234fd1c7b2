"""Asking a model what is not answered yet, so that a killed run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmdata.lock import locked
from vlmeval import job as jobs
from vlmeval import log, ranks, store
from vlmeval.job import Job
from vlmeval.model import Model
from vlmeval.models import prefix_check
from vlmeval.progress import track
from vlmeval.task import Item, Response

__all__ = ["ask", "source"]

_WAY_ON = "; what was answered is kept: make room, and give the same command with --resume"


def ask(job: Job, model: Model, out: Path, *, fresh: bool, quiet: bool) -> tuple[list[Response], dict[str, Any]]:
    """Ask what is not answered yet; every batch is on disk before the next is asked.

    Args:
        job: what is asked.
        model: who is.
        out: the evaluation folder.
        fresh: remove the evaluation that is in it, once the model has answered.
        quiet: no progress.

    Returns:
        All answers and failures, in the items' order; and the record of the run, ``run.json``.

    Raises:
        ConfigError: the answers in the folder are of another set-up, or it cannot be written.
        VlmError: the model cannot be had, or can answer no more.
    """
    before, done = ranks.first(lambda: _before(job, model, out, fresh))
    unasked = job.unasked()
    closed = done | {said.id for said in unasked}
    todo = [item for item in job.items if item.id not in closed]
    if not todo:
        known = before or {"answers": model.describe(), "environment": {}}
        record = jobs.resumed(before, job.record(known["answers"], known["environment"]), asked=False)
        return ranks.first(lambda: _settled(job, out, unasked, record)), record
    ranks.alike(model.load)
    now = job.record(model.describe(), model.environment())
    if before:
        ranks.first(lambda: _refuse(job, before, now, done, out))
    record = jobs.resumed(before, now)
    timed = _answers(job, model, out, closed, todo, record, fresh=fresh, quiet=quiet)
    for name, value in before.get("timed", {}).items():
        timed[name] = round(timed[name] + value, 3)
    # More of the environment may be known after the answers: tokens used, batches that had to be halved.
    environments = [job.record({}, found)["environment"] for found in ranks.gathered(model.environment())]
    environment = prefix_check.joined(environments)
    record = {**record, "environment": environment, "timed": timed}
    return ranks.first(lambda: _settled(job, out, unasked, record)), record


def source(record: Mapping[str, Any]) -> dict[str, Any]:
    """Where the answers come from, for the report."""
    return {**record["answers"], **record["environment"], "images": record["images"]["path"]}


def _before(job: Job, model: Model, out: Path, fresh: bool) -> tuple[dict[str, Any], set[int | str]]:
    """The record of an earlier run, and the ids that were answered in it."""
    if fresh:
        return {}, set()
    if not (out / store.SETUP).is_file():
        if log.read(out).responses:
            raise DataError(f"{out} has {store.RESPONSES} but no {store.SETUP}: start again with --overwrite")
        return {}, set()
    before = jobs.read_record(out)
    if before["answers"].get("kind") == "responses":
        raise ConfigError(f"{out} holds a scored responses file, which no model can go on with: use --overwrite")
    done = set(log.read(out).responses)
    _refuse(job, before, job.record(model.describe(), {}), done, out)
    return before, done


def _refuse(job: Job, before: Mapping[str, Any], now: Mapping[str, Any], done: Container[int | str], out: Path) -> None:
    """Refuse to mix answers of two set-ups in one folder."""
    shown = {name for item in job.items if item.id in done for name in item.images}
    found = jobs.differences(before, now, shown)
    if found:
        raise ConfigError(
            f"{out} was answered with another set-up: {'; '.join(found)}; give the same one, or start again with "
            "--overwrite"
        )


def _answers(
    job: Job,
    model: Model,
    out: Path,
    closed: set[int | str],
    todo: Sequence[Item],
    record: Mapping[str, Any],
    *,
    fresh: bool,
    quiet: bool,
) -> dict[str, float]:
    """Ask; give how many were asked by all processes, and the seconds it took."""

    def lock() -> None:
        with store.writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out))

    def begin() -> None:
        with store.writing(out):
            store.start(out, fresh=fresh)
            # What an earlier run reported is not what this one will.
            (out / store.REPORT).unlink(missing_ok=True)
            store.write_json(out / store.SETUP, record)

    several = ranks.world() > 1
    hidden = ranks.share(model, job.items, closed) if several else closed
    mine = sum(item.id not in hidden for item in todo)
    label = f"{job.task.name}: asking {model.name}" + (f" (1 of {ranks.world()} processes)" if several else "")
    total = mine if several else len(job.items)
    began = time.monotonic()
    with ExitStack() as stack:
        ranks.first(lock)
        advance = stack.enter_context(track(label, total, total - mine, quiet=quiet or not ranks.is_first()))
        batches = model.answer(job.items, hidden)
        # What a model cannot do at all it says before its first answer; until then an earlier evaluation stays.
        begun = ranks.alike(lambda: list(islice(batches, 1)))
        ranks.first(begin)
        with store.writing(out):
            written = stack.enter_context(log.Log(out, ranks.rank() if several else None))
        for batch in chain(begun, batches):
            with store.writing(out, _WAY_ON):
                written.append(batch)
            advance(len(batch))
        counts = ranks.gathered(mine)
        if several:
            ranks.first(lambda: _all_there(out, todo))
    return {"answers": sum(counts), "seconds": round(time.monotonic() - began, 3)}


def _all_there(out: Path, todo: Sequence[Item]) -> None:
    """Make sure that what other processes answered is where this one looks."""
    found = log.read(out)
    lost = sum(item.id not in found.responses and item.id not in found.failures for item in todo)
    if lost:
        raise DataError(
            f"{lost} of {len(todo)} answers are not in {out}: it must lie on a disk that all processes share; bring "
            "their files together and go on with --resume"
        )


def _settled(job: Job, out: Path, unasked: Sequence[Response], record: Mapping[str, Any]) -> list[Response]:
    """Put the answers of all processes in order, and say what could not be asked."""
    with store.writing(out, _WAY_ON):
        store.start(out, fresh=False)
        if unasked:
            known = log.read(out)
            with log.Log(out) as written:
                written.append(
                    said for said in unasked if said.id not in known.responses and known.failures.get(said.id) != said
                )
        found = log.settle(out, job.benchmark.items)
        if not (out / store.SETUP).is_file() or store.read_json(out / store.SETUP) != record:
            store.write_json(out / store.SETUP, record)
    return [*found.responses.values(), *found.failures.values()]
