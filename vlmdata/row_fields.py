"""What can be asked of a row without opening an image: the fields that filters and expressions know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FIELDS", "Field", "Kind", "Values", "columns_of", "message_text"]

Kind = Literal["number", "text", "any"]
Row = Mapping[str, Any]

_TEXTS = ("messages", "prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    Attributes:
        kind: of its values.
        columns: the shard columns it is read from, where the kind of shards has them.
        value: from a shard row and the class names.
        help: what it is, in a few words.
    """

    kind: Kind
    columns: tuple[str, ...]
    value: Callable[[Row, Sequence[str]], Any]
    help: str


class Values:
    """The fields of one row, each worked out when it is first asked for."""

    def __init__(self, row: Row, label_names: Sequence[str]) -> None:
        """Of a shard row that has the columns of all fields that will be asked for."""
        self._row, self._names = row, label_names
        self._known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The value of a field."""
        if name not in self._known:
            self._known[name] = FIELDS[name].value(self._row, self._names)
        return self._known[name]

    def meta(self, key: str) -> Any:
        """An entry of the row's ``meta``; None where it has none."""
        if "meta" not in self._known:
            self._known["meta"] = json.loads(self._row["meta"])
        return self._known["meta"].get(key)


def columns_of(names: Iterable[str]) -> set[str]:
    """The shard columns that fields are read from."""
    return {column for name in names for column in FIELDS[name].columns}


def message_text(message: Row) -> str:
    """The text parts of a message, one a line."""
    return "\n".join(part["text"] for part in message["content"] if part["text"] is not None)


def _all_messages(row: Row) -> Iterator[Row]:
    return (message for name in _TEXTS for message in row.get(name) or ())


def _texts(messages: Iterable[Row], *roles: str) -> str:
    return "\n".join(message_text(message) for message in messages if not roles or message["role"] in roles)


def _question(row: Row, names: Sequence[str]) -> str:
    return _texts(row.get("messages") or row.get("prompt") or (), "user")


def _answer(row: Row, names: Sequence[str]) -> str:
    return _texts(row.get("messages") or row.get("chosen") or (), "assistant")


def _answer_chars(row: Row, names: Sequence[str]) -> int:
    if "messages" in row:
        return _chars(row["messages"], "assistant")
    return max(_chars(row[name], "assistant") for name in ("chosen", "rejected"))


def _chars(messages: Iterable[Row], role: str) -> int:
    texts = (part["text"] for message in messages if message["role"] == role for part in message["content"])
    return sum(len(text) for text in texts if text is not None)


def _turns(row: Row, names: Sequence[str]) -> int:
    turns: int = sum(message["role"] == "assistant" for message in row.get("messages") or row.get("prompt") or ())
    return turns + ("chosen" in row)


def _label(row: Row, names: Sequence[str]) -> str:
    label = row.get("label")
    return "" if label is None else str(names[label])


def _sizes(how: Callable[[int, int], Any], over: Callable[[Iterable[Any]], Any]) -> Callable[[Row, Sequence[str]], Any]:
    """A figure over the sizes of a row's images; 0 where it has none."""

    def value(row: Row, names: Sequence[str]) -> Any:
        sizes = row["image_size"]
        return over([how(size["width"], size["height"]) for size in sizes]) if sizes else 0

    return value


def _aspect(width: int, height: int) -> float:
    return max(width, height) / max(min(width, height), 1)


def _origin(name: str) -> Callable[[Row, Sequence[str]], str]:
    return lambda row, names: (row["provenance"] or {}).get(name) or ""


_SIZE = ("image_size",)
_ORIGIN = ("provenance",)
_QUESTION = ("messages", "prompt")

FIELDS: dict[str, Field] = {
    "id": Field("text", ("id",), lambda row, names: row["id"], "id of the row"),
    "source": Field("text", ("source",), lambda row, names: row["source"], "name of the source"),
    "licence": Field("text", ("licence",), lambda row, names: row["licence"], "licence of the row"),
    "dataset": Field("text", _ORIGIN, _origin("dataset"), "dataset the row came from"),
    "config": Field("text", _ORIGIN, _origin("config"), "its sub-dataset"),
    "file": Field("text", _ORIGIN, _origin("file"), "its raw file"),
    "label": Field("text", ("label",), _label, "class name; '' without one"),
    "images": Field("number", _SIZE, lambda row, names: len(row["image_size"]), "how many images"),
    "width": Field("number", _SIZE, _sizes(lambda width, height: width, max), "of the widest image"),
    "height": Field("number", _SIZE, _sizes(lambda width, height: height, max), "of the highest image"),
    "min_side": Field("number", _SIZE, _sizes(min, min), "shortest side of any image"),
    "max_side": Field("number", _SIZE, _sizes(max, max), "longest side of any image"),
    "pixels": Field("number", _SIZE, _sizes(lambda w, h: w * h, sum), "of all images together"),
    "min_pixels": Field("number", _SIZE, _sizes(lambda w, h: w * h, min), "of the smallest image"),
    "max_pixels": Field("number", _SIZE, _sizes(lambda w, h: w * h, max), "of the largest image"),
    "aspect": Field("number", _SIZE, _sizes(_aspect, max), "largest long side / short side"),
    "turns": Field("number", (*_QUESTION, "chosen"), _turns, "how many answers; a preference's two are one"),
    "question": Field("text", _QUESTION, _question, "texts of the user"),
    "answer": Field("text", ("messages", "chosen"), _answer, "texts of the assistant; the chosen answer"),
    "rejected": Field(
        "text", ("rejected",), lambda row, names: _texts(row.get("rejected") or ()), "the rejected answer, or ''"
    ),
    "text": Field("text", _TEXTS, lambda row, names: _texts(_all_messages(row)), "all texts"),
    "question_chars": Field(
        "number",
        _QUESTION,
        lambda row, names: _chars(row.get("messages") or row.get("prompt") or (), "user"),
        "characters of the user's texts",
    ),
    "answer_chars": Field(
        "number",
        ("messages", "chosen", "rejected"),
        _answer_chars,
        "characters of the assistant's texts; of the longer of two answers",
    ),
}
"""All fields by name."""
