"""What a model's files hold, as a digest: read once, and again only when a file has changed.

Fourteen gigabytes take longer to read than a run should wait for. The hub's own cache names a file by the sha256 of
what it holds (https://huggingface.co/docs/huggingface_hub/guides/manage-cache), so that none is read. Of any other
file the sha256 is remembered in the user's cache folder with what the file system says of it: size, times of change
and number of the file. As git does with its index, what was changed a moment ago is not remembered, as a second
change at the same tick of the clock would not show (https://git-scm.com/docs/racy-git).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vlmdata.atomic import sha256_file, write_json

__all__ = ["CACHE", "cache_folder", "files_digest", "folder_of", "model_files"]

CACHE = "VLMTRAIN_CACHE"
"""Environment variable with the cache folder."""
_SHA256 = re.compile("[0-9a-f]{64}")
_TICK_NS = 2 * 10**9
_LARGE = 2 << 30


def cache_folder() -> Path:
    """What runs leave for other runs: ``VLMTRAIN_CACHE``, else ``vlmtrain`` in the user's cache folder.

    Raises:
        RuntimeError: there is no home folder.
    """
    named = os.environ.get(CACHE)
    if named:
        return Path(named).expanduser()
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification of these folders has relative ones ignored.
    return (given if given.is_absolute() else Path.home() / ".cache") / "vlmtrain"


def folder_of(source: str) -> Path:
    """Where the files of a model are that has been loaded.

    Args:
        source: a folder, or a hub id.
    """
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils import cached_file

    return Path(str(cached_file(source, "config.json"))).parent


def model_files(folder: Path) -> list[Path]:
    """The files of a model or an adapter that its outputs depend on: weights, settings, code that came with it.

    Args:
        folder: of the model or the adapter; its own files alone, not those of folders inside.
    """
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    settings = [folder / name for name in ("config.json", "adapter_config.json") if (folder / name).is_file()]
    return [*weights, *settings, *sorted(folder.glob("*.py"))]


def files_digest(files: Iterable[Path], memory: Path, say: Callable[[str], None] = lambda line: None) -> str:
    """One sha256 of the names and contents of files.

    Args:
        files: which.
        memory: folder where the sha256 of a file is remembered; one that cannot be written is no error.
        say: told when much has to be read.
    """
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {_sha256(path, memory, say)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path, memory: Path, say: Callable[[str], None]) -> str:
    real = path.resolve()
    if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name
    found = real.stat()
    seen = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    note = memory / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["seen"] == seen and _SHA256.fullmatch(known["sha256"]):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if found.st_size > _LARGE:
        say(f"weights {path.name} is read once to be known again, {found.st_size / 2**30:.1f} GiB")
    started = time.time_ns()
    sha256 = sha256_file(real)
    if started - max(found.st_mtime_ns, found.st_ctime_ns) > _TICK_NS and real.stat().st_mtime_ns == found.st_mtime_ns:
        try:
            memory.mkdir(parents=True, exist_ok=True)
            write_json(note, {"seen": seen, "sha256": sha256})
        except OSError:
            pass
    return sha256
