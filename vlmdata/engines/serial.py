"""One task after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.engine import Outcomes
from vlmdata.plan import Task
from vlmdata.work import Job, Report, run_task

__all__ = ["run"]


def run(job: Job, tasks: Sequence[Task], workers: int, report: Report, address: str | None) -> Outcomes:
    """Outcomes in the order of the tasks."""
    for task in tasks:
        yield run_task(job, task, report)
