"""Single files that a command writes beside datasets: checked before long work starts."""

from __future__ import annotations

import os
from pathlib import Path

from vlmdata.errors import ConfigError, OutputExistsError
from vlmdata.manifest import MANIFEST

__all__ = ["check_file"]


def check_file(path: Path, option: str, *, overwrite: bool) -> None:
    """Make the folder of a file that will be written, or say why the file cannot be written.

    Args:
        path: the file.
        option: what it was given as.
        overwrite: it may be replaced.

    Raises:
        ConfigError: it is a folder, or its folder cannot be written to.
        OutputExistsError: it is there already, or would stand in a converted dataset.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder, expected the name of a file to write")
    if (path.parent / MANIFEST).exists():
        raise OutputExistsError(f"{option} {path} lies in a converted dataset, give a place beside its folder")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{option} {path} is already there; --overwrite replaces it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: its folder cannot be made: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{option} {path}: its folder cannot be written to; give another place")
