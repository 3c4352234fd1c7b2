"""Files that are there whole or not at all, and hashes of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmdata.places import is_remote, upload

__all__ = ["NOT_WRITABLE", "replacing", "sha256_file", "write_json", "write_lines"]

NOT_WRITABLE = frozenset({errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS})
"""Numbers of the system's errors that say a place cannot be written to, or is full."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary local path whose file takes the place of ``path`` when the block ends without an error.

    Its name is the process's own, as several may write the same file on a cluster.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="vlmdata-") as folder:
            made = Path(folder) / path.name
            yield made
            upload(made, path)
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path, values: Iterator[Any]) -> None:
    """Write one JSON value a line, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
