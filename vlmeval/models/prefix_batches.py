"""Which questions share their image, and batches that have them one after the other. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from vlmdata.errors import VlmError
from vlmeval.models.batching import batches, pieces
from vlmeval.models.questions import turns_of
from vlmeval.task import Item

__all__ = ["Beginning", "cut", "shared"]

Beginning = Callable[[Sequence[Mapping[str, Any]]], str]
_GENERATED = ("answer", "text")


def shared(items: Sequence[Item], beginning: Beginning, suffix: str) -> set[int | str]:
    """Ids of the items that have their images, and the text before them, in common with another one.

    Args:
        items: all of them.
        beginning: of a conversation, what stands up to its last image as it is written for the model; empty for none.
        suffix: added to every prompt.
    """
    told = {item.id: _beginning(item, beginning, suffix) for item in items}
    counted = Counter(told.values())
    return {ident for ident, key in told.items() if key is not None and counted[key] > 1}


def _beginning(item: Item, beginning: Beginning, suffix: str) -> Hashable | None:
    if not item.images or item.kind not in _GENERATED:
        return None
    try:
        text = beginning(turns_of(item, suffix))
    except (VlmError, ValueError):
        # What cannot be written fails alone, when it is asked.
        return None
    return (item.images, text) if text else None


def cut(
    items: Sequence[Item],
    size: int,
    sharing: set[int | str],
    *,
    kind: Callable[[Item], Hashable],
    length: Callable[[Item], int],
) -> list[list[Item]]:
    """Cut items into batches of one kind.

    Those that share an image follow each other within a kind, however long they are, and a batch of another kind comes
    right after the last image that it needs: a caption when the questions on its image have just been asked. All
    others are cut by :func:`vlmeval.models.batching.batches`.

    Args:
        items: all of them.
        size: most items of a batch.
        sharing: ids of those that share.
        kind: what the items of a batch must agree in.
        length: of an item that does not share.
    """
    alone = [item for item in items if item.id not in sharing]
    found = list(batches(alone, size, kind=kind, length=length))
    rank = {images: place for place, images in enumerate(dict.fromkeys(item.images for item in items))}
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        if item.id in sharing:
            groups.setdefault(kind(item), []).append(item)
    together = [
        batch for group in groups.values() for batch in pieces(sorted(group, key=lambda item: rank[item.images]), size)
    ]
    return [*sorted(together, key=lambda batch: rank[batch[-1].images]), *found]
