"""A task and where its answers come from -> an evaluation folder: responses, scores, reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, choices
from vlmeval import asking, job, log, preflight, ranks, store
from vlmeval.job import Job
from vlmeval.model import Model
from vlmeval.models.replay import Replay
from vlmeval.opening import KEYS, Who
from vlmeval.preflight import Pictures
from vlmeval.scoring import finish

__all__ = ["Request", "evaluate"]


def evaluate(
    task: str = "amber",
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    responses: str | Path | None = None,
    model: str | None = None,
    adapter: str | Path | None = None,
    endpoint: str | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    max_answer_tokens: int = 16,
    prompt_suffix: str = "",
    answers: str = "generate",
    merged: bool = False,
    dtype: str = "auto",
    quantize: str = "none",
    device: str | None = None,
    max_image_tokens: int | None = None,
    trust_remote_code: bool = False,
    sets: Mapping[str, Any] | None = None,
    on_missing: str = "fail",
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    command: str | None = None,
    **settings: str | None,
) -> dict[str, Any]:
    """Ask a model, or take a file of answers, score them and write the reports.

    Everything that can be checked is checked before the model is loaded.

    Args:
        task: one of ``vlmeval.task.names()``, or the path of a Python file that defines one.
        data: the task's data folder; left out, the task's official data are fetched, where it has such.
        out: evaluation folder to be written; may be left out with ``responses``.
        responses: a file of answers to be scored as they are; no model is asked.
        model: base model: a name, a folder or a hub id; may be left out when the adapter names it. With ``endpoint``,
            the server's name of the model; may be left out where it serves one.
        adapter: a run folder or any PEFT adapter folder.
        endpoint: address of an OpenAI-compatible server that is asked instead of a model loaded here.
        images: image folder; ``images`` in the data folder when left out.
        limit: ask only that many items, drawn evenly at random with a fixed seed; the result is partial.
        batch_size: prompts per call of the model.
        max_new_tokens: longest text, in tokens.
        max_answer_tokens: longest short answer (yes, no), in tokens.
        prompt_suffix: added to every prompt after a line break.
        answers: how items with ``choices`` are answered: ``generate`` in words, ``logits`` by the probabilities of the
            choices' first tokens, ``both`` in words and with those probabilities beside.
        merged: merge the adapter into the base before asking.
        dtype: auto, float32, bfloat16 or float16.
        quantize: none, 8bit or 4bit.
        device: None takes the accelerator where there is one.
        max_image_tokens: most tokens one image may take.
        trust_remote_code: run code that comes with a hub model.
        sets: rarer options, ``vlmeval.opening.KEYS``.
        on_missing: ``fail`` refuses to begin where an image is missing or cannot be read; ``skip`` does not ask the
            items that show it, and counts them as failed.
        resume: go on with an interrupted evaluation in ``out``; nothing is asked twice.
        overwrite: replace an evaluation in ``out``.
        quiet: no progress on stderr.
        command: how this was called, for the record.
        **settings: the task's own options (amber: ``part``, ``read_answers``, ``nouns``, ``synonyms``).

    Returns:
        The content of ``report.json``.

    Raises:
        VlmError: anything a user can put right, said in one line.
    """
    who = Who(
        model, adapter, endpoint, batch_size, max_new_tokens, max_answer_tokens, prompt_suffix, answers, merged, dtype,
        quantize, device, max_image_tokens, trust_remote_code, sets or {},
    )  # fmt: skip
    place = Path(out) if out is not None else None
    asked = Request(task, data, images, limit, on_missing, settings, who, resume, overwrite, quiet, command)
    with ranks.together():
        if responses is not None:
            return ranks.first(lambda: _replayed(asked, Path(responses), place))
        opened = asked.open(place)
        assert place is not None
        ranks.first(lambda: store.claim(place, resume=resume, overwrite=overwrite))
        prepared = asked.prepare(opened, [place])
        return asked.ask(prepared, who.open(prepared.pictures.folder), place)


@dataclass(frozen=True, slots=True)
class Request:
    """What :func:`evaluate` was given, but for where answers are written; see there."""

    task: str
    data: str | Path | None
    images: str | Path | None
    limit: int | None
    on_missing: str
    settings: Mapping[str, str | None]
    who: Who
    resume: bool
    overwrite: bool
    quiet: bool
    command: str | None

    def open(self, out: str | Path | None) -> Job:
        """The task and its data, without the pictures; everything that can be refused at once is.

        Args:
            out: the folder to be written.

        Raises:
            VlmError: it is.
        """
        who = self.who
        found, own, given = job.open_task(self.task, self.settings)
        if who.endpoint is None and who.model is None and who.adapter is None:
            raise ConfigError(
                "neither a responses file nor a model is given: --responses FILE scores a file, --model or --adapter "
                "asks a model, --endpoint a server"
            )
        if out is None:
            raise ConfigError("--out is missing: the folder that the model's answers are written to")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is at least 1, got {self.limit}")
        if self.on_missing not in preflight.ON_MISSING:
            raise ConfigError(f"--on-missing is {self.on_missing!r}; valid: {choices(preflight.ON_MISSING)}")
        if who.answers != "generate" and not found.choices:
            raise ConfigError(f"--answers {who.answers}: the items of {found.name} have no choices to read off")
        who.check()
        folder, fetched = ranks.first(lambda: job.folder_of(found, self.data))
        benchmark = found.open(folder, given, None)
        items = job.limited(benchmark.items, self.limit)
        return Job(found, own, folder, fetched, given, benchmark, items, Pictures(None), self.limit, self.command)

    def prepare(self, opened: Job, outs: Sequence[Path]) -> Job:
        """The same with its pictures looked at, and room made sure of.

        Raises:
            VlmError: images are missing, or there is no room.
        """

        def look() -> Pictures:
            skip = self.on_missing == "skip"
            place = opened.benchmark.folder or opened.data
            found = preflight.pictures(opened.task, place, self.images, opened.items, skip=skip)
            for out in outs:
                preflight.room(out, opened.items, len(found.files) * len(outs), self.who.max_new_tokens)
            return found

        return replace(opened, pictures=ranks.first(look))

    def ask(self, prepared: Job, model: Model, out: Path) -> dict[str, Any]:
        """Ask the model, score the answers, write the reports; the content of ``report.json``.

        Raises:
            VlmError: the model cannot be had or answers no more, or the folder cannot be written.
        """
        answers, record = asking.ask(prepared, model, out, fresh=self.overwrite, quiet=self.quiet)
        source = asking.source(record)
        return ranks.first(lambda: finish(prepared.task, prepared.benchmark, answers, source, out, record))


def _replayed(asked: Request, responses: Path, out: Path | None) -> dict[str, Any]:
    """Score a file of answers."""
    who = asked.who
    if who.model or who.adapter or who.endpoint:
        raise ConfigError(
            "both a responses file and a model are given: --responses FILE scores a file, --model or --adapter asks a "
            "model"
        )
    if asked.resume:
        raise ConfigError("--resume goes on asking a model; a responses file is scored anew with --overwrite")
    if asked.limit is not None:
        raise ConfigError("--limit is for asking a model; all answers of a responses file are scored")
    idle = [*who.given(), *(["on_missing"] if asked.on_missing != "fail" else [])]
    if idle:
        flag = f"--{idle[0].replace('_', '-')}"
        if idle[0] == "sets":
            key = KEYS.get(next(iter(who.sets)))
            flag = key.flag if key and key.flag else "--set"
        raise ConfigError(f"{flag} is for asking a model and has no effect with --responses: leave it out")
    task, own, given = job.open_task(asked.task, asked.settings)
    if out is not None:
        store.claim(out, resume=False, overwrite=asked.overwrite)
    replay = Replay(responses)
    folder, fetched = job.folder_of(task, asked.data)
    benchmark = task.open(folder, given, frozenset(answer.id for answer in replay.responses))
    # Converted data bring their images; others are shown where a folder is given.
    shown = preflight.image_folder(task, folder, asked.images) if asked.images is not None else benchmark.folder
    opened = Job(task, own, folder, fetched, given, benchmark, (), Pictures(shown), None, asked.command)
    record = opened.record(replay.describe(), {})
    if out is not None:
        preflight.room(out, benchmark.items, 0, 0)

    def begin() -> None:
        assert out is not None
        store.start(out, fresh=True)
        store.write_rows(out / store.RESPONSES, map(log.row, replay.responses))
        store.write_json(out / store.SETUP, record)

    return finish(task, benchmark, replay.responses, asking.source(record), out, record, begin=begin)
