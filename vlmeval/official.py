"""The official files of a benchmark, fetched once: a pinned revision, every file checked by its sha256.

What is fetched is data, ``data/official.json``: repository, revision, licence, and path, size and sha256 of each file.
A file is there whole or not at all; an interrupted download goes on where it was; what is there already and right is
not fetched again, so that a second call needs no network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError, DataError, MissingError, choices

if TYPE_CHECKING:
    import httpx

__all__ = ["CACHE", "File", "MIRROR", "Source", "cache_folder", "digests", "fetch", "images", "names", "source"]

CACHE = "VLMEVAL_CACHE"
"""Environment variable with the cache folder."""
MIRROR = "VLMEVAL_MIRROR"
"""Environment variable with the address files are fetched from instead."""
_HOST = "https://raw.githubusercontent.com"
_ATTEMPTS = 3
_TIMEOUT = 30.0
_PART = ".part"


@dataclass(frozen=True, slots=True)
class File:
    """One file: where it lies in the repository and in the folder it is fetched to, its sha256 and its bytes."""

    path: str
    to: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Source:
    """The official files of one benchmark.

    Attributes:
        name: of its task.
        repository: owner and name on GitHub.
        revision: the commit.
        licence: of the files.
        images: where its images are to be had and how to lay them, in one line; ``{folder}`` is the data folder.
        files: what is fetched.
    """

    name: str
    repository: str
    revision: str
    licence: str
    images: str
    files: tuple[File, ...]


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("vlmeval").joinpath("data", "official.json").read_text(encoding="utf-8"))
    return found


def names() -> list[str]:
    """Benchmarks whose official files can be fetched."""
    return sorted(_shipped())


def source(name: str) -> Source:
    """The official files of that benchmark.

    Raises:
        MissingError: none are known.
    """
    if name not in _shipped():
        raise MissingError(f"no official files are known for {name!r}; valid: {choices(names())}")
    row = dict(_shipped()[name])
    listed = tuple(File(**file) for file in row.pop("files"))
    return Source(name=name, files=listed, **row)


def digests(name: str) -> dict[str, str]:
    """File name, without folders, to sha256; empty where no official files are known."""
    return {Path(file.to).name: file.sha256 for file in source(name).files} if name in _shipped() else {}


def images(name: str, folder: Path) -> str | None:
    """Where a benchmark's images are to be had and how to lay them; None where no official files are known."""
    return source(name).images.format(folder=folder) if name in _shipped() else None


def cache_folder() -> Path:
    """Where fetched files are kept: ``VLMEVAL_CACHE``, else ``vlmeval`` in the user's cache folder."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmeval"


def fetch(name: str, out: Path | None = None, mirror: str | None = None) -> Path:
    """The folder with a benchmark's official files, fetched where they are not there yet.

    Args:
        name: one of :func:`names`.
        out: the folder; left out, one in the cache that is named by the revision.
        mirror: an address that serves ``OWNER/REPOSITORY/REVISION/PATH``; left out, ``VLMEVAL_MIRROR``, else
            raw.githubusercontent.com.

    Raises:
        MissingError: no such benchmark, no network, or the server does not have a file.
        DataError: a file's content is not the official one.
        ConfigError: the folder cannot be written to, or the mirror is no address.
    """
    wanted = source(name)
    folder = out if out is not None else cache_folder() / f"{name}-{wanted.revision[:7]}"
    if all(_right(folder / file.to, file) for file in wanted.files):
        return folder
    base = (mirror or os.environ.get(MIRROR) or _HOST).rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"--mirror is {base!r}, expected an address that starts with http:// or https://")
    other = [file.to for file in wanted.files if (path := folder / file.to).exists() and not _right(path, file)]
    if out is not None and other:
        raise DataError(f"{folder / other[0]} is there and is not the official file: take another --out, or remove it")
    _fetch_all(wanted, folder, f"{base}/{wanted.repository}/{wanted.revision}")
    return folder


def _fetch_all(wanted: Source, folder: Path, base: str) -> None:
    """Fetch what is not there; of several processes one does, the others wait for it."""
    import httpx
    from filelock import FileLock

    with _said(base, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetch.lock"), httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
            for file in wanted.files:
                if not _right(folder / file.to, file):
                    address = f"{base}/{file.path}"
                    with _said(address, folder):
                        _download(client, address, folder / file.to, file)


def _right(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256


@contextmanager
def _said(address: str, folder: Path) -> Iterator[None]:
    """Network and disk errors in one line, with the way on."""
    import httpx

    way_on = "give --data a folder with the files, or --mirror an address that has them"
    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise MissingError(f"{address} cannot be had: the server answered {code}; {way_on}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingError(f"{address} cannot be had: {reason}; {way_on}") from None
    except OSError as error:
        if isinstance(error, MissingError):
            raise
        raise ConfigError(f"{folder} cannot be written: {error.strerror}; --out or {CACHE} name another") from None


def _download(client: httpx.Client, address: str, path: Path, file: File) -> None:
    """Fetch one file beside its place, check it, and move it there."""
    import httpx

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + _PART)
    for attempt in range(1, _ATTEMPTS + 1):
        resumed = part.exists()
        try:
            _stream(client, address, part)
        except httpx.TransportError:
            if attempt == _ATTEMPTS:
                raise
            continue
        if _right(part, file):
            os.replace(part, path)
            return
        found, size = hashlib.sha256(part.read_bytes()).hexdigest(), part.stat().st_size
        part.unlink()
        if not resumed:
            break
    raise DataError(
        f"{address} is not the official file: expected {file.bytes} bytes with sha256 {file.sha256[:12]}..., got "
        f"{size} with {found[:12]}...; the server sends something else: give another --mirror, or --data"
    )


def _stream(client: httpx.Client, address: str, part: Path) -> None:
    """Append what is missing of a file; start it anew where the server cannot go on."""
    begun = part.stat().st_size if part.is_file() else 0
    headers: Mapping[str, str] = {"Accept-Encoding": "identity", **({"Range": f"bytes={begun}-"} if begun else {})}
    with client.stream("GET", address, headers=headers) as response:
        if begun and response.status_code == 416:
            # Nothing is left to be sent: whole or wrong, which the checksum tells.
            return
        response.raise_for_status()
        with part.open("ab" if response.status_code == 206 else "wb") as opened:
            for block in response.iter_bytes():
                opened.write(block)
