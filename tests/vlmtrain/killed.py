"""For the tests of what is taken up again: runs that die on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import TrainerCallback

__all__ = ["Died", "Kill", "deadly", "die", "killed_after", "killed_before"]


class Died(Exception):
    pass


def die() -> None:
    raise Died


class Kill(TrainerCallback):
    """Ends a run as soon as a step is done, before its figures are logged and its checkpoint is written."""

    def __init__(self, step: int, end: Callable[[], None] = die) -> None:
        self.step, self.end = step, end

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.end()


def deadly(method: Any, step: int, end: Callable[[], None] = die) -> Callable[[Any], Any]:
    """Make a method's trainers end after a step; gives back how they are made else."""
    plain: Callable[[Any], Any] = method.make_trainer

    def make(job: Any) -> Any:
        trainer = plain(job)
        trainer.add_callback(Kill(step, end))
        return trainer

    method.make_trainer = make
    return plain


@contextlib.contextmanager
def killed_after(method: Any, step: int) -> Iterator[None]:
    """What a method trains meanwhile dies as soon as that step is done, and has to."""
    plain = deadly(method, step)
    try:
        with pytest.raises(Died):
            yield
    finally:
        method.make_trainer = plain


@contextlib.contextmanager
def killed_before(method: Any, step: int) -> Iterator[None]:
    """What a method trains meanwhile dies in that step, when all that belongs to the one before is done."""
    plain = method.Trainer.training_step

    def dying(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == step - 1:
            raise Died
        return plain(trainer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        patch.setattr(method.Trainer, "training_step", dying)
        yield
