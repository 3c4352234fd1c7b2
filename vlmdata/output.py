"""The output folder of a conversion: what may be touched, made ready, and cleared."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlmdata.atomic import NOT_WRITABLE
from vlmdata.errors import ConfigError, DataError, OutputExistsError, VlmError
from vlmdata.image_log import IMAGES
from vlmdata.manifest import CARD, MANIFEST
from vlmdata.places import is_remote, remove_tree
from vlmdata.plan import PLAN, Plan
from vlmdata.rejects import REJECTS, REJECTS_FILE
from vlmdata.work import WORK

__all__ = ["check_out", "prepare", "remove_leftovers", "writable"]

_SHARD_NAME = re.compile(r"data-\d{5}-of-\d{5}\.parquet")


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make the folder; say in one line what keeps us from writing to it.

    Raises:
        ConfigError: it cannot be made or written to, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}; give another --out") from None
    try:
        yield
    except OSError as error:
        if isinstance(error, VlmError) or error.errno not in NOT_WRITABLE:
            raise
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; mend that, then --resume") from None


def check_out(out: Path, raw: Sequence[str], *, overwrite: bool, resume: bool) -> None:
    """Refuse to touch what is not ours, or what is ours unasked.

    Raises:
        OutputExistsError: the folder is a file, the raw data, somebody else's, or holds a conversion already.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file; --out is a folder")
    if any(_same(path, out) for path in raw):
        raise OutputExistsError(f"{out} is the raw data itself; give another --out")
    if _begins([path.name for path in out.iterdir()] if out.is_dir() else []):
        return
    if overwrite and (below := [path for path in raw if _inside(path, out)]):
        raise OutputExistsError(f"{below[0]} is raw data inside {out}, which --overwrite clears; give another --out")
    if not (out / MANIFEST).exists() and not (out / PLAN).exists():
        raise OutputExistsError(f"{out} holds files that are no conversion; give a new or empty folder as --out")
    if not overwrite and not resume:
        if (out / MANIFEST).exists():
            raise OutputExistsError(f"{out} holds a converted dataset; --overwrite replaces it")
        raise OutputExistsError(f"{out} holds an unfinished conversion; --resume goes on, --overwrite starts again")


def prepare(out: Path, plan: Plan, *, overwrite: bool, resume: bool) -> bool:
    """Make the folder ready; False when the dataset is already complete.

    Raises:
        OutputExistsError: as ``check_out``.
        ConfigError: what is to be resumed was planned otherwise.
        DataError: it was finished, and a shard is gone.
    """
    check_out(out, (), overwrite=overwrite, resume=resume)
    names = [path.name for path in out.iterdir()]
    if resume and (out / PLAN).exists():
        plan.check_same(out)
        if (out / MANIFEST).exists():
            lost = [task.shard for task in plan.tasks if not (out / task.shard).is_file()]
            if lost:
                raise DataError(f"{out} was finished and lacks {lost[0]} now; --overwrite makes it again")
            return False
    elif not _begins(names):
        _clear(out)
    # First, so that another rank that begins at this moment knows the folder by it.
    if not (out / PLAN).exists():
        plan.write(out)
    for folder in (WORK, IMAGES, REJECTS):
        (out / folder).mkdir(exist_ok=True)
    return True


def _begins(names: Sequence[str]) -> bool:
    """Whether nothing is in a folder but a plan that another rank may be writing at this moment."""
    return all(name.startswith(f"{PLAN}.") and name.endswith(".tmp") for name in names)


def remove_leftovers(out: Path) -> None:
    """Remove what an unfinished conversion needs and a finished one does not."""
    remove_tree(out / WORK)
    for folder in (out, out / IMAGES, out / REJECTS):
        for path in folder.glob("*.tmp"):
            path.unlink(missing_ok=True)
    if (out / REJECTS).is_dir() and not any((out / REJECTS).iterdir()):
        (out / REJECTS).rmdir()


def _same(raw: str, out: Path) -> bool:
    if is_remote(out) or "://" in raw:
        return raw.rstrip("/") == str(out).rstrip("/")
    return os.path.realpath(raw) == os.path.realpath(out)


def _inside(raw: str, out: Path) -> bool:
    if is_remote(out) or "://" in raw:
        return raw.startswith(str(out).rstrip("/") + "/")
    return os.path.lexists(raw) and Path(os.path.realpath(raw)).is_relative_to(os.path.realpath(out))


def _clear(out: Path) -> None:
    """Remove an earlier dataset, its manifest first; files that a conversion does not write stay."""
    for name in (MANIFEST, PLAN, REJECTS_FILE, CARD):
        (out / name).unlink(missing_ok=True)
    for folder in (out, out / IMAGES, out / REJECTS):
        for path in folder.glob("data-*"):
            if _SHARD_NAME.fullmatch(path.name.removesuffix(".tmp")):
                path.unlink()
    remove_tree(out / WORK)
