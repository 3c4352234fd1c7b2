"""Items that share images to token ids, every image opened and processed once. A thread can do it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vlmdata.errors import DataError, VlmError
from vlmeval.models.pictures import Pictures
from vlmeval.models.preparing import Prepared, refused
from vlmeval.models.questions import turns_of
from vlmeval.task import Item, Response

__all__ = ["PrefixReader", "Row", "Seen"]


class Seen:
    """Images as the processor has seen them; known by itself, not by what it holds.

    Attributes:
        batch: the encoding of a row that shows them: the pixels, and what stands for them in the text.
    """

    def __init__(self, batch: Mapping[str, Any]) -> None:
        """Keep it."""
        self.batch = batch


class Row(NamedTuple):
    """An item as the model takes it: ``input_ids`` ``[1, T]`` and what else there is for each token; its images."""

    tokens: Mapping[str, Any]
    seen: Seen


class PrefixReader:
    """Encodes items that share images."""

    def __init__(self, pictures: Pictures, encoder: Any, suffix: str, capacity: int) -> None:
        """Take what it is done with.

        Args:
            pictures: of the items.
            encoder: ``vlmtrain.questions.Questions``.
            suffix: added to every prompt.
            capacity: how many items' images are kept.
        """
        self.pictures, self.encoder, self.suffix, self.capacity = pictures, encoder, suffix, capacity
        self._kept: OrderedDict[tuple[str, ...], Seen] = OrderedDict()

    def prepare(self, batch: Sequence[Item]) -> Prepared:
        """A batch whose ``inputs`` are a :class:`Row` for each item; what cannot be shown is a failed answer."""
        items: list[Item] = []
        rows: list[Row] = []
        lost: list[Response] = []
        for item in batch:
            try:
                rows.append(self._row(item))
                items.append(item)
            except (VlmError, ValueError) as error:
                lost.append(refused(item, error))
        return Prepared(items, rows, lost)

    def _row(self, item: Item) -> Row:
        if fault := self.encoder.fault(turns_of(item), len(item.images)):
            raise DataError(fault)
        turns = turns_of(item, self.suffix)
        seen = self._kept.get(item.images)
        if seen is None:
            opened = [self.pictures.open(name) for name in item.images]
            seen = Seen(self.encoder.shown(turns, opened))
            while len(self._kept) >= self.capacity:
                self._kept.popitem(last=False)
            self._kept[item.images] = seen
        self._kept.move_to_end(item.images)
        return Row(self.encoder.asked(turns, len(item.images), seen.batch), seen)
