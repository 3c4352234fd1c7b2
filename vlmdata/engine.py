"""Ways to run the tasks of a conversion, found by the file names in ``vlmdata/engines``.

An engine is ``run(job, tasks, workers, report, address) -> Generator[Outcome]``: outcomes in the order of the tasks,
whichever is finished first. All run the same function, so all write the same bytes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Generator, Sequence

from vlmdata.errors import ConfigError, choices
from vlmdata.plan import Task
from vlmdata.work import Job, Outcome, Report

__all__ = ["Engine", "Outcomes", "engine_names", "load_engine"]

Outcomes = Generator[Outcome, None, None]
Engine = Callable[[Job, Sequence[Task], int, Report, str | None], Outcomes]


def engine_names() -> list[str]:
    """All engines, sorted; nothing is imported."""
    import vlmdata.engines as package

    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        ConfigError: there is no such engine.
    """
    if name not in engine_names():
        raise ConfigError(f"no engine named {name!r}; valid: {choices(engine_names())}")
    run: Engine = importlib.import_module(f"vlmdata.engines.{name}").run
    return run
