"""Asking a model what is not answered yet, so that a killed run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmeval import store
from vlmeval.model import Model
from vlmeval.progress import track
from vlmeval.task import Benchmark, Item, Response

__all__ = ["ask", "source"]


def ask(
    task: str, benchmark: Benchmark, items: Sequence[Item], model: Model, out: Path, images: Path | None, quiet: bool
) -> tuple[list[Response], dict[str, Any]]:
    """Ask what is not answered yet; every batch is on disk before the next is asked.

    Returns:
        All answers; and the record of the run: set-up, environment, and how long the answers took where that is known.
    """
    setup: dict[str, Any] = {"task": task, "answers": model.describe(), "data": dict(benchmark.data)}
    path = out / store.SETUP
    before = store.read_json(path) if path.is_file() else {}
    if before:
        _same(before["setup"], setup, out)
    elif (out / store.RESPONSES).is_file():
        raise DataError(f"{out} has {store.RESPONSES} but no {store.SETUP}: start again with --overwrite")
    answers, _ = store.answered(out / store.RESPONSES)
    done = {response.id for response in answers}
    todo = [item for item in items if item.id not in done]
    if not todo:
        return answers, before
    model.load()
    setup["answers"] = model.describe()
    if before:
        _same(before["setup"], setup, out)
    record = {"setup": setup, "environment": model.environment(), "images": str(images) if images else None}
    store.start(out, fresh=False)
    store.write_json(path, record)
    began = time.monotonic()
    with (
        store.Log(out / store.RESPONSES) as log,
        track(f"{task}: asking {model.name}", len(items), len(items) - len(todo), quiet=quiet) as advance,
    ):
        for batch in model.answer(items, done):
            log.append(batch)
            advance(len(batch))
        timed = {"answers": len(todo), "seconds": round(time.monotonic() - began, 3)}
        record["timed"] = {name: value + before.get("timed", {}).get(name, 0) for name, value in timed.items()}
        store.write_json(path, record)
        return log.done, record


def source(record: Mapping[str, Any]) -> dict[str, Any]:
    """Where the answers come from, for the report."""
    return {**record["setup"]["answers"], **record["environment"], "images": record["images"]}


def _same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Refuse to mix answers of two set-ups in one folder; what both know must agree."""
    differences = []
    for part in ("answers", "data"):
        # An adapter is known by its weights, wherever it lies.
        for key in (before[part].keys() & now[part].keys()) - {"adapter"}:
            if before[part][key] != now[part][key]:
                differences.append(f"{key} was {_short(before[part][key])}, is {_short(now[part][key])}")
    if before["task"] != now["task"]:
        differences.append(f"task was {before['task']}, is {now['task']}")
    if differences:
        raise ConfigError(
            f"{out} was answered with another set-up: {'; '.join(sorted(differences))}; give the same one, or start "
            "again with --overwrite"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else repr(value)
