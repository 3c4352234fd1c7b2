"""Folders that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vlmdata.atomic import NOT_WRITABLE
from vlmdata.errors import ConfigError, OutputExistsError, VlmError
from vlmdata.lock import locked
from vlmdata.manifest import MANIFEST

__all__ = ["DATASET", "Ours", "SPLIT", "check_output", "publishing"]

SPLIT = "split.json"
"""What ``vlmdata split`` writes beside the parts."""

_OURS = re.compile(r"manifest\.json|plan\.json|rejects\.jsonl|README\.md|rejects|images|data-\d{5}-of-\d{5}\.parquet")


class Ours(NamedTuple):
    """What may lie in an output folder and be replaced.

    Attributes:
        name: of one, with its article.
        foreign: the names in a folder that do not belong to one; all where it holds none.
    """

    name: str
    foreign: Callable[[Path], list[str]]


def _foreign(folder: Path) -> list[str]:
    """Names in a folder that no dataset and no split brings; everything where it holds neither."""
    names = sorted(path.name for path in folder.iterdir())
    if MANIFEST in names:
        return [name for name in names if not _OURS.fullmatch(name)]
    if SPLIT not in names:
        return names
    bad = [path.name for path in folder.iterdir() if path.name != SPLIT and not (path / MANIFEST).is_file()]
    return bad or [f"{path.name}/{name}" for path in folder.iterdir() if path.is_dir() for name in _foreign(path)]


DATASET = Ours("a dataset", _foreign)


def check_output(out: Path, inputs: Sequence[Path], *, overwrite: bool, ours: Ours = DATASET) -> Path:
    """The real path of an output folder that may be written.

    Args:
        out: the folder asked for.
        inputs: folders that are read meanwhile.
        overwrite: what lies there may be replaced.
        ours: what that can be.

    Raises:
        OutputExistsError: it is an input or lies in one, holds one, is a file, or holds something already.
    """
    folder = Path(os.path.realpath(out))
    for path in inputs:
        real = Path(os.path.realpath(path))
        if folder == real:
            raise OutputExistsError(f"{out} is the input itself; give another --out")
        if folder.is_relative_to(real) or real.is_relative_to(folder):
            raise OutputExistsError(f"{out} and the input {path} lie in each other; give another --out")
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputExistsError(f"{out} is a file; --out is a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    foreign = ours.foreign(folder)
    if foreign:
        told = f"{out} holds {foreign[0]}, which is no part of {ours.name}"
        raise OutputExistsError(f"{told}; give a new folder as --out")
    if not overwrite:
        raise OutputExistsError(f"{out} holds {ours.name}; --overwrite replaces it")
    return folder


@contextmanager
def publishing(out: Path, inputs: Sequence[Path], *, overwrite: bool, ours: Ours = DATASET) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends without an error.

    Args:
        out: the folder to write.
        inputs: folders that are read meanwhile.
        overwrite: replace what lies there.
        ours: what that can be.

    Raises:
        OutputExistsError: see ``check_output``; or another process is writing there.
        ConfigError: the folder cannot be written to.
    """
    folder = check_output(out, inputs, overwrite=overwrite, ours=ours)
    fresh = folder.with_name(f".{folder.name}.vlmdata-new")
    former = folder.with_name(f".{folder.name}.vlmdata-old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made: {error.strerror}; give another --out") from None
    try:
        with locked(folder):
            _recover(folder, fresh, former)
            check_output(out, inputs, overwrite=overwrite, ours=ours)
            try:
                fresh.mkdir()
                yield fresh
                _replace(folder, fresh, former)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        if isinstance(error, VlmError) or error.errno not in NOT_WRITABLE:
            raise
        raise ConfigError(f"cannot write to {out}: {error.strerror}; mend that, or give another --out") from None


def _recover(folder: Path, fresh: Path, former: Path) -> None:
    """Clear up after a run that was killed; a dataset that was being replaced comes back."""
    shutil.rmtree(fresh, ignore_errors=True)
    if former.is_dir() and not folder.exists():
        former.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def _replace(folder: Path, fresh: Path, former: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()):
            folder.rename(former)
        else:
            folder.rmdir()
    fresh.rename(folder)
    shutil.rmtree(former, ignore_errors=True)
