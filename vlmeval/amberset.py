"""AMBER's own files, read and checked: annotations, queries, word lists, starting values.

The folder is ``data/`` of https://github.com/junyangwang0410/AMBER (or its parent), or anything in the same format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError, MissingError, choices

__all__ = ["AmberSet", "Annotation", "GROUPS", "PARTS", "locate", "pairs", "read"]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "generative": ("generative",),
    "discriminative-hallucination": ("discriminative", "existence"),
    "discriminative-attribute-state": ("discriminative", "attribute", "state"),
    "discriminative-attribute-number": ("discriminative", "attribute", "number"),
    "discriminative-attribute-action": ("discriminative", "attribute", "action"),
    "discriminative-relation": ("discriminative", "relation"),
    # The official annotations spell the relations that do not hold this way.
    "relation": ("discriminative", "relation"),
}
PARTS = ("all", "generative", "discriminative", "existence", "attribute", "relation")


@dataclass(frozen=True, slots=True)
class Annotation:
    """The truth of one item: ``yes`` or ``no``, or the words that are and are not in the image."""

    id: int
    groups: tuple[str, ...]
    truth: str | tuple[str, ...]
    hallu: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AmberSet:
    """One AMBER folder.

    Attributes:
        annotations: by id, in file order.
        queries: id to (image file, question); empty when the folder has no ``query/``.
        association: ``relation.json``.
        safe: ``safe_words.txt``.
        starts: ``metrics.txt``: where the official counters start; 0.001 for denominators it does not name.
        data: file name to sha256.
    """

    annotations: Mapping[int, Annotation]
    queries: Mapping[int, tuple[str, str]]
    association: Mapping[str, tuple[str, ...]]
    safe: frozenset[str]
    starts: Mapping[str, float]
    data: Mapping[str, str]


def locate(folder: Path) -> Path:
    """The folder that holds ``annotations.json``: the given one or its ``data/``.

    Raises:
        MissingError: neither does.
    """
    for place in (folder, folder / "data"):
        if (place / "annotations.json").is_file():
            return place
    raise MissingError(
        f"no AMBER data in {folder}: expected {folder / 'annotations.json'} or {folder / 'data' / 'annotations.json'}; "
        "give --data the folder of the official files, or make a small one with vlmdata sample"
    )


def read(folder: Path) -> AmberSet:
    """Read and check an AMBER folder.

    Raises:
        MissingError: a file is not there.
        DataError: a file is not what it should be.
    """
    place = locate(folder)
    data: dict[str, str] = {}
    rows = _json(place / "annotations.json", list, data)
    association = _association(place / "relation.json", data)
    safe = frozenset(line for line in _text(place / "safe_words.txt", data).splitlines() if line)
    starts = _starts(place / "metrics.txt", data) if (place / "metrics.txt").is_file() else {}
    annotations: dict[int, Annotation] = {}
    for number, row in enumerate(rows, 1):
        note = _annotation(row, f"{place / 'annotations.json'}, item {number}", association)
        if note.id in annotations:
            raise DataError(f"{place / 'annotations.json'}, item {number}: id {note.id} stands there twice")
        annotations[note.id] = note
    return AmberSet(annotations, _queries(place, data), association, safe, starts, data)


def pairs(amber: AmberSet) -> list[tuple[int, int]]:
    """Ids of questions that ask the same thing both ways: "Is the sky sunny?", "Is the sky gloomy?".

    The data do not name them; they are attribute questions that follow each other in the file, of one image and one
    type, one true and one not. In the official data all 7,628 attribute questions are such pairs, 3,814 of them.
    Without queries the images are not known, and there are none.
    """
    found = []
    before: Annotation | None = None
    for note in amber.annotations.values():
        if before is not None and _complementary(amber, before, note):
            found.append((before.id, note.id))
            before = None
        else:
            before = note
    return found


def _complementary(amber: AmberSet, one: Annotation, other: Annotation) -> bool:
    images = [amber.queries[note.id][0] if note.id in amber.queries else None for note in (one, other)]
    alike = (
        one.groups == other.groups and "attribute" in one.groups and images[0] is not None and images[0] == images[1]
    )
    return alike and one.truth != other.truth


def _text(path: Path, data: dict[str, str]) -> str:
    if not path.is_file():
        raise MissingError(f"{path} is missing; an AMBER folder has annotations.json, relation.json and safe_words.txt")
    raw = path.read_bytes()
    data[path.name] = hashlib.sha256(raw).hexdigest()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _json(path: Path, kind: type, data: dict[str, str]) -> Any:
    try:
        value = json.loads(_text(path, data))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    if not isinstance(value, kind):
        raise DataError(f"{path}: expected a JSON {'array' if kind is list else 'object'}, got {type(value).__name__}")
    return value


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise DataError(f"{where}: expected a list of words, got {value!r:.80}")
    return tuple(value)


def _association(path: Path, data: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {word: _words(others, f"{path}, {word!r}") for word, others in _json(path, dict, data).items()}


def _annotation(row: Any, where: str, association: Mapping[str, tuple[str, ...]]) -> Annotation:
    if not isinstance(row, dict) or not {"id", "type", "truth"} <= row.keys():
        raise DataError(f"{where}: expected an object with id, type and truth, got {row!r:.80}")
    if not isinstance(row["id"], int) or isinstance(row["id"], bool):
        raise DataError(f"{where}: id is {row['id']!r}, expected a number")
    if row["type"] not in GROUPS:
        raise DataError(f"{where}: type is {row['type']!r}; valid: {choices(GROUPS)}")
    groups = GROUPS[row["type"]]
    if groups != ("generative",):
        if row["truth"] not in ("yes", "no"):
            raise DataError(f"{where}: truth is {row['truth']!r}, expected yes or no")
        return Annotation(row["id"], groups, row["truth"])
    truth, hallu = _words(row["truth"], f"{where}, truth"), _words(row.get("hallu", []), f"{where}, hallu")
    strange = [word for word in (*truth, *hallu) if word not in association]
    if strange:
        raise DataError(f"{where}: {strange[0]!r} is no key of relation.json; every truth and hallu word must be")
    return Annotation(row["id"], groups, truth, hallu)


def _starts(path: Path, data: dict[str, str]) -> dict[str, float]:
    starts = {}
    for line in _text(path, data).splitlines():
        name, sign, value = line.partition("=")
        if not sign:
            continue
        try:
            starts[name.strip()] = float(value)
        except ValueError:
            raise DataError(f"{path}: {name.strip()} is {value.strip()!r}, expected a number") from None
    odd = [name for name, value in starts.items() if name.endswith("_score") and value != 0]
    if odd:
        raise DataError(f"{path}: {odd[0]} starts at {starts[odd[0]]:g}; scores start at 0 in the official file")
    return starts


def _queries(place: Path, data: dict[str, str]) -> dict[int, tuple[str, str]]:
    folder = place / "query"
    paths = [folder / "query_all.json"]
    if not paths[0].is_file():
        paths = sorted(folder.glob("query_*.json"))
    queries: dict[int, tuple[str, str]] = {}
    for path in paths:
        for number, row in enumerate(_json(path, list, data), 1):
            try:
                queries[row["id"]] = (str(row["image"]), str(row["query"]))
            except (TypeError, KeyError):
                raise DataError(
                    f"{path}, item {number}: expected an object with id, image and query, got {row!r:.80}"
                ) from None
    return queries
