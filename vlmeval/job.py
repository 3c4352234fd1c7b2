"""What is asked, opened and checked, and the record of it: ``run.json``, enough to ask again or to score anew."""

from __future__ import annotations

import hashlib
import json
import platform
import random
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata import __version__
from vlmdata.errors import ConfigError, DataError, MissingError, choices
from vlmeval import ranks, store, task_file
from vlmeval.preflight import Pictures
from vlmeval.task import Benchmark, Item, Response, Task, load, recorded

__all__ = [
    "FORMAT",
    "Job",
    "SEED",
    "differences",
    "folder_of",
    "images_sha256",
    "limited",
    "of_record",
    "open_task",
    "questions_sha256",
    "read_record",
    "resumed",
]

FORMAT = 2
"""Of ``run.json``."""
SEED = 0
"""Of the choice that a limit makes, and of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Job:
    """One task, opened.

    Attributes:
        task: what it is.
        own: the file it comes from, where it is a user's: ``path`` and ``sha256``.
        data: the data folder.
        fetched: whether ``Task.fetch`` gave it.
        settings: the task's own options, those that were given.
        benchmark: the data, opened.
        items: what is asked of it.
        pictures: the images the items show.
        limit: how many items were asked for, where it is not all.
        command: the command line, where there was one.
    """

    task: Task
    own: Mapping[str, str] | None
    data: Path
    fetched: bool
    settings: Mapping[str, str]
    benchmark: Benchmark
    items: Sequence[Item]
    pictures: Pictures
    limit: int | None = None
    command: str | None = None

    def unasked(self) -> list[Response]:
        """Items whose image cannot be shown, as failures."""
        return self.pictures.unasked(self.items)

    def record(self, answers: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
        """The content of ``run.json``.

        Args:
            answers: everything that can change an answer; of ``Model.describe``.
            environment: what is not meant to.
        """
        images: dict[str, Any] = {"path": str(self.pictures.folder) if self.pictures.folder else None}
        if self.pictures.files:
            images |= {"sha256": images_sha256(self.pictures.files), "files": dict(self.pictures.files)}
        record = {
            "format": FORMAT,
            "version": __version__,
            "command": self.command,
            "task": self.task.name,
            **({"task_file": dict(self.own)} if self.own else {}),
            "data": {"path": str(self.data), "fetched": self.fetched, "files": dict(self.benchmark.data)},
            "settings": dict(self.settings),
            "items": len(self.benchmark.items),
            "limit": self.limit,
            "seed": SEED,
            "questions_sha256": questions_sha256(self.benchmark.items),
            "images": images,
            "answers": dict(answers),
            "environment": dict(environment),
            "system": {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "processes": ranks.world(),
            },
        }
        # As it will be read again: tuples are lists, and what JSON cannot say is a text.
        plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
        return plain


def open_task(name: str, settings: Mapping[str, Any]) -> tuple[Task, dict[str, str] | None, dict[str, str]]:
    """The task, the file it comes from, and those of its options that were given.

    Raises:
        MissingError: no such task or file.
        DataError: the file holds no task.
        ConfigError: the task has no such option.
    """
    task = load(name)
    own = task_file.fingerprint(name) if task_file.is_file(name) else None
    names = [option.name.replace("-", "_") for option in task.options]
    strange = [setting for setting in settings if setting not in names]
    if strange:
        raise ConfigError(f"{task.name} has no option {strange[0]!r}; its own options: {choices(names)}")
    # An option that is left out has its default, whoever calls.
    known = {option.name.replace("-", "_"): option.default for option in task.options}
    given = {**known, **{key: value for key, value in settings.items() if value is not None}}
    return task, own, {key: value for key, value in given.items() if value is not None}


def folder_of(task: Task, data: str | Path | None) -> tuple[Path, bool]:
    """The data folder, and whether it was fetched.

    Raises:
        ConfigError: none is given, and the task has none to fetch.
    """
    if data is not None:
        return Path(data), False
    if task.fetch is None:
        raise ConfigError(f"--data is missing: the data folder of {task.name}")
    return task.fetch(), True


def limited(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """A fixed random choice, in which that of any smaller limit is contained.

    The first N would all be of one kind, every k-th could all have one truth.
    """
    if limit is None or limit >= len(items):
        return items
    chosen = sorted(random.Random(SEED).sample(range(len(items)), len(items))[:limit])
    return [items[index] for index in chosen]


def questions_sha256(items: Iterable[Item]) -> str:
    """One hash over everything the model is told: ids, prompts, image names, turns, choices, kinds."""
    digest = hashlib.sha256()
    for item in items:
        asked = [item.id, item.prompt, item.images, item.turns, item.choices, item.kind]
        digest.update(json.dumps(asked, ensure_ascii=False, default=_plain).encode(errors="replace") + b"\n")
    return digest.hexdigest()


def images_sha256(files: Mapping[str, str]) -> str:
    """One hash over names and contents of images, given as name to digest."""
    digest = hashlib.sha256()
    for name, found in sorted(files.items()):
        digest.update(f"{name}\0{found}\n".encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def read_record(folder: Path) -> dict[str, Any]:
    """``run.json`` of an evaluation folder.

    Raises:
        MissingError: it has none.
        DataError: it is not one of this version.
    """
    record = store.read_json(folder / store.SETUP)
    if record.get("format") != FORMAT:
        raise DataError(
            f"{folder / store.SETUP} is of format {record.get('format', 1)}, expected {FORMAT}: it was made by another "
            "version of vlmeval; start again with --overwrite"
        )
    return record


def of_record(record: Mapping[str, Any], folder: Path, file: str | Path | None) -> tuple[Task, dict[str, str] | None]:
    """The task that a record names, and the file it comes from now.

    Args:
        record: of :func:`read_record`.
        folder: whose it is, for messages.
        file: the user's task file to be used instead of the recorded one.

    Raises:
        MissingError: the task's file is gone, or there is no such task.
        DataError: it holds no task, or another.
    """
    try:
        task = recorded(record, file)
    except MissingError as error:
        raise MissingError(f"{folder}: {error}") from None
    own = record.get("task_file")
    place = file or (own or {}).get("path")
    return task, task_file.fingerprint(place) if place is not None else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], shown: Container[str]) -> list[str]:
    """What two records differ in that can change an answer, in words; what both know must agree.

    An adapter is known by its weights, data and images by their bytes, wherever they lie. Options that only change how
    answers are scored are no difference.

    Args:
        before: the record of the answers that are there.
        now: that of those to come.
        shown: names of the images of items that are answered; others may have been mended since.
    """
    found = []
    if before["task"] != now["task"]:
        found.append(f"task was {before['task']}, is {now['task']}")
    for part in ("answers", "files"):
        old, new = (record["answers"] if part == "answers" else record["data"]["files"] for record in (before, now))
        for key in sorted((old.keys() & new.keys()) - {"adapter"}):
            if old[key] != new[key]:
                found.append(f"{key} was {_short(old[key])}, is {_short(new[key])}")
    if before["questions_sha256"] != now["questions_sha256"]:
        counts = f"{before['items']} items" + (f", now {now['items']}" if now["items"] != before["items"] else "")
        found += _settings(before["settings"], now["settings"]) or [f"the questions ({counts}) are not the same"]
    old, new = before["images"].get("files", {}), now["images"].get("files", {})
    changed = [name for name in old if name in new and name in shown and old[name] != new[name]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        found.append(f"image {changed[0]}{more} has other bytes")
    return found


def resumed(before: Mapping[str, Any], now: Mapping[str, Any], *, asked: bool = True) -> dict[str, Any]:
    """The record of a run that goes on: as it is now, with what the earlier one asked and how long that took.

    Args:
        before: of the earlier run; empty where there was none.
        now: of this one.
        asked: whether anything is still asked; if not, only how it is scored can be new.
    """
    if not before:
        return dict(now)
    if not asked:
        kept = {key: value for key, value in before.items() if key != "task_file"}
        return kept | {key: now[key] for key in ("data", "settings", "task_file") if key in now}
    files = {**before["images"].get("files", {}), **now["images"].get("files", {})}
    images = {**now["images"], **({"sha256": images_sha256(files), "files": files} if files else {})}
    timed = {"timed": before["timed"]} if "timed" in before else {}
    return {**now, "command": before["command"] or now["command"], "images": images, **timed}


def _settings(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"--{key.replace('_', '-')} was {before.get(key, 'left out')}, is {now.get(key, 'left out')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else repr(value)
