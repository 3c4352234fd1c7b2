"""Places for files: local paths, and object stores by their address (``s3://``, ``gs://``, ``memory://`` ...).

A place behaves like ``pathlib.Path``; for addresses that is a ``upath.UPath`` over fsspec. Each object is whole or not
there on such a store, so nothing is renamed into place.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vlmdata.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["absolute", "files_below", "inside", "is_remote", "open_parquet", "place", "remove_tree", "upload"]

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def place(where: str | os.PathLike[str]) -> Path:
    """A local path, or what an address names.

    Raises:
        ConfigError: there is no such kind of store.
        DependencyError: the package for the store is not installed.
    """
    if isinstance(where, Path) or is_remote(where):
        return cast(Path, where)
    match = _ADDRESS.match(str(where))
    if match is None:
        return Path(where)
    from upath import UPath

    scheme = match[1].lower()
    try:
        found = UPath(str(where))
        found.fs  # noqa: B018  the package for the store is loaded here
        return cast(Path, found)
    except ImportError:
        package = _PACKAGES.get(scheme, f"the fsspec package for {scheme}")
        raise DependencyError(package, "stores", f"{scheme}://") from None
    except ValueError as error:
        raise ConfigError(f"{where} is no address: {error}; valid: a local path, s3://, gs://, hf://") from None


def is_remote(where: Any) -> bool:
    """Whether a place is on an object store."""
    return hasattr(where, "fs") and hasattr(where, "protocol") and not isinstance(where, Path)


def absolute(where: str | os.PathLike[str]) -> Path:
    """The place, independent of the current folder."""
    found = place(where)
    return found if is_remote(found) else Path(os.path.abspath(found))


@contextmanager
def open_parquet(path: Any, *, buffer_size: int = 1 << 20) -> Iterator[pq.ParquetFile]:
    """A Parquet file by its place or as an open file, read page by page.

    Not mapped, and not buffered ahead: pages of a mapped file stay in memory, and pyarrow's default reads whole column
    chunks, of which one may hold gigabytes of images.
    """
    import pyarrow.parquet as pq

    options = {"buffer_size": buffer_size, "pre_buffer": False}
    if is_remote(path):
        with path.open("rb") as opened, pq.ParquetFile(opened, **options) as file:
            yield file
    else:
        with pq.ParquetFile(path, **options) as file:
            yield file


def files_below(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, ``/`` between parts, sorted; hidden ones are left out."""
    if is_remote(folder):
        remote: Any = folder
        base = remote.path.rstrip("/") + "/"
        found = [path.removeprefix(base) for path in remote.fs.find(remote.path)]
    else:
        found = []
        for parent, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [(Path(parent).relative_to(folder) / name).as_posix() for name in files]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.split("/")))


def upload(local: Path, target: Path) -> None:
    """Put a local file on an object store, whole or not at all."""
    remote: Any = target
    remote.fs.makedirs(remote.parent.path, exist_ok=True)
    remote.fs.put_file(str(local), remote.path)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it; one that is not there is no fault."""
    if is_remote(folder):
        remote: Any = folder
        if remote.exists():
            remote.fs.rm(remote.path, recursive=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def inside(root: Path, path: str) -> Path | None:
    """The place of a relative path below a store's folder; None when it leads out of it."""
    joined = posixpath.normpath(path)
    return None if joined.startswith(("/", "../")) or joined == ".." or "://" in path else root / joined
