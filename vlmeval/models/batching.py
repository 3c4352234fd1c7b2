"""Items cut into batches, and work done ahead of the one that waits for it. Standard library only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from vlmeval.task import Item

__all__ = ["ahead", "batches", "pieces"]

T = TypeVar("T")
R = TypeVar("R")
_WINDOW = 16


def batches(
    items: Sequence[Item],
    size: int,
    *,
    kind: Callable[[Item], Hashable] = lambda item: item.kind,
    length: Callable[[Item], int] = lambda item: len(item.prompt),
) -> Iterator[list[Item]]:
    """Cut items into batches of one kind, of similar length, with the items of an image near each other.

    Args:
        items: all of them.
        size: most items of a batch.
        kind: what the items of a batch must agree in.
        length: of an item, in whatever unit; items of up to 16 batches that stand near each other are sorted by it.
    """
    rank = {cluster: place for place, cluster in enumerate(dict.fromkeys(item.cluster for item in items))}
    for wanted in dict.fromkeys(kind(item) for item in items):
        group = sorted((item for item in items if kind(item) == wanted), key=lambda item: rank[item.cluster])
        window = size * _WINDOW
        for start in range(0, len(group), window):
            near = sorted(group[start : start + window], key=length)
            yield from pieces(near, size)


def pieces(batch: Sequence[T], size: int) -> Iterator[list[T]]:
    """Consecutive parts of at most that many."""
    for start in range(0, len(batch), size):
        yield list(batch[start : start + size])


def ahead(work: Callable[[T], R], jobs: Iterable[T], depth: int) -> Iterator[R]:
    """The results of all jobs, in order, up to ``depth`` of them made before they are asked for, in one thread.

    Args:
        work: what makes a result; its error comes up where the result is asked for.
        jobs: taken one by one, each when there is room for it.
        depth: results that may wait; 0 makes each when it is asked for, without a thread.
    """
    if not depth:
        yield from map(work, jobs)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="vlmeval-ahead")
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
