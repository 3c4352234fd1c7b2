"""The folder of an export: written beside its place and renamed at the end, so it is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmdata.errors import ConfigError, OutputExistsError, VlmError
from vlmdata.lock import locked

__all__ = ["EXPORT", "IMAGES", "check_out", "fresh_folder"]

EXPORT = "export.json"
"""What an export is; written last."""

IMAGES = "images"

_NOT_WRITABLE = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS}


def check_out(out: Path, shards: Path, *, overwrite: bool) -> Path:
    """The real path of a folder an export may be written to.

    Raises:
        OutputExistsError: it is the dataset or lies in it or around it, is a file, holds something else than an
            export, or holds an export and ``overwrite`` is off.
    """
    folder, source = Path(os.path.realpath(out)), Path(os.path.realpath(shards))
    if folder.is_relative_to(source) or source.is_relative_to(folder):
        raise OutputExistsError(f"{out} and the dataset {shards} lie in each other; give another --out")
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputExistsError(f"{out} is a file; --out is a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    foreign = _foreign(folder)
    if foreign:
        raise OutputExistsError(f"{out} holds {foreign[0]}, which no export wrote; give a new folder as --out")
    if not overwrite:
        raise OutputExistsError(f"{out} holds an export; --overwrite replaces it")
    return folder


@contextmanager
def fresh_folder(out: Path, shards: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends without an error.

    Raises:
        OutputExistsError: see ``check_out``; or another process is writing there.
        ConfigError: the folder cannot be written to.
    """
    folder = check_out(out, shards, overwrite=overwrite)
    fresh = folder.with_name(f".{folder.name}.vlmdata-new")
    former = folder.with_name(f".{folder.name}.vlmdata-old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made: {error.strerror}; give another --out") from None
    try:
        with locked(folder):
            shutil.rmtree(fresh, ignore_errors=True)
            if former.is_dir() and not folder.exists():  # a run was killed between two renames
                former.rename(folder)
            shutil.rmtree(former, ignore_errors=True)
            check_out(out, shards, overwrite=overwrite)
            try:
                fresh.mkdir()
                yield fresh
                _replace(folder, fresh, former)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        if isinstance(error, VlmError) or error.errno not in _NOT_WRITABLE:
            raise
        raise ConfigError(f"cannot write to {out}: {error.strerror}; mend that, or give another --out") from None


def _foreign(folder: Path) -> list[str]:
    """Names in a folder that its ``export.json`` does not know; all of them where there is none."""
    names = {path.name for path in folder.iterdir()}
    try:
        told = json.loads((folder / EXPORT).read_bytes())
        known = {EXPORT, *(file["name"] for file in told["files"])} | ({IMAGES} if told["image_files"] else set())
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    return sorted(names - known)


def _replace(folder: Path, fresh: Path, former: Path) -> None:
    if (fresh / IMAGES).is_dir() and hasattr(os, "sync"):  # one call for all the files, which no crash must leave empty
        os.sync()
    if folder.is_dir():
        if any(folder.iterdir()):
            folder.rename(former)
        else:
            folder.rmdir()
    fresh.rename(folder)
    shutil.rmtree(former, ignore_errors=True)
