"""A task and where its answers come from -> an evaluation folder: responses, scores, reports."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata import __version__
from vlmdata.errors import ConfigError, DataError, MissingError, choices
from vlmeval import measure, store
from vlmeval.models.replay import Replay
from vlmeval.progress import track
from vlmeval.responses import Coverage, gate
from vlmeval.shardset import ShardImages, is_shards, reader
from vlmeval.task import Benchmark, Item, Response, Task, load

if TYPE_CHECKING:
    from vlmeval.models.local import Local

__all__ = ["evaluate"]


def evaluate(
    task: str = "amber",
    *,
    data: str | Path,
    out: str | Path | None = None,
    responses: str | Path | None = None,
    model: str | None = None,
    adapter: str | Path | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    max_answer_tokens: int = 16,
    prompt_suffix: str = "",
    dtype: str = "auto",
    quantize: str = "none",
    device: str | None = None,
    max_image_tokens: int | None = None,
    trust_remote_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: str | None,
) -> dict[str, Any]:
    """Ask a model, or take a file of answers, score them and write the reports.

    Everything that can be checked is checked before the model is loaded.

    Args:
        task: one of ``vlmeval.task.names()``.
        data: the task's data folder.
        out: evaluation folder to be written; may be left out with ``responses``.
        responses: a file of answers to be scored as they are; no model is asked.
        model: base model: a name, a folder or a hub id; may be left out when the adapter names it.
        adapter: a run folder or any PEFT adapter folder.
        images: image folder; ``images`` in the data folder when left out.
        limit: ask only that many items, drawn evenly at random with a fixed seed; the result is partial.
        batch_size: prompts per call of the model.
        max_new_tokens: longest text, in tokens.
        max_answer_tokens: longest short answer (yes, no), in tokens.
        prompt_suffix: added to every prompt after a line break.
        dtype: auto, float32, bfloat16 or float16.
        quantize: none, 8bit or 4bit.
        device: None takes the accelerator where there is one.
        max_image_tokens: most tokens one image may take.
        trust_remote_code: run code that comes with a hub model.
        resume: go on with an interrupted evaluation in ``out``; nothing is asked twice.
        overwrite: replace an evaluation in ``out``.
        quiet: no progress on stderr.
        **settings: the task's own options (amber: ``part``, ``read_answers``, ``nouns``, ``synonyms``).

    Returns:
        The content of ``report.json``.

    Raises:
        VlmError: anything a user can put right, said in one line.
    """
    found = load(task)
    _check(found, settings, responses, model or adapter, out, resume, limit)
    if out is not None:
        store.claim(Path(out), resume=resume, overwrite=overwrite)
    if responses is not None:
        replay = Replay(Path(responses))
        benchmark = found.open(Path(data), settings, frozenset(answer.id for answer in replay.responses))
        folder = _images(found, Path(data), images, ()) if images is not None else None
        source = {**replay.describe(), "images": str(folder) if folder else None}
        return _finish(found, benchmark, replay.responses, source, Path(out) if out is not None else None)
    assert out is not None
    benchmark = found.open(Path(data), settings, None)
    items = _limited(benchmark.items, limit)
    folder = _images(found, Path(data), images, items)
    from vlmeval.models.local import Local

    local = Local(
        model,
        adapter,
        images=folder,
        batch_size=batch_size,
        max_new_tokens={"answer": max_answer_tokens, "text": max_new_tokens},
        prompt_suffix=prompt_suffix,
        dtype=dtype,
        quantize=quantize,
        device=device,
        max_image_tokens=max_image_tokens,
        trust_remote_code=trust_remote_code,
    )
    if overwrite:
        local.load()
        store.start(Path(out), fresh=True)
    answers, record = _ask(task, benchmark, items, local, Path(out), folder, quiet)
    return _finish(found, benchmark, answers, _source(record), Path(out), record.get("timed"))


def _check(
    task: Task,
    settings: Mapping[str, str | None],
    responses: str | Path | None,
    model: str | Path | None,
    out: str | Path | None,
    resume: bool,
    limit: int | None,
) -> None:
    own = [option.name.replace("-", "_") for option in task.options]
    strange = [setting for setting in settings if setting not in own]
    if strange:
        raise ConfigError(f"{task.name} has no option {strange[0]!r}; its own options: {choices(own)}")
    if (responses is None) == (model is None):
        both = "both a responses file and a model are" if model else "neither a responses file nor a model is"
        raise ConfigError(f"{both} given: --responses FILE scores a file, --model or --adapter asks a model")
    if responses is not None and resume:
        raise ConfigError("--resume goes on asking a model; a responses file is scored anew with --overwrite")
    if responses is not None and limit is not None:
        raise ConfigError("--limit is for asking a model; all answers of a responses file are scored")
    if model is not None and out is None:
        raise ConfigError("--out is missing: the folder that the model's answers are written to")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is at least 1, got {limit}")


def _limited(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """A fixed random choice: the first N would all be of one kind, every k-th could all have one truth."""
    if limit is None or limit >= len(items):
        return items
    chosen = sorted(random.Random(0).sample(range(len(items)), limit))
    return [items[index] for index in chosen]


def _images(task: Task, data: Path, images: str | Path | None, items: Sequence[Item]) -> Path | None:
    """The image folder or converted dataset, with every image that will be shown in it."""
    if not task.images:
        return None
    places = [Path(images)] if images is not None else [data / "images", data / "data" / "images", data / "image"]
    if images is None and is_shards(data):
        places = [data]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        hint = "" if images is not None else "; give --images FOLDER"
        raise MissingError(f"no image folder {places[0]}{hint}")
    blank = [item.id for item in items if not item.images]
    if blank:
        raise DataError(
            f"the data name no image and question for {len(blank)} items (id {blank[0]} ...): query/ is missing or "
            "incomplete, and a model cannot be asked"
        )
    names = list(dict.fromkeys(name for item in items for name in item.images))
    read = reader(folder)
    missing = [
        name for name in names if not (name in read if isinstance(read, ShardImages) else (folder / name).is_file())
    ]
    if missing:
        raise MissingError(f"{len(missing)} of {len(names)} images are not in {folder}: {_few(missing)}")
    _probe(folder, names, read)
    return folder


def _probe(folder: Path, names: Sequence[str], read: Callable[[str], bytes]) -> None:
    """Open every image's header, so that a run does not die of a broken file hours later."""
    from PIL import Image

    broken = []
    for name in names:
        try:
            with Image.open(io.BytesIO(read(name))):
                pass
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            broken.append(name)
    if broken:
        raise DataError(f"{len(broken)} of {len(names)} images in {folder} are no readable images: {_few(broken)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _ask(
    task: str, benchmark: Benchmark, items: Sequence[Item], local: Local, out: Path, images: Path | None, quiet: bool
) -> tuple[list[Response], dict[str, Any]]:
    """Ask what is not answered yet; every batch is on disk before the next is asked.

    Returns:
        All answers; and the record of the run: set-up, environment, and how long the answers took where that is known.
    """
    setup: dict[str, Any] = {"task": task, "answers": local.describe(), "data": dict(benchmark.data)}
    path = out / store.SETUP
    before = store.read_json(path) if path.is_file() else {}
    if before:
        _same(before["setup"], setup, out)
    elif (out / store.RESPONSES).is_file():
        raise DataError(f"{out} has {store.RESPONSES} but no {store.SETUP}: start again with --overwrite")
    answers, _ = store.answered(out / store.RESPONSES)
    asked = {response.id for response in answers}
    todo = [item for item in items if item.id not in asked]
    if not todo:
        return answers, before
    local.load()
    setup["answers"] = local.describe()
    if before:
        _same(before["setup"], setup, out)
    record = {"setup": setup, "environment": local.environment(), "images": str(images) if images else None}
    store.start(out, fresh=False)
    store.write_json(path, record)
    began = time.monotonic()
    with (
        store.Log(out / store.RESPONSES) as log,
        track(f"{task}: asking {local.name}", len(items), len(items) - len(todo), quiet=quiet) as advance,
    ):
        for batch in local.answer(todo):
            log.append(batch)
            advance(len(batch))
        timed = {"answers": len(todo), "seconds": round(time.monotonic() - began, 3)}
        record["timed"] = {name: value + before.get("timed", {}).get(name, 0) for name, value in timed.items()}
        store.write_json(path, record)
        return log.done, record


def _source(record: Mapping[str, Any]) -> dict[str, Any]:
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


def _finish(
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
    scores = [benchmark.score(item, text) for item, text in joined]
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
            store.write_rows(out / store.RESPONSES, ({"id": a.id, "response": a.text} for a in answers))
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
