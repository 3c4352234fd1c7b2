"""A task that a user wrote in a file of their own: ``vlmeval ./capitals.py --data ...``.

The file is run once as a module and defines ``TASK``, as the files in ``vlmeval/tasks`` do. Modules beside it can be
imported. What is wrong with it is said in one line, before anything else is done.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vlmdata.errors import DataError, MissingError, VlmError, choices
from vlmeval.task import Metric, Option, Task

__all__ = ["fingerprint", "is_file", "load_file"]

_loaded: dict[tuple[Path, str], Task] = {}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def is_file(name: str) -> bool:
    """Whether a task is meant by its file, not by its name."""
    return name.endswith(".py")


def fingerprint(path: str | Path) -> dict[str, str]:
    """How a report names the file: ``path`` and ``sha256``."""
    return {"path": str(path), "sha256": hashlib.sha256(_bytes(Path(path))).hexdigest()}


def load_file(path: str | Path) -> Task:
    """The ``TASK`` of a Python file; a file that did not change is run once.

    Raises:
        MissingError: there is no such file.
        DataError: it is no Python, it raises an error when it is run, or its ``TASK`` is none.
    """
    place, digest = Path(path).resolve(), fingerprint(path)["sha256"]
    if (place, digest) not in _loaded:
        _loaded[place, digest] = _load(place, Path(path), digest)
    return _loaded[place, digest]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingError(f"no task file {path}: {error.strerror}") from None


def _load(place: Path, path: Path, digest: str) -> Task:
    module = _run(place, path, f"vlmeval_task_{place.stem}_{digest[:8]}")
    task = getattr(module, "TASK", None)
    if task is None:
        raise DataError(f"{path} defines no TASK: expected TASK = vlmeval.task.Task(name=..., open=..., ...)")
    if not isinstance(task, Task):
        raise DataError(f"{path}: TASK is {_article(task)}, expected vlmeval.task.Task")
    _check(path, task)
    return task


def _run(place: Path, path: Path, name: str) -> ModuleType:
    """Run the file as a module."""
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(place.parent) not in sys.path:
        # Last, so that a file beside it hides no installed module.
        sys.path.append(str(place.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except VlmError:
        sys.modules.pop(name)
        raise
    except SyntaxError as error:
        sys.modules.pop(name)
        other = "" if error.filename == str(place) else f" (imported by {path})"
        where = f"{path if not other else error.filename}, line {error.lineno}"
        raise DataError(f"{where} is not Python: {error.msg}{other}") from None
    except Exception as error:  # noqa: BLE001  # whatever a user's file raises
        sys.modules.pop(name)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(place)]
        where = f", line {lines[-1]}" if lines else ""
        raise DataError(f"{path}{where}: {type(error).__name__}: {error}") from error
    return module


def _check(path: Path, task: Task) -> None:
    """What would otherwise come out in the middle of a run."""
    wanted: dict[str, tuple[type, ...]] = {
        "name": (str,), "summary": (str,), "metrics": (tuple, list), "headline": (tuple, list), "groups": (Mapping,),
        "options": (tuple, list), "images": (bool,),
    }  # fmt: skip
    for field, types in wanted.items():
        if not isinstance(getattr(task, field), types):
            raise DataError(
                f"{path}: TASK.{field} is {_article(getattr(task, field))}, expected {types[0].__name__.lower()}"
            )
    if not task.name or set(task.name) - _PLAIN:
        raise DataError(f"{path}: TASK.name is {task.name!r}; expected letters, digits, '_', '-' or '.'")
    for field in ("open", "judge", "fetch", "charts"):
        if getattr(task, field) is not None and not isinstance(getattr(task, field), Callable):  # type: ignore[arg-type]
            raise DataError(f"{path}: TASK.{field} is {_article(getattr(task, field))}, expected a function")
    _each(path, "metrics", task.metrics, Metric)
    _each(path, "options", task.options, Option)
    if not task.metrics or not task.groups:
        raise DataError(f"{path}: TASK has no {'metrics' if task.groups else 'groups'}; a report needs at least one")
    for metric in task.metrics:
        strange = [group for group in metric.groups if group not in task.groups]
        if strange:
            raise DataError(
                f"{path}: metric {metric.name!r} is for group {strange[0]!r}; TASK.groups has {choices(task.groups)}"
            )
    known = {(group, metric.name) for metric in task.metrics for group in metric.groups}
    odd = [pair for pair in task.headline if tuple(pair) not in known]
    if odd:
        raise DataError(f"{path}: TASK.headline has {odd[0]!r}, which is no (group, metric) of TASK.metrics")


def _each(path: Path, field: str, values: Sequence[Any], kind: type) -> None:
    for value in values:
        if not isinstance(value, kind):
            raise DataError(f"{path}: TASK.{field} holds {_article(value)}, expected vlmeval.task.{kind.__name__}")


def _article(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
