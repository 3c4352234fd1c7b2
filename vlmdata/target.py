"""What an export target is, and how targets are found: by the file names in ``vlmdata/exports``.

Every row of an export carries what the tool has no field for in one extra field, ``vlmdata``, as JSON text: text,
because tools load JSON Lines with one type per column, and because a name with "image" in it would be taken for a
column of images by some. See ``extras`` for what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlmdata.errors import RecordError
from vlmdata.leaves import leaf_names, load_leaf
from vlmdata.marked import find_mark, join, layout, text_runs

__all__ = [
    "DataFile",
    "EXTRA",
    "Exported",
    "REFUSALS",
    "RefusedRow",
    "Row",
    "Target",
    "Texts",
    "extras",
    "load",
    "names",
    "plain_row",
    "strict_turns",
]

EXTRA = "vlmdata"

REFUSALS = {
    "literal_mark": "a text holds a mark that the tool would replace; --literal-mark escape keeps such rows",
    "turn_order": "user and assistant do not take turns, which the tool asks for",
    "system_turn": "the tool takes no system turn",
    "tool_turn": "the tool takes no tool turn",
    "several_images": "the tool takes one image a row",
    "image_place": "the tool puts the image before the text of its turn, here it stands elsewhere",
    "answer_turns": "an answer has several turns, the tool takes one",
    "same_answers": "chosen and rejected are the same text",
}

_TEXTS = ("messages", "prompt", "chosen", "rejected")

Row = Mapping[str, Any]


class RefusedRow(RecordError):
    """A target cannot hold a row; the reason is a word of ``REFUSALS``."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of rows.

    Attributes:
        name: in the export's folder.
        rows: in it.
        bytes: its size.
        sha256: of the whole file.
    """

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Exported:
    """What a target's config files may tell.

    Attributes:
        name: of the dataset; letters, digits, ``_`` and ``-`` only.
        kind: ``messages`` or ``preference``.
        form: the form that was asked for, of targets that have several.
        files: the files of rows.
    """

    name: str
    kind: str
    form: str | None
    files: tuple[DataFile, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """One training tool.

    Attributes:
        container: ``jsonl`` is one row a line, ``json`` one list, both with the images as files beside; ``tar`` is
            WebDataset shards; ``parquet`` keeps the columns of the shards.
        kinds: which shards it takes.
        summary: one line.
        url: documentation of the format.
        usage: Markdown for the export's README; ``{name}`` is the dataset's name.
        row: (shard row, names of its images, escape literal marks) to the object that is written; raises RefusedRow.
            None for ``parquet``.
        files: config files, by name.
        marks: what the tool replaces in texts, so that no text may hold it; none where images are parts.
        forms: forms of the columns to choose from, the default first.
        extra: rows have the ``vlmdata`` field.
    """

    container: Literal["jsonl", "json", "parquet", "tar"]
    kinds: frozenset[str]
    summary: str
    url: str
    usage: Callable[[Exported], str]
    row: Callable[[Row, Sequence[str], bool], dict[str, Any]] | None = None
    files: Callable[[Exported], Mapping[str, str]] = lambda exported: {}
    marks: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    extra: bool = False


class Texts:
    """The turns of one row as strings with marks; remembers what the strings cannot tell."""

    def __init__(self, marks: Sequence[str], *, escape: bool) -> None:
        """For one row.

        Args:
            marks: what the tool replaces.
            escape: escape marks in texts; else they are refused.
        """
        self._marks, self._escape = marks, escape
        self._layouts: dict[str, list[list[int] | None]] = {}
        self._escaped = False

    def turns(self, row: Row, column: str) -> list[str]:
        """The turns of a column.

        Raises:
            RefusedRow: ``literal_mark``.
        """
        turns = row[column]
        layouts = [layout(turn["content"]) for turn in turns]
        if any(found is not None for found in layouts):
            self._layouts[column] = layouts
        return [self._turn(column, turn) for turn in turns]

    def _turn(self, column: str, turn: Row) -> str:
        plain = join(turn["content"])
        if self._escape:
            value = join(turn["content"], self._marks)
            self._escaped |= value != plain
            return value
        for run in text_runs(turn["content"]):
            if found := find_mark(run, self._marks):
                raise RefusedRow("literal_mark", f"a {turn['role']} turn of {column} holds {found!r} as text")
        return plain

    def notes(self) -> dict[str, Any]:
        """What ``vlmdata.marked.split`` needs to give the parts back: ``layout`` by column, ``escaped``."""
        notes: dict[str, Any] = {"layout": self._layouts} if self._layouts else {}
        return notes | ({"escaped": True} if self._escaped else {})


def names() -> list[str]:
    """All target names, sorted; nothing is imported."""
    return leaf_names("vlmdata.exports")


def load(name: str) -> Target:
    """The target of that name.

    Raises:
        MissingError: there is no such target.
    """
    target: Target = load_leaf("vlmdata.exports", name, "TARGET", "export target")
    return target


def extras(row: Row, notes: Mapping[str, Any] | None = None) -> str:
    """The ``vlmdata`` field: everything of a row but its turns and image bytes, as JSON text.

    ``id``, ``source``, ``licence``, ``provenance``, ``meta`` (JSON text, as in the shards), ``image_sha256``,
    ``image_size``, ``image_path`` (where each image came from), ``label`` where there is one, and the notes of
    ``Texts``.
    """
    held = {name: value for name, value in row.items() if name != "images" and name not in _TEXTS}
    held["image_path"] = [image["path"] for image in row["images"]]
    return json.dumps({**held, **(notes or {})}, ensure_ascii=False, sort_keys=True)


def plain_row(row: Row, images: Sequence[str]) -> dict[str, Any]:
    """A row as JSON with the columns of the shards: the images by name, their parts as ``{"type": "image"}``."""
    plain: dict[str, Any] = {"id": row["id"], "images": list(images)}
    for column in _TEXTS:
        if column in row:
            plain[column] = [
                {"role": turn["role"], "content": [_plain_part(part) for part in turn["content"]]}
                for turn in row[column]
            ]
    plain |= {name: value for name, value in row.items() if name not in plain}
    plain["image_path"] = [image["path"] for image in row["images"]]
    return plain


def strict_turns(turns: Sequence[Row]) -> None:
    """Refuse turns that do not go user (or tool), assistant, user ... after an optional system turn.

    Raises:
        RefusedRow: ``turn_order``.
    """
    spoken = turns[1:] if turns[0]["role"] == "system" else turns
    for index, turn in enumerate(spoken):
        expected = ("assistant",) if index % 2 else ("user", "tool")
        if turn["role"] not in expected:
            roles = ", ".join(held["role"] for held in turns[:12])
            raise RefusedRow("turn_order", f"turn {index} is of {turn['role']}, expected {expected[0]}: {roles}")


def _plain_part(part: Row) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]}
