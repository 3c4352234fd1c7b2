"""Raw source -> records -> shards: plan first, units of work through an engine, manifest last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack, cast

from vlmdata.engine import load_engine
from vlmdata.errors import ConfigError, choices
from vlmdata.finish import finish
from vlmdata.lock import locked
from vlmdata.manifest import Manifest
from vlmdata.output import check_out, prepare, writable
from vlmdata.places import absolute, place
from vlmdata.plan import Task
from vlmdata.progress import Progress
from vlmdata.request import RawOptions, Request, parse_budget, plan_again, plan_request, policy_of
from vlmdata.work import Job, Outcome, check_budget

__all__ = ["Conversion", "ConvertOptions", "Part", "RunOptions", "convert", "convert_rank", "convert_rejects"]


class RunOptions(TypedDict, total=False):
    """How a conversion is run; none of it changes what is written.

    Keys:
        workers: processes, or threads where there is one shard only. More than one needs a caller whose main module
            can be imported (``if __name__ == "__main__":``).
        engine: see ``vlmdata.engine.engine_names``; ``process`` where there are several workers and shards.
        ray_address: of a running Ray cluster, for the engine ``ray``; one is started on this machine unless given.
        max_rejects: more rejected rows than this number, or share like ``2%``, end the conversion; with 0 the first
            does.
        overwrite: replace a dataset in ``out``.
        resume: go on with an interrupted conversion of the same input and options.
        progress: show progress on stderr.
    """

    workers: int
    engine: str | None
    ray_address: str | None
    max_rejects: int | str | None
    overwrite: bool
    resume: bool
    progress: bool


class ConvertOptions(RawOptions, RunOptions, total=False):
    """All options of a conversion."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A finished conversion.

    Attributes:
        out: the folder of the dataset.
        manifest: what it is.
        reused: shards that an earlier, interrupted run had finished.
    """

    out: Path
    manifest: Manifest
    reused: int = 0

    @property
    def read(self) -> int:
        """Raw rows read; kept + rejected."""
        return self.manifest.rows.read

    @property
    def kept(self) -> int:
        """Raw rows that became records."""
        return self.manifest.rows.kept

    @property
    def rejected(self) -> dict[str, int]:
        """Raw rows rejected, by reason."""
        return self.manifest.rejected


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank of a conversion has done; ``vlmdata.finish.finalize`` makes a dataset of all parts.

    Attributes:
        out: the folder of the dataset.
        shards: how many shards were this rank's.
        of: how many there are in all.
        read: raw rows this rank read.
    """

    out: Path
    shards: int
    of: int
    read: int


def convert(
    source: str,
    raw: str | Path | Sequence[str | Path] = (),
    out: str | Path = "shards",
    **options: Unpack[ConvertOptions],
) -> Conversion:
    """Convert raw data into a dataset folder of shards.

    Args:
        source: name of a source, see ``vlmdata.source.names``, or a Python file with one.
        raw: local files or folders, or one hub dataset as ``owner/name``; none is the source's own hub dataset.
        out: folder to write.
        options: see ``RawOptions`` in ``vlmdata.request`` and ``RunOptions``.

    Raises:
        VlmError: an option, the input or the output folder is not as it must be; or not one row could be kept.
    """
    paths, folder, run, asked = _arguments(raw, out, options)
    return _convert(plan_request(source, paths, **asked), folder, run)


def convert_rejects(old: str | Path, out: str | Path, **options: Unpack[ConvertOptions]) -> Conversion:
    """Convert the rejected rows of an earlier conversion once more, after the cause was mended.

    Args:
        old: folder of that conversion.
        out: folder to write; records have the ids they would have had there.
        options: as of ``convert``; those that decide what is written are the earlier ones unless given.

    Raises:
        VlmError: as ``convert``; or nothing was rejected.
    """
    _, folder, run, asked = _arguments((old,), out, options)
    return _convert(plan_again(place(old), **asked), folder, run)


