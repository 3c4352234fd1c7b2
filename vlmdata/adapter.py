"""A user's own source: a Python file with ``SOURCE = Source(...)``, named where a source's name would stand."""

from __future__ import annotations

import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from vlmdata.errors import DataError, MissingError
from vlmdata.source import Source

__all__ = ["digest", "docstring", "load_file", "title"]

_loaded: dict[tuple[str, str], ModuleType] = {}


def load_file(path: str) -> Source:
    """The source a file defines. The file is run once in each process.

    Raises:
        MissingError: there is no such file.
        DataError: it cannot be run, or defines no source.
    """
    source = getattr(_module(path), "SOURCE", None)
    if source is None:
        raise DataError(f"{path} defines no SOURCE; it should end with SOURCE = Source(kind=..., columns=..., ...)")
    if not isinstance(source, Source):
        raise DataError(f"SOURCE of {path} is {type(source).__name__}, expected vlmdata.source.Source(...)")
    _check(path, source)
    return source


def docstring(path: str) -> str:
    """The docstring of a source file.

    Raises:
        MissingError, DataError: as ``load_file`` does.
    """
    load_file(path)
    return (_module(path).__doc__ or f"{path} has no docstring.").strip()


def digest(name: str) -> str | None:
    """The sha256 of a source file; None for the name of a built-in source.

    Raises:
        MissingError: there is no such file.
    """
    return hashlib.sha256(_read(name)).hexdigest() if name.endswith(".py") else None


def title(name: str) -> str:
    """What manifests call a source: its name, or its file's name without the folder."""
    return Path(name).stem if name.endswith(".py") else name


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingError(f"no file {path}; a source of your own is a Python file with SOURCE = Source(...)") from None
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from None


def _module(path: str) -> ModuleType:
    """The module of a file, run from the very bytes that are hashed; nothing is written beside it."""
    data = _read(path)
    key = (path, hashlib.sha256(data).hexdigest())
    if key in _loaded:
        return _loaded[key]
    module = ModuleType(f"vlmdata_source_{key[1][:16]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look for the module of a class
    try:
        exec(compile(data, path, "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[module.__name__]
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, SyntaxError) and error.filename == path and error.lineno:
            raise DataError(f"{path} line {error.lineno}: {error.msg}") from None
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f" line {frames[-1]}" if frames else ""
        problem = " ".join(str(error).split())[:200] if str(error) else "no message"
        raise DataError(f"{path}{where} cannot be run: {type(error).__name__}: {problem}") from None
    _loaded[key] = module
    return module


def _check(path: str, source: Any) -> None:
    """What the type checker would have said of a file that it never saw."""
    problem = ""
    if source.kind not in ("messages", "preference"):
        problem = f"kind is {source.kind!r}, expected 'messages' or 'preference'"
    elif not isinstance(source.columns, tuple) or not source.columns:
        problem = "columns is no tuple of sets, expected such as (frozenset({'image', 'text'}),)"
    elif not all(isinstance(columns, frozenset) and columns for columns in source.columns):
        problem = "columns holds something else than frozensets, expected such as (frozenset({'image', 'text'}),)"
    elif not callable(source.convert):
        problem = "convert is no function (row, row_id, options) -> list of records"
    elif not all(isinstance(text, str) for text in (source.url, source.licence, source.summary)):
        problem = "url, licence and summary should be texts"
    if problem:
        raise DataError(f"SOURCE of {path}: {problem}")
