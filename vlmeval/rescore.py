"""Scoring an evaluation folder again: from its record and its answers, without a model, as often as one likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, MissingError, choices
from vlmdata.lock import locked
from vlmeval import asking, job, log, store
from vlmeval.scoring import finish
from vlmeval.task import Benchmark, Task

__all__ = ["folders", "score", "task_of"]


def folders(runs: Sequence[Path]) -> list[Path]:
    """Evaluation folders; a folder that holds some, as of several adapters, stands for those in it.

    Raises:
        MissingError: there is none.
    """
    found = []
    for run in runs:
        if (run / store.SETUP).is_file() or not run.is_dir():
            found.append(run)
            continue
        inside = sorted(path.parent for path in run.glob(f"*/{store.SETUP}"))
        if not inside:
            raise MissingError(f"{run} is no evaluation folder: it has no {store.SETUP}, and no folder in it has")
        found += inside
    return list(dict.fromkeys(found))


def task_of(run: str | Path, file: str | Path | None = None) -> Task:
    """The task that an evaluation folder holds answers to; see :func:`vlmeval.job.of_record`."""
    return job.of_record(job.read_record(Path(run)), Path(run), file)[0]


def score(
    run: str | Path,
    *,
    data: str | Path | None = None,
    task: str | Path | None = None,
    images: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score an evaluation folder again and write its reports anew.

    An interrupted run is scored as far as it got: PARTIAL. Answers are never changed.

    Args:
        run: folder written by :func:`vlmeval.run.evaluate`.
        data: the data, where they are not what the record says, on purpose: then they may have changed.
        task: the file of a user's own task, where it is not where the record says.
        images: image folder for the reports, where it has moved.
        settings: the task's own options that are to be others than recorded; an empty text takes one back.

    Returns:
        The content of ``report.json``.

    Raises:
        MissingError: no such folder, no answers in it, or the data are gone.
        DataError: the data changed since the answers were given.
        ConfigError: the task has no such option.
        OutputExistsError: a run is writing to the folder.
    """
    folder = Path(run)
    record = job.read_record(folder)
    found, own = job.of_record(record, folder, task)
    answers = log.read(folder)
    replayed = record["answers"]["kind"] == "responses"
    if not answers.responses and not answers.failures:
        raise MissingError(f"{folder} holds no answers yet: go on with the run by --resume")
    chosen = _settings(found, record["settings"], settings or {})
    place, fetched = _data(found, record, folder, data)
    given = _as_given(folder) if replayed else [*answers.responses.values(), *answers.failures.values()]
    benchmark = found.open(place, chosen, frozenset(answer.id for answer in given) if replayed else None)
    notes = _changed(record, benchmark, folder, own, on_purpose=data is not None)
    now = {
        **record,
        "data": {"path": str(place), "fetched": fetched, "files": dict(benchmark.data)},
        "settings": chosen,
        "images": {**record["images"], **({"path": str(images)} if images is not None else {})},
    }
    if own is not None:
        now["task_file"] = own
    # The record stays as it was made: it says what was asked, and whether a run may go on.
    with store.writing(folder), locked(folder):
        return finish(found, benchmark, given, asking.source(now), folder, now, notes)


def _as_given(folder: Path) -> list[Any]:
    """The answers of a responses file, those included that stand there twice."""
    from vlmeval.responses import read

    return read(folder / store.RESPONSES)


def _settings(task: Task, recorded: Mapping[str, str], changed: Mapping[str, str]) -> dict[str, str]:
    options = {option.name.replace("-", "_"): option for option in task.options}
    chosen = dict(recorded)
    for name, value in changed.items():
        key = name.replace("-", "_")
        if key not in options:
            raise ConfigError(f"--set {name}: {task.name} has no such option; its own options: {choices(options)}")
        if options[key].choices and value and value not in options[key].choices:
            raise ConfigError(f"--set {name.replace('_', '-')}={value}: valid: {choices(options[key].choices)}")
        chosen[key] = value
    return {key: value for key, value in chosen.items() if value}


def _data(task: Task, record: Mapping[str, Any], folder: Path, data: str | Path | None) -> tuple[Path, bool]:
    """The data folder, and whether it was fetched."""
    if data is not None:
        return Path(data), False
    place = Path(record["data"]["path"])
    if place.exists():
        return place, bool(record["data"]["fetched"])
    if record["data"]["fetched"] and task.fetch is not None:
        return task.fetch(), True
    raise MissingError(f"the data that {folder} was answered on are not at {place} any more: give --data FOLDER")


def _changed(
    record: Mapping[str, Any], benchmark: Benchmark, folder: Path, own: Mapping[str, str] | None, *, on_purpose: bool
) -> list[str]:
    """Notes on what is not as it was when the answers were given.

    Raises:
        DataError: the data are not, and were not given on purpose.
    """
    before = record["data"]["files"]
    files = [name for name in before if name in benchmark.data and benchmark.data[name] != before[name]]
    if files and not on_purpose:
        raise DataError(
            f"{files[0]} in {record['data']['path']} has changed since {folder} was answered: put it back, or give "
            "--data FOLDER to score with the data as they are"
        )
    notes = []
    if files:
        notes.append(f"Scored with data that changed since the answers were given: {', '.join(files)}.")
    if own and "task_file" in record and own["sha256"] != record["task_file"]["sha256"]:
        notes.append(f"The task's file, {own['path']}, changed since the answers were given.")
    return notes
