"""Working one step ahead in a thread, for work that releases Python's lock: decoding Parquet, hashing, images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead", "map_ahead"]

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items; the next one is being made while one is worked on."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming: Future[T | object] = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def map_ahead(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """``map(work, items)`` in threads, in order, with at most two items for each thread waiting or done."""
    with ThreadPoolExecutor(threads, thread_name_prefix="work") as pool:
        coming: deque[Future[R]] = deque()
        for item in items:
            coming.append(pool.submit(work, item))
            if len(coming) > 2 * threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
