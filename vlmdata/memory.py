"""Keeping the memory of a long run flat."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["release", "share_arenas"]

_M_ARENA_MAX = -8


def share_arenas() -> None:
    """Let all threads of this process allocate from two pools of memory, where the C library has a pool a thread.

    Images are allocated in one thread and freed in another; each pool would keep its largest amount for itself. Without
    glibc nothing is done. For processes of our own: it holds for all that runs in the process.
    """
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
        except (AttributeError, OSError):  # another C library
            return


def release() -> None:
    """Give back to the system what is allocated and not used; between two shards, where most of it is."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError):
            return
