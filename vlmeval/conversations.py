"""Rows of a converted dataset as questions: the last answer of each is the truth, the turns before it are asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlmeval.shardset import ShardSet
from vlmeval.task import Item

__all__ = ["Asked", "asked"]

ANSWERS = "answers"
"""Key of a row's meta with further right answers, a list of texts."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a dataset asks.

    Attributes:
        items: their ``target`` is the list of right answers, the row's own first.
        rows: how many rows they were made from; several rows on the same prompt can be one item.
        notes: what a reader of the report must be told.
    """

    items: tuple[Item, ...]
    rows: int
    notes: tuple[str, ...]


def asked(found: ShardSet, group: str, kind: Literal["answer", "text"], *, join: bool = False) -> Asked:
    """Items of all rows that hold an answer.

    Args:
        found: a messages dataset.
        group: of the report, the same for all items.
        kind: how long answers are.
        join: rows with the same images and the same turns before the answer are one item with several right answers.
    """
    items: dict[Any, Item] = {}
    seen: Counter[str] = Counter()
    rows = silent = 0
    for row in found.rows(["meta"]):
        turns = row["messages"]
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
        truth = _text(turns[last]["content"]).strip()
        if not last or not truth:
            silent += 1
            continue
        rows += 1
        before = tuple(turns[:last])
        images = tuple(row["image_sha256"])[: _places(before)]
        right = [truth, *_more(row["meta"])]
        key = json.dumps([images, before]) if join else len(items)
        if key in items:
            items[key].target.extend(right)
            continue
        seen[row["id"]] += 1
        # Rows of a mixture may share an id; answers join by it.
        ident = row["id"] if seen[row["id"]] == 1 else f"{row['id']}#{seen[row['id']]}"
        prompt = _text(before[-1]["content"]).strip()
        items[key] = Item(ident, prompt, images, right, (group,), kind, before)
    notes = (f"{silent} rows without an answer to compare with are not asked.",) if silent else ()
    return Asked(tuple(items.values()), rows, notes)


def _text(content: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(part["text"] for part in content if part["type"] == "text" and part["text"])


def _places(turns: Sequence[Mapping[str, Any]]) -> int:
    return sum(part["type"] == "image" for turn in turns for part in turn["content"])


def _more(meta: str | None) -> list[str]:
    found = json.loads(meta) if meta else {}
    listed = found.get(ANSWERS) if isinstance(found, dict) else None
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
