"""Tasks as Ray core tasks, on this machine or a cluster; Ray runs those of a lost worker again.

Ray Core API: https://docs.ray.io/en/latest/ray-core/tasks.html. Plain tasks rather than Ray Data: its blocks are
joined into Arrow arrays whose 32-bit offsets images overflow (ray-project/ray issue 29492).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmdata.engine import Outcomes
from vlmdata.errors import ConfigError, DataError, DependencyError
from vlmdata.plan import Task
from vlmdata.work import Job, Outcome, Report, run_task

__all__ = ["run"]

_ATTEMPTS = 3


def run(job: Job, tasks: Sequence[Task], workers: int, report: Report, address: str | None) -> Outcomes:
    """Outcomes in the order of the tasks, whichever is finished first.

    Args:
        job: what the tasks share; its folders must be seen by every node.
        tasks: what to run.
        workers: how many run at once on a cluster of our own; on a running one, how many processors it gives decides.
        report: told of the rows of each finished task.
        address: of a running cluster; without it one is started here, and ended afterwards.

    Raises:
        DependencyError: Ray is not installed.
        ConfigError: the cluster cannot be reached.
        DataError: a task's worker was lost again and again.
    """
    try:
        import ray
    except ImportError:
        raise DependencyError("ray", "ray", "the engine ray") from None
    _connect(ray, address, workers)
    try:
        remote = ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(_run_quietly)
        shared = ray.put(job)
        futures = [remote.remote(shared, task) for task in tasks]
        for future in futures:
            try:
                outcome: Outcome = ray.get(future)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())[:160]
                raise DataError(f"a Ray worker was lost: {reason}; run it again with --resume") from None
            report(outcome.read)
            yield outcome
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str | None, workers: int) -> None:
    if ray.is_initialized():
        raise ConfigError("Ray is connected in this process already; end that with ray.shutdown() first")
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(
                num_cpus=max(1, workers), include_dashboard=False, log_to_driver=False, logging_level="ERROR"
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {reason}; check --ray-address") from None


def _run_quietly(job: Job, task: Task) -> Outcome:
    return run_task(job, task, lambda rows: None)
