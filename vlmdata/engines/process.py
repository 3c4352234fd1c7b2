"""Tasks in a pool of processes on this machine, started afresh (spawn), so they share nothing with the caller."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing.connection import wait
from typing import Any

from vlmdata.engine import Outcomes
from vlmdata.errors import DataError
from vlmdata.memory import share_arenas
from vlmdata.plan import Task
from vlmdata.work import Job, Outcome, Report, run_task

__all__ = ["run"]

_POLL_SECONDS = 0.2
_ATTEMPTS = 3
_rows_read: Any = None
_stopped: Any = None


class _Stopped(Exception):
    """The caller wants no more results."""


def run(job: Job, tasks: Sequence[Task], workers: int, report: Report, address: str | None) -> Outcomes:
    """Outcomes in the order of the tasks, whichever is finished first; tasks of a killed worker are run again.

    Raises:
        DataError: workers are killed again and again.
    """
    waiting = list(tasks)
    for _ in range(_ATTEMPTS):
        told = 0

        def tell(rows: int) -> None:
            nonlocal told
            report(rows)
            told += rows

        finished = 0
        try:
            with closing(_pooled(job, waiting, workers, tell)) as outcomes:
                for outcome in outcomes:
                    finished += outcome.read
                    del waiting[0]
                    yield outcome
            return
        except BrokenProcessPool:
            report(finished - told)  # what the lost tasks had read will be read again
    raise DataError(
        f"worker processes were killed {_ATTEMPTS} times, most likely because memory ran out; "
        "run it again with --resume and fewer --workers"
    )


def _pooled(job: Job, tasks: Sequence[Task], workers: int, report: Report) -> Outcomes:
    """Outcomes from one pool, as long as it holds."""
    context = multiprocessing.get_context("spawn")
    rows_read, stopped = context.Value("q", 0), context.Event()
    told = 0

    def tell() -> None:
        nonlocal told
        now = rows_read.value
        report(now - told)
        told = now

    with ProcessPoolExecutor(workers, context, _start, (rows_read, stopped)) as pool:
        try:
            with _none_left_behind(pool):
                # Workers start here; Ctrl-C is held back, in them too, until they are ready to leave it to the caller.
                with _without_interrupts():
                    futures = [pool.submit(_run_counted, job, task) for task in tasks]
                for future in futures:
                    outcome = _await(future, tell)
                    tell()
                    yield outcome
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _none_left_behind(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End all workers of a pool that breaks.

    upstream bug: Python 3.11's pool ends those it knows of when one is killed; a worker that is started at this very
    moment is none of them, and the pool then waits for it for ever.
    """
    try:
        yield
    except BrokenProcessPool:
        for worker in list((vars(pool).get("_processes") or {}).values()):
            worker.kill()
        raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back, where the system can."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _await(future: Future[Outcome], tell: Callable[[], None]) -> Outcome:
    while not wait_for([future], timeout=_POLL_SECONDS).done:
        tell()
    return future.result()


def _start(rows_read: Any, stopped: Any) -> None:
    """Prepare a worker: the caller handles Ctrl-C, and a worker never outlives the caller."""
    global _rows_read, _stopped
    _rows_read, _stopped = rows_read, stopped
    share_arenas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run_counted(job: Job, task: Task) -> Outcome:
    def report(rows: int) -> None:
        with _rows_read.get_lock():
            _rows_read.value += rows
        if _stopped.is_set():
            raise _Stopped

    return run_task(job, task, report)
