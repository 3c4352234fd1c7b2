"""Many requests in flight at once, in an event loop of their own thread: works inside notebooks, and ends at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Background", "completed"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_AHEAD = 4
_LAST_SECONDS = 2.0


class Background:
    """An event loop in a daemon thread, as a context manager; what still runs at its end is cancelled."""

    def __enter__(self) -> Background:
        """Start the thread."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="vlmeval-requests", daemon=True)
        self._thread.start()
        return self

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run a coroutine there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what runs, give it two seconds to close its connections, and end the thread."""
        ended = self.start(_cancel_others())
        try:
            ended.result(_LAST_SECONDS)
        except TimeoutError:
            return  # The thread is a daemon: what cannot be cancelled holds nobody up.
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_LAST_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _Ended:
    """Marks that no result will follow."""


class _Flight(Generic[Job, Result]):
    """Jobs taken from one list by several workers, never further ahead of the consumer than a few rounds."""

    def __init__(self, jobs: Sequence[Job], work: Callable[[Job], Awaitable[Result]], concurrency: int) -> None:
        self.jobs, self.work, self.workers = jobs, work, min(concurrency, len(jobs))
        self.finished: SimpleQueue[Result | _Ended] = SimpleQueue()
        self.room = asyncio.Semaphore(_AHEAD * concurrency)

    async def run(self, around: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        waiting = iter(self.jobs)

        async def worker() -> None:
            for job in waiting:
                await self.room.acquire()
                self.finished.put(await self.work(job))

        async with around():
            workers = [asyncio.create_task(worker()) for _ in range(self.workers)]
            try:
                await asyncio.gather(*workers)
            finally:
                for task in workers:
                    task.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    def taken(self, count: int) -> None:
        for _ in range(count):
            self.room.release()

    def gather(self, batch: list[Result]) -> bool:
        """Wait for a result and take all there are; whether that was the end."""
        found = self.finished.get()
        while not isinstance(found, _Ended):
            batch.append(found)
            try:
                found = self.finished.get_nowait()
            except Empty:
                return False
        return True


def completed(
    jobs: Sequence[Job],
    work: Callable[[Job], Awaitable[Result]],
    *,
    concurrency: int,
    around: Callable[[], AbstractAsyncContextManager[Any]],
) -> Iterator[list[Result]]:
    """Results in the order they are ready, in lists of all that are ready at that moment.

    Args:
        jobs: started in this order.
        work: makes a job's result; runs in another thread's event loop.
        concurrency: how many jobs run at a time. At most four times as many results wait to be taken.
        around: is entered before the first job, in that event loop, and left after the last.

    Raises:
        Exception: the first that ``work`` raised; results that were ready by then are given first, the rest is
            cancelled. So are they at an interruption from the keyboard, which comes through.
    """
    with Background() as background:
        flight = _Flight(jobs, work, concurrency)
        running = background.start(flight.run(around))
        running.add_done_callback(lambda _: flight.finished.put(_Ended()))
        ended = False
        while not ended:
            batch: list[Result] = []
            try:
                ended = flight.gather(batch)
            except KeyboardInterrupt:
                if batch:
                    yield batch
                raise
            if batch:
                yield batch
            background.loop.call_soon_threadsafe(flight.taken, len(batch))
        running.result()