def convert_rank(
    source: str,
    raw: str | Path | Sequence[str | Path],
    out: str | Path,
    rank: int,
    world: int,
    **options: Unpack[ConvertOptions],
) -> Part:
    """Make every ``world``-th shard of a conversion, for arrays of jobs that share a folder.

    Shards that are there already are kept, so a rank that died is started again with the same call.

    Args:
        source: as of ``convert``.
        raw: as of ``convert``.
        out: the folder all ranks write to.
        rank: 0 to ``world`` - 1.
        world: how many ranks there are.
        options: as of ``convert``; the same for all ranks.

    Raises:
        VlmError: as ``convert``; or there is no such rank.
    """
    if world < 1:
        raise ConfigError(f"world is {world}, expected at least 1 rank")
    if not 0 <= rank < world:
        raise ConfigError(f"rank is {rank} of {world}, expected 0 to {world - 1}")
    if options.get("overwrite"):
        raise ConfigError("ranks share one folder, so none may replace it; leave out --overwrite, or remove the folder")
    options["resume"] = True
    paths, folder, run, asked = _arguments(raw, out, options)
    request = plan_request(source, paths, **asked)
    tasks = request.plan.tasks[rank::world]
    with writable(folder), locked(folder, shared=True):
        if not prepare(folder, request.plan, overwrite=False, resume=True):
            return Part(folder, 0, len(request.plan.tasks), 0)
        outcomes, _ = _run(request, folder, tasks, run)
    return Part(folder, len(tasks), len(request.plan.tasks), sum(outcome.read for outcome in outcomes))


def _arguments(
    raw: str | Path | Sequence[str | Path], out: str | Path, options: ConvertOptions
) -> tuple[list[str], Path, RunOptions, RawOptions]:
    """Paths made plain, options parted, and the output folder checked before anything is read."""
    paths = [os.fspath(path) for path in ([raw] if isinstance(raw, str | os.PathLike) else raw)]
    folder = absolute(out)
    unknown = options.keys() - ConvertOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"convert has no option {min(unknown)!r}; it has {choices(ConvertOptions.__annotations__)}")
    how = RunOptions.__annotations__.keys()
    run = cast(RunOptions, {name: value for name, value in options.items() if name in how})
    asked = cast(RawOptions, {name: value for name, value in options.items() if name not in how})
    parse_budget(run.get("max_rejects"), 0)
    if run.get("engine"):
        load_engine(str(run["engine"]))
    if run.get("workers", 1) < 1:
        raise ConfigError(f"workers is {run['workers']}, expected at least 1")
    if run.get("resume") and run.get("overwrite"):
        raise ConfigError("--resume goes on with what is there and --overwrite replaces it; give one of them")
    check_out(folder, paths, overwrite=run.get("overwrite", False), resume=run.get("resume", False))
    return paths, folder, run, asked


def _convert(request: Request, folder: Path, run: RunOptions) -> Conversion:
    plan = request.plan
    with writable(folder), locked(folder):
        if not prepare(folder, plan, overwrite=run.get("overwrite", False), resume=run.get("resume", False)):
            return Conversion(folder, Manifest.read(folder), len(plan.tasks))
        outcomes, reused = _run(request, folder, plan.tasks, run)
        return Conversion(folder, finish(folder, plan, outcomes), reused)


def _run(request: Request, out: Path, tasks: Sequence[Task], run: RunOptions) -> tuple[list[Outcome], int]:
    """Outcomes of the tasks, in order; those of an earlier run are taken over."""
    plan = request.plan
    budget = parse_budget(run.get("max_rejects"), sum(task.rows for task in plan.tasks))
    done = {task.index: found for task in tasks if (found := Outcome.finished(task, out)) is not None}
    waiting = [task for task in tasks if task.index not in done]
    reused, workers = len(done), run.get("workers", 1)
    # A process of its own pays from two shards on; fewer are made by threads in this one.
    processes = min(workers, len(waiting) if run.get("engine") else len(waiting) // 2) or 1
    job = Job(
        plan.source,
        plan.kind,
        request.inputs,
        out,
        plan.reading,
        policy_of(plan.options),
        dataset=plan.dataset,
        revision=plan.options["revision"],
        licence=plan.options["licence"],
        max_rejects=budget,
        threads=max(1, workers // processes),
    )
    engine = load_engine(run.get("engine") or ("process" if processes > 1 else "serial"))
    rejected = sum(sum(outcome.rejected.values()) for outcome in done.values())
    with Progress("convert", sum(task.rows for task in tasks), shown=run.get("progress", False)) as bar:
        bar.advance(sum(outcome.read for outcome in done.values()))
        with closing(engine(job, waiting, processes, bar.advance, run.get("ray_address"))) as outcomes:
            for task, outcome in zip(waiting, outcomes, strict=True):
                done[task.index] = outcome
                rejected += sum(outcome.rejected.values())
                check_budget({"all together": rejected}, budget)
    return [done[task.index] for task in tasks], reused
