"""Checkpoints that are whole or not taken, and disks that are full.

The trainer writes a checkpoint file by file. When all are on the disk, ``whole.json`` is written with their sizes and
fingerprints; a checkpoint without it, or with other files than it says, is not gone on from. Older checkpoints go only
then, so that at every moment one is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmdata.atomic import NOT_WRITABLE, write_json
from vlmdata.errors import ConfigError, VlmError

__all__ = ["check_space", "fault", "newest", "rotate", "seal", "step_of", "writable"]

SEAL = "whole.json"
_SAMPLE = 1 << 20
_ENTIRE = 256 << 20
# What safetensors and torch say for a system error they do not pass on.
_FULL = (
    "no space left",
    "os error 28",
    "os error 27",
    "file too large",
    "quota exceeded",
    "file write failed",
    "iostream error",
    "pytorchstreamwriter failed",
)


def seal(folder: Path) -> None:
    """Note that a checkpoint is whole, after its files have reached the disk."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == SEAL:
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _fingerprint(path)}
    write_json(folder / SEAL, {"files": files})
    for place in (folder, folder.parent):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fault(folder: Path) -> str | None:
    """What keeps a checkpoint from being gone on from; None when it is whole."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, KeyError, TypeError, ValueError):
        return f"{SEAL} cannot be read"
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != known["bytes"]:
            return f"{name} has {size:,} of {known['bytes']:,} bytes"
        if _fingerprint(path) != known["sha256"]:
            return f"{name} was changed"
    return None


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and one line for each newer one that is not."""
    lines: list[str] = []
    for path in sorted(_checkpoints(folder), key=step_of, reverse=True):
        why = fault(path)
        if why is None:
            return path, lines
        lines.append(f"{path.name} is not whole, an older one is taken: {why}")
    return None, lines


def rotate(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove old checkpoints, and those that are not whole; the last ``keep`` and the best stay.

    Args:
        folder: of the checkpoints, one of which has just been sealed.
        keep: how many; None is all.
        best: the path of one that stays.
    """
    found = sorted(_checkpoints(folder), key=step_of)
    whole = [path for path in found if (path / SEAL).is_file()]
    gone = set(found) - set(whole) | set(whole[: -keep if keep else 0])
    for path in sorted(gone, key=step_of):
        if best is None or path.name != Path(best).name:
            # What is left of one whose removal is cut short must not pass for a checkpoint.
            (path / SEAL).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def check_space(model: Any, folder: Path, keep: int, say: Callable[[str], None]) -> None:
    """Compare what a run will write with what is free; adapters are small, models are not.

    Args:
        model: what is trained: its trained parameters, and for a whole model all of them, are written, with two
            figures of the optimizer for each that is trained.
        folder: to write to.
        keep: how many checkpoints stay.
        say: tells the user.

    Raises:
        ConfigError: not even one checkpoint fits.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    written = trained if hasattr(model, "peft_config") else list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in written)
    one = weights + sum(2 * p.numel() * p.element_size() for p in trained)
    # The next checkpoint is written before the oldest goes; the result is written at the end.
    needed = (keep + 1) * one + weights
    free = shutil.disk_usage(folder).free
    if free < one:
        raise ConfigError(
            f"{folder} has {_gib(free)} free, and a checkpoint takes about {_gib(one)}: "
            "free some, or choose another --out"
        )
    if free < needed:
        say(f"disk   {_gib(free)} free, {keep} checkpoints and the result take about {_gib(needed)}")


@contextlib.contextmanager
def writable(folder: Path, what: str = "") -> Iterator[None]:
    """Turn the errors of a full or locked disk, whoever raises them, into one line.

    Args:
        folder: that is written to.
        what: that is being written; a folder in it, which is removed when it cannot be finished.

    Raises:
        ConfigError: the disk is full, or cannot be written to.
    """
    try:
        yield
    except VlmError:
        raise
    except Exception as error:
        why = _reason(error)
        if why is None:
            raise
        if what:
            shutil.rmtree(folder / what, ignore_errors=True)
        name = f"{what} to {folder}" if what else f"to {folder}"
        raise ConfigError(f"cannot write {name}: {why}; make room, then --resume goes on") from error


def _reason(error: BaseException) -> str | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in NOT_WRITABLE:
            return str(seen.strerror)
        said = str(seen).lower()
        if type(seen).__name__ in ("SafetensorError", "RuntimeError") and any(sign in said for sign in _FULL):
            return "the disk is full, or a file may not be so large"
        seen = seen.__cause__ or seen.__context__
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]


def _fingerprint(path: Path) -> str:
    """SHA-256 of a file; of a very large one its size and a sample every 256 MiB: a cut shows in the size."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _ENTIRE:
            while piece := file.read(_SAMPLE):
                digest.update(piece)
        else:
            for start in [*range(0, size - _SAMPLE, _ENTIRE), size - _SAMPLE]:
                file.seek(start)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:.1f} MiB"
