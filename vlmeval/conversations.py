"""Rows of a converted dataset as questions: an answer of each is the truth, the turns before it are asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vlmdata.errors import DataError, choices
from vlmeval.shardset import ShardSet
from vlmeval.task import Item, Option

__all__ = ["Asked", "GROUP_BY", "NONE", "TURNS", "asked", "spoken"]

ANSWERS = "answers"
"""Key of a row's meta with further right answers, a list of texts."""

NONE = "(none)"
"""The value of a facet that a row does not have."""

TURNS = Option("turns", "Ask the last answer of a conversation, or each of them.", "last", ("last", "each"))
GROUP_BY = Option("group-by", "Show figures by the values of this key of the rows' meta (or: source).")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a dataset asks.

    Attributes:
        items: their ``target`` is the list of right answers, the row's own first.
        rows: how many answers they were made from; several on the same prompt can be one item.
        notes: what a reader of the report must be told.
    """

    items: tuple[Item, ...]
    rows: int
    notes: tuple[str, ...]


def asked(
    found: ShardSet,
    group: str,
    kind: Literal["answer", "text"],
    *,
    join: bool = False,
    each: bool = False,
    by: str | None = None,
) -> Asked:
    """Items of all rows that hold an answer.

    Args:
        found: a messages dataset.
        group: of the report, the same for all items.
        kind: how long answers are.
        join: answers to the same images and the same turns are one item with several right answers.
        each: every answer of a conversation is asked, those before it standing as they are in the data; else the last.
        by: a key of the rows' meta (of nested objects with points between), or ``source``; its value is a facet.

    Raises:
        DataError: no row holds an answer, or none has ``by``.
    """
    items: dict[Any, Item] = {}
    rows = silent = passed = valued = 0
    keys: Counter[str] = Counter()
    for row in found.rows(["messages", "meta", *(["source"] if by else ())]):
        turns, meta = row["messages"], _meta(row["meta"])
        keys.update(meta.keys())
        places = [place for place, turn in enumerate(turns) if place and turn["role"] == "assistant"]
        places = [place for place in places if spoken(turns[place]["content"])]
        silent += not places
        passed += 0 if each else max(0, len(places) - 1)
        facets = {}
        if by is not None:
            value = _value(meta, by)
            value = row["source"] if value is None and by == "source" else value
            valued += value is not None and bool(places)
            facets = {by: NONE if value is None else value}
        for number, item in enumerate(_items(row, places if each else places[-1:], meta, group, kind), 1):
            rows += 1
            one = replace(item, id=f"{item.id}/{number}" if each and len(places) > 1 else item.id, facets=facets)
            key = json.dumps([one.images, one.turns]) if join else len(items)
            if key in items:
                items[key].target.extend(one.target)
            else:
                items[key] = one
    if not items:
        raise DataError(f"no row of {found.folder} holds an answer to compare with")
    if by is not None and not valued:
        known = f"its rows' keys: {choices([*sorted(keys), 'source'])}"
        raise DataError(f"no row of {found.folder} has {by!r} in its meta; {known}")
    return Asked(tuple(items.values()), rows, (*found.notes, *_notes(silent, passed)))


def _notes(silent: int, passed: int) -> Iterator[str]:
    if silent:
        yield f"{silent} rows without an answer to compare with are not asked."
    if passed:
        yield f"{passed} earlier answers of conversations are shown as they are, not asked."


def _items(
    row: Mapping[str, Any], places: Sequence[int], meta: Mapping[str, Any], group: str, kind: Literal["answer", "text"]
) -> Iterator[Item]:
    last = max(places, default=0)
    for place in places:
        before = tuple(row["messages"][:place])
        images = tuple(row["image_sha256"])[: _shown(before)]
        # Further right answers are those of the row's own, its last.
        right = [spoken(row["messages"][place]["content"]), *(_more(meta) if place == last else ())]
        yield Item(row["id"], spoken(before[-1]["content"]), images, right, (group,), kind, before)


def spoken(content: Sequence[Mapping[str, Any]]) -> str:
    """The text of a turn's content, without its images; parts on lines of their own."""
    return "\n".join(part["text"] for part in content if part["type"] == "text" and part["text"]).strip()


def _shown(turns: Sequence[Mapping[str, Any]]) -> int:
    return sum(part["type"] == "image" for turn in turns for part in turn["content"])


def _meta(text: str | None) -> Mapping[str, Any]:
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {}


def _more(meta: Mapping[str, Any]) -> list[str]:
    listed = meta.get(ANSWERS)
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


def _value(meta: Mapping[str, Any], key: str) -> str | None:
    """The value of a key as a text: of an object its JSON, of a list its texts with commas between."""
    found: Any = meta.get(key)
    if found is None:
        found = meta
        for step in key.split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
    if found is None or found == "" or found == []:
        return None
    if isinstance(found, list):
        return ", ".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in found)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, sort_keys=True)
