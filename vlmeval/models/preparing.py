"""Items to what a model takes: pictures opened, texts encoded. Nothing here touches the model: a thread can do it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vlmdata.errors import DataError, VlmError
from vlmeval.models.pictures import Pictures
from vlmeval.models.questions import turns_of
from vlmeval.task import Item, Response

__all__ = ["Prepared", "Reader", "refused"]


class Prepared(NamedTuple):
    """A batch ready for the model: the items that can be shown, and answers of those that cannot."""

    items: list[Item]
    inputs: Any
    failed: list[Response]


class Reader:
    """Opens and encodes items."""

    def __init__(self, pictures: Pictures, encoder: Any, suffix: str, *, classifies: bool) -> None:
        """Take what it is done with.

        Args:
            pictures: of the items.
            encoder: ``vlmtrain.questions.Questions``, or a classifier's image processor.
            suffix: added to every prompt.
            classifies: which of them it is.
        """
        self.pictures, self.encoder, self.suffix, self.classifies = pictures, encoder, suffix, classifies
        self._one = threading.Lock()
        self._grouped: Callable[[Sequence[Item]], Prepared] = self._prepare
        self._shares: Callable[[Sequence[Item]], bool] = lambda batch: False

    def share(self, prepare: Callable[[Sequence[Item]], Prepared], shares: Callable[[Sequence[Item]], bool]) -> None:
        """Let another prepare the batches of which ``shares`` is true."""
        self._grouped, self._shares = prepare, shares

    def prepare(self, batch: Sequence[Item]) -> Prepared:
        """A batch, one at a time; items that cannot be opened or encoded become failed answers."""
        with self._one:
            return (self._grouped if self._shares(batch) else self._prepare)(batch)

    def plain(self, batch: Sequence[Item]) -> Prepared:
        """A batch whose items share nothing, whatever they could."""
        with self._one:
            return self._prepare(batch)

    def _prepare(self, batch: Sequence[Item]) -> Prepared:
        shown: list[Item] = []
        pictures: list[list[Any]] = []
        failed: list[Response] = []
        for item in batch:
            try:
                if fault := self._fault(item):
                    raise DataError(fault)
                pictures.append([self.pictures.open(name) for name in item.images])
                shown.append(item)
            except VlmError as error:
                failed.append(refused(item, error))
        try:
            return Prepared(shown, self._encode(shown, pictures), failed)
        except (VlmError, ValueError) as error:
            if len(shown) == 1:
                return Prepared([], None, [*failed, refused(shown[0], error)])
        # One of them stands in the way: each alone tells which.
        good: list[int] = []
        for place, (item, own) in enumerate(zip(shown, pictures, strict=True)):
            try:
                self._encode([item], [own])
                good.append(place)
            except (VlmError, ValueError) as error:
                failed.append(refused(item, error))
        kept = [shown[place] for place in good]
        return Prepared(kept, self._encode(kept, [pictures[place] for place in good]), failed)

    def _fault(self, item: Item) -> str | None:
        if self.classifies:
            return None if len(item.images) == 1 else f"{len(item.images)} images; an image classifier takes one"
        ranked = item.kind == "choice"
        if ranked and not item.choices:
            return "no answers to choose from"
        fault: str | None = self.encoder.fault(turns_of(item), len(item.images), item.choices if ranked else ())
        return fault

    def _encode(self, items: Sequence[Item], pictures: Sequence[list[Any]]) -> Any:
        if not items:
            return None
        if self.classifies:
            return self.encoder(images=[own[0] for own in pictures], return_tensors="pt")
        turns = [turns_of(item, self.suffix) for item in items]
        if items[0].kind == "choice":
            return self.encoder.rows(turns, pictures, [item.choices for item in items])
        return self.encoder.prompts(turns, pictures)


def refused(item: Item, error: Exception) -> Response:
    """An item that cannot be asked, and why."""
    return Response(item.id, None, error=" ".join(str(error).split()))
