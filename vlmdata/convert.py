"""Raw source -> records -> shards: plan first, units of work through an engine, manifest last."""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import vlmdata
from vlmdata.atomic import write_lines
from vlmdata.errors import ConfigError, DataError, OutputExistsError, VlmError, choices
from vlmdata.images import ImagePolicy
from vlmdata.inputs import Found, find
from vlmdata.lock import locked
from vlmdata.manifest import MANIFEST, ImageCounts, InputFile, Manifest, RowCounts, add_counts
from vlmdata.plan import PLAN, Plan, fingerprint, make_tasks
from vlmdata.progress import Progress
from vlmdata.source import Options, Source, load
from vlmdata.work import WORK, Job, Outcome, Report

__all__ = ["Conversion", "DEFAULT_SHARD_SIZE", "REJECTS", "convert", "engine_names", "parse_size"]

REJECTS = "rejects.jsonl"
DEFAULT_SHARD_SIZE = "100MB"

_NOT_WRITABLE = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS}
_SHARD_NAME = re.compile(r"data-\d{5}-of-\d{5}\.parquet")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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


def convert(
    source: str,
    raw: str | Path | Sequence[str | Path] = (),
    out: str | Path = "shards",
    *,
    config: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    scale: float = 1.0,
    max_side: int | None = None,
    workers: int = 1,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    on_error: Literal["quarantine", "fail"] = "quarantine",
    image_root: str | Path | None = None,
    image_position: Literal["first", "last"] = "first",
    turns: Literal["keep", "split"] = "keep",
    prompt: str | None = None,
    revision: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
) -> Conversion:
    """Convert raw data into a dataset folder of shards.

    Args:
        source: name of a source, see ``vlmdata.source.names``.
        raw: local files or folders, or one hub dataset as ``owner/name``; none is the source's own hub dataset.
        out: folder to write.
        config: sub-dataset, for sources that have several.
        split: part of the raw data; ``train`` where files are named by split and none is asked for.
        limit: how many raw rows to read.
        shuffle_seed: choose the rows at random over all files and shuffle them (between shards, and within each).
        scale: factor for both sides of every image, in (0, 1].
        max_side: largest side of a stored image, in pixels.
        workers: processes; the result is the same whatever their number. More than one needs a caller whose main
            module can be imported (``if __name__ == "__main__":``).
        shard_size: input bytes for one shard, as a number or like "100MB".
        on_error: ``quarantine`` puts a bad row into ``rejects.jsonl``, ``fail`` ends the conversion.
        image_root: folder that image paths start from; the folder of the JSON file unless given.
        image_position: images before or after the text of their turn, where the raw row does not say it itself.
        turns: ``split`` makes a record of each question/answer pair of a row.
        prompt: user's text where the raw data has none; "" is none at all; None is the source's default.
        revision: branch, tag or commit on the hub.
        licence: of the data, where it is not what the source says.
        overwrite: replace a dataset in ``out``.
        resume: go on with an interrupted conversion of the same input and options.
        progress: show progress on stderr.

    Raises:
        VlmError: an option, the input or the output folder is not as it must be; or not one row could be kept.
    """
    kind = load(source)
    paths = [os.fspath(path) for path in ([raw] if isinstance(raw, str | os.PathLike) else raw)]
    folder = Path(os.path.abspath(out))
    policy = ImagePolicy(scale, max_side)
    shard_bytes = parse_size(shard_size)
    _check_options(source, kind, limit, workers, turns, prompt, resume and overwrite)
    _check_root(image_root)
    _check_out(folder, paths, overwrite=overwrite, resume=resume)
    root = None if image_root is None else os.fspath(image_root)
    found = find(source, kind, paths, config=config, split=split, revision=revision, image_root=root)
    names = _label_names(kind, found)
    options = Options(found.config, image_position, turns, prompt, names)
    recorded = {
        "limit": limit,
        "shuffle_seed": shuffle_seed,
        "scale": scale,
        "max_side": max_side,
        "shard_bytes": shard_bytes,
        "image_position": image_position,
        "turns": turns,
        "prompt": kind.prompt if prompt is None else prompt,
    }
    settings = {
        **recorded,
        "config": found.config,
        "split": split,
        "revision": found.revision,
        "licence": kind.licence if licence is None else licence,
        "image_root": root,
    }
    plan = Plan(
        source,
        settings,
        tuple(_input_file(found, index) for index in range(len(found.inputs))),
        make_tasks(found.contents, limit=limit, shuffle_seed=shuffle_seed, shard_bytes=shard_bytes),
    )
    if not any(task.rows for task in plan.tasks):
        raise DataError(f"there are no rows in {', '.join(file.path for file in found.inputs[:3])}")
    job = Job(
        source,
        found.inputs,
        folder,
        options,
        policy,
        dataset=found.repo or source,
        revision=found.revision,
        licence=settings["licence"],
        fail=on_error == "fail",
    )
    with _writable(folder), locked(folder):
        if not _prepare(folder, plan, overwrite=overwrite, resume=resume):
            return Conversion(folder, Manifest.read(folder), len(plan.tasks))
        outcomes, reused = _run(job, plan, workers, progress)
        return Conversion(folder, _finish(folder, kind, plan, outcomes, recorded, names), reused)


