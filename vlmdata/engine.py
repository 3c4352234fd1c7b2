"""Ways to run the tasks of a conversion, found by the file names in ``vlmdata/engines``.

An engine is ``run(job, tasks, workers, report, address) -> Generator[Outcome]``: outcomes in the order of the tasks,
whichever is finished first. All run the same function, so all write the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from vlmdata.leaves import leaf_names, load_leaf
from vlmdata.plan import Task
from vlmdata.work import Job, Outcome, Report

__all__ = ["Engine", "Outcomes", "engine_names", "load_engine"]

Outcomes = Generator[Outcome, None, None]
Engine = Callable[[Job, Sequence[Task], int, Report, str | None], Outcomes]


def engine_names() -> list[str]:
    """All engines, sorted; nothing is imported."""
    return leaf_names("vlmdata.engines")


def load_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        MissingError: there is no such engine.
    """
    run: Engine = load_leaf("vlmdata.engines", name, "run", "engine")
    return run
