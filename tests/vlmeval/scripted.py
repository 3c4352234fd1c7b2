"""A model that says what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from vlmeval.task import Item, Response

BATCH = 5


class Scripted:
    """Answers five items at a time, in the order they come."""

    name = "scripted"

    def __init__(self, say: Callable[[Item], Response] | None = None, **known: Any) -> None:
        self.say = say or (lambda item: Response(item.id, "a dog" if item.kind == "text" else "No"))
        self.known = known
        self.loads = 0
        self.asked: list[list[int | str]] = []

    def describe(self) -> dict[str, Any]:
        return {"kind": "scripted", "model": "scripted", **self.known}

    def environment(self) -> dict[str, Any]:
        return {"batch_size": BATCH, "device": "none", "versions": {}}

    def load(self) -> None:
        self.loads += 1

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        return [list(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]

    def answer(self, items: Sequence[Item], done: Container[int | str] = ()) -> Iterator[list[Response]]:
        for whole in self.batches(items):
            batch = [item for item in whole if item.id not in done]
            if batch:
                self.asked.append([item.id for item in batch])
                yield [self.say(item) for item in batch]