def parse_size(value: int | str) -> int:
    """Bytes of a size like 5000, "100MB" or "2GiB".

    Raises:
        ConfigError: it is no size, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) * _UNITS[match[2].upper()] < 1:
        raise ConfigError(f"shard size is {value!r}, expected a number with an optional unit: 500MB, 1GB, 64MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def engine_names() -> list[str]:
    """The ways to run tasks, found by file name."""
    import vlmdata.engines as package

    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Make the folder; say in one line what keeps us from writing to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}; give another --out") from None
    try:
        yield
    except OSError as error:
        if isinstance(error, VlmError) or error.errno not in _NOT_WRITABLE:
            raise
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; mend that, then --resume") from None


def _check_options(
    name: str, source: Source, limit: int | None, workers: int, turns: str, prompt: str | None, both: bool
) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, expected at least 1 row")
    if workers < 1:
        raise ConfigError(f"workers is {workers}, expected at least 1")
    if turns == "split" and not source.splits_turns:
        raise ConfigError(f"the rows of {name} are single conversations, --turns split makes no sense with it")
    if prompt is not None and source.prompt is None:
        raise ConfigError(f"the rows of {name} bring their own user text, --prompt makes no sense with it")
    if both:
        raise ConfigError("--resume goes on with what is there and --overwrite replaces it; give one of them")


def _check_root(image_root: str | Path | None) -> None:
    if image_root is not None and not Path(image_root).is_dir():
        raise ConfigError(f"image root {image_root} is not a folder; give the folder that image paths start from")


def _check_out(out: Path, raw: Sequence[str], *, overwrite: bool, resume: bool) -> None:
    """Refuse to touch what is not ours, or what is ours unasked."""
    if os.path.lexists(out) and not os.path.isdir(out):
        raise OutputExistsError(f"{out} is a file; --out is a folder")
    if any(os.path.realpath(path) == os.path.realpath(out) for path in raw):
        raise OutputExistsError(f"{out} is the raw data itself; give another --out")
    if not os.path.isdir(out) or not any(out.iterdir()):
        return
    if not (out / MANIFEST).exists() and not (out / PLAN).exists():
        raise OutputExistsError(f"{out} holds files that are no conversion; give a new or empty folder as --out")
    if not overwrite and not resume:
        if (out / MANIFEST).exists():
            raise OutputExistsError(f"{out} holds a converted dataset; --overwrite replaces it")
        raise OutputExistsError(f"{out} holds an unfinished conversion; --resume goes on, --overwrite starts again")


def _prepare(out: Path, plan: Plan, *, overwrite: bool, resume: bool) -> bool:
    """Make the folder ready; False when the dataset is already complete."""
    _check_out(out, (), overwrite=overwrite, resume=resume)
    if resume and (out / PLAN).exists():
        plan.check_same(out)
        if (out / MANIFEST).exists():
            return False
    elif any(out.iterdir()):
        _clear(out)
    (out / WORK).mkdir(exist_ok=True)
    plan.write(out)
    return True


def _clear(out: Path) -> None:
    """Remove an earlier dataset, its manifest first; files that a conversion does not write stay."""
    for name in (MANIFEST, PLAN, REJECTS):
        (out / name).unlink(missing_ok=True)
    for path in out.iterdir():
        if _SHARD_NAME.fullmatch(path.name.removesuffix(".tmp")):
            path.unlink()
    shutil.rmtree(out / WORK, ignore_errors=True)


def _label_names(source: Source, found: Found) -> tuple[str, ...]:
    """Class names: as the files tell them, else as the publisher fixes them; none where there are no labels."""
    if not source.label_names:
        return ()
    told = {held.label_names for held in found.contents if held.label_names}
    if len(told) > 1:
        raise DataError("the raw files have different class names; convert them one by one")
    return told.pop() if told else source.label_names


def _input_file(found: Found, index: int) -> InputFile:
    file, held = found.inputs[index], found.contents[index]
    size = file.bytes or sum(size for _, size in held.segments)
    return InputFile(file.name, size, held.rows, fingerprint(file))


def _run(job: Job, plan: Plan, workers: int, progress: bool) -> tuple[list[Outcome], int]:
    """Outcomes of all tasks, in order; those of an earlier run are taken over."""
    done = {task.index: found for task in plan.tasks if (found := Outcome.finished(task, job.out)) is not None}
    waiting = [task for task in plan.tasks if task.index not in done]
    reused = len(done)
    workers = min(workers, len(waiting))
    with Progress("convert", sum(task.rows for task in plan.tasks), shown=progress) as bar:
        bar.advance(sum(outcome.read for outcome in done.values()))
        engine = _engine("process" if workers > 1 else "serial")
        with closing(engine(job, waiting, workers, bar.advance)) as outcomes:
            for task, outcome in zip(waiting, outcomes, strict=True):
                done[task.index] = outcome
    return [done[task.index] for task in plan.tasks], reused


def _engine(name: str) -> Callable[[Job, Sequence[Any], int, Report], Any]:
    if name not in engine_names():
        raise ConfigError(f"no engine named {name!r}; valid: {choices(engine_names())}")
    run: Callable[[Job, Sequence[Any], int, Report], Any] = importlib.import_module(f"vlmdata.engines.{name}").run
    return run


def _finish(
    out: Path,
    source: Source,
    plan: Plan,
    outcomes: Sequence[Outcome],
    options: dict[str, Any],
    label_names: tuple[str, ...],
) -> Manifest:
    """Write the rejects, then the manifest."""
    write_lines(out / REJECTS, _rejects(outcomes))
    manifest = _manifest(source, plan, outcomes, options, label_names)
    if manifest.rows.kept == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in manifest.rejected.items())
        first = next(_rejects(outcomes))
        raise DataError(
            f"not one of {manifest.rows.read} rows could be kept ({reasons}); "
            f"the first, {first['id']}: {first['detail']}; all are in {out / REJECTS}"
            + ("; --image-root says where image paths start" if "image_not_found" in manifest.rejected else "")
        )
    manifest.write(out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return manifest


def _rejects(outcomes: Iterable[Outcome]) -> Iterator[dict[str, Any]]:
    return (reject for outcome in outcomes for reject in outcome.rejects)


def _manifest(
    source: Source,
    plan: Plan,
    outcomes: Sequence[Outcome],
    options: dict[str, Any],
    label_names: tuple[str, ...],
) -> Manifest:
    import PIL
    import pyarrow

    rejected: dict[str, int] = {}
    images = ImageCounts()
    for outcome in outcomes:
        images.add(outcome.shard.images)
    for reject in _rejects(outcomes):
        add_counts(rejected, {reject["reason"]: 1})
    read, kept = sum(outcome.read for outcome in outcomes), sum(outcome.kept for outcome in outcomes)
    return Manifest(
        kind=source.kind,
        source=plan.source,
        url=source.url,
        licence=plan.options["licence"],
        config=plan.options["config"],
        split=plan.options["split"],
        revision=plan.options["revision"],
        options=options,
        rows=RowCounts(read, kept, sum(rejected.values())),
        rejected=rejected,
        records=sum(outcome.shard.rows for outcome in outcomes),
        images=images,
        inputs=plan.inputs,
        shards=tuple(replace(outcome.shard) for outcome in outcomes),
        label_names=label_names,
        versions={"vlmdata": vlmdata.__version__, "pyarrow": pyarrow.__version__, "pillow": PIL.__version__},
    )
