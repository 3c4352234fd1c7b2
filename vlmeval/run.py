"""A task and where its answers come from -> an evaluation folder: responses, scores, reports."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, choices
from vlmeval import asking, store
from vlmeval.models.replay import Replay
from vlmeval.preflight import image_folder
from vlmeval.scoring import finish
from vlmeval.task import Item, Task, load

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
        folder = image_folder(found, Path(data), images, ()) if images is not None else None
        source = {**replay.describe(), "images": str(folder) if folder else None}
        return finish(found, benchmark, replay.responses, source, Path(out) if out is not None else None)
    assert out is not None
    benchmark = found.open(Path(data), settings, None)
    items = _limited(benchmark.items, limit)
    folder = image_folder(found, Path(data), images, items)
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
    answers, record = asking.ask(task, benchmark, items, local, Path(out), folder, quiet)
    return finish(found, benchmark, answers, asking.source(record), Path(out), record.get("timed"))


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
