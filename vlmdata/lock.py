"""One conversion into a folder at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmdata.errors import OutputExistsError
from vlmdata.places import is_remote

__all__ = ["locked"]


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder's lock; the system gives it back however this process ends. On an object store there is none.

    Args:
        folder: what is locked.
        shared: others may hold it so as well; nobody may hold it alone meanwhile.

    Raises:
        OutputExistsError: another process holds it.
    """
    if is_remote(folder):  # object stores have no locks
        yield
        return
    path = folder.parent / f".{folder.name}.lock"
    with path.open("ab") as file:
        try:
            _lock(file.fileno(), shared)
        except OSError:
            raise OutputExistsError(f"another run is writing to {folder}; wait for it, or give another --out") from None
        try:
            yield
        finally:
            # On Windows an open file cannot be removed; an unlocked leftover does no harm.
            if not shared and sys.platform != "win32":
                path.unlink(missing_ok=True)


def _lock(descriptor: int, shared: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    # Between opening and locking the former holder may have removed the file: then this lock guards nothing.
    if os.fstat(descriptor).st_nlink == 0:
        raise BlockingIOError
