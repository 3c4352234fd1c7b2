"""What a source of answers is: a local model, a server, or a file."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from vlmeval.task import Item, Response

__all__ = ["Batched", "Model"]


class Model(Protocol):
    """Something that answers items."""

    @property
    def name(self) -> str:
        """What progress and errors call it."""

    def describe(self) -> dict[str, Any]:
        """Everything that can change an answer; a resumed run compares it. Holds ``kind``."""

    def environment(self) -> dict[str, Any]:
        """What is not meant to change an answer: versions, device, batch size. Recorded, never compared."""

    def load(self) -> None:
        """Make it ready; nothing long happens before.

        Raises:
            VlmError: it cannot be had.
        """

    def answer(self, items: Sequence[Item], done: Container[int | str] = ()) -> Iterator[list[Response]]:
        """Answer the items that are not done, in batches; each is on disk before the next is asked for.

        Batches are cut from all items, so that an interrupted run goes on with the batches it would have had.

        Raises:
            VlmError: nothing more can be answered; an item that alone cannot be is a Response with an ``error``.
        """


@runtime_checkable
class Batched(Protocol):
    """A model that computes several items together, so that what shares a batch may show in the last digit."""

    def batches(self, items: Sequence[Item]) -> Sequence[Sequence[Item]]:
        """How ``answer`` cuts these items, once loaded; what several processes share among them."""
