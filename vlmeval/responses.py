"""Answers in a file, and the coverage gate between them and the items of a benchmark."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError, MissingError
from vlmeval.task import Benchmark, Item, Response

__all__ = ["Coverage", "gate", "read"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How answers and items meet; ``rows = answered + duplicate + unknown + outside + null``.

    Attributes:
        expected: items that are asked.
        answered: items with an answer.
        missing: items without one; ``expected = answered + missing``.
        duplicate: further answers to an item already answered; each is scored, as the official script does.
        unknown: answers to ids the benchmark does not have; not scored.
        outside: answers to ids of a part that is not asked; not scored.
        null: texts recorded as null; not scored, their items count as missing.
        failed: items that could not be answered, for a reason that is known; a part of ``missing``.
        examples: a few ids of each kind that is not in order.
    """

    expected: int
    answered: int
    missing: int
    duplicate: int
    unknown: int
    outside: int
    null: int
    examples: Mapping[str, list[Any]]
    failed: int = 0

    @property
    def complete(self) -> bool:
        """Every item is answered, each once."""
        return self.missing == 0 and self.duplicate == 0

    def banner(self) -> str:
        """What stands over every figure that is not of the whole set, each item answered once; empty otherwise."""
        parts = []
        if self.missing:
            parts.append(f"PARTIAL {self.answered}/{self.expected}")
        if self.failed:
            parts.append(f"{self.failed} FAILED")
        if self.duplicate:
            parts.append(f"{self.duplicate} DUPLICATE answers scored again")
        if self.unknown:
            parts.append(f"{self.unknown} UNKNOWN ids not scored")
        if self.outside:
            parts.append(f"{self.outside} answers of other parts not scored")
        if self.null:
            parts.append(f"{self.null} null answers not scored")
        return " \N{MIDDLE DOT} ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The ``coverage`` of ``report.json``."""
        names = ("expected", "answered", "missing", "duplicate", "unknown", "outside", "null", "failed")
        examples = {kind: ids for kind, ids in self.examples.items() if ids}
        return {**{name: getattr(self, name) for name in names}, "complete": self.complete, "examples": examples}


def read(path: Path) -> list[Response]:
    """Answers of a JSON array or JSON Lines file of ``{"id": 1005, "response": "Yes"}``; other keys are ignored.

    UTF-8, with or without a byte order mark, or UTF-16 with one; lines may end as on any system.

    Raises:
        MissingError: there is no such file.
        DataError: it is not JSON, or a row has no usable id or response.
    """
    rows = _rows(path, _text(path))
    if not rows:
        raise DataError(f"{path} holds no answers; expected rows like {{'id': 1005, 'response': 'Yes'}}")
    return [_response(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _text(path: Path) -> str:
    if path.is_dir():
        inside = path / "responses.jsonl"
        more = f": the answers in it are {inside}" if inside.is_file() else ""
        raise MissingError(f"{path} is a folder, expected a responses file{more}")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"no responses file {path}") from None
    except OSError as error:
        raise MissingError(f"responses file {path} cannot be read: {error.strerror}") from None
    # What a shell of Windows writes.
    code = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return raw.decode(code)
    except UnicodeDecodeError as error:
        kind = code.removesuffix("-sig").upper()
        raise DataError(f"{path} is not {kind} text: {error.reason} at byte {error.start}") from None


def _rows(path: Path, text: str) -> list[Any]:
    begin = text.lstrip()[:1]
    if begin not in ("[", "{", ""):
        first = text.lstrip().split("\n", 1)[0].strip()
        raise DataError(
            f"{path} begins with {first!r:.60}, expected JSON: an array or lines of objects like "
            '{"id": 1005, "response": "Yes"}'
        )
    if begin == "[":
        rows: list[Any] = _json(text, f"{path}", "is it cut short?")
        return rows
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_json(line, f"{path}, line {number}", "expected an object a line") for number, line in lines]


def _json(text: str, where: str, hint: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{where} is JSON nested too deeply to be answers") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise DataError(f"{where} is not JSON: {error.msg} in {place}; {hint}") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise DataError(f"{where} is not JSON: {error}") from None


def _response(row: Any, where: str) -> Response:
    if not isinstance(row, dict) or "id" not in row or "response" not in row:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
        raise DataError(f"{where}: expected an object with id and response, got {found:.80}")
    ident, text = row["id"], row["response"]
    if not isinstance(ident, (int, str)) or isinstance(ident, bool):
        raise DataError(f"{where}: id is {ident!r:.80}, expected a whole number")
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where} (id {ident!r:.80}): response is {text!r:.80}, expected text")
    # Half a surrogate pair is valid JSON, and cannot be written as UTF-8 again.
    detail = row.get("detail")
    said = text if text is None else text.encode(errors="replace").decode()
    return Response(ident, said, detail if isinstance(detail, dict) else {})


def gate(
    benchmark: Benchmark, responses: Sequence[Response], failures: Sequence[Response] = ()
) -> tuple[list[tuple[Item, Response]], Coverage]:
    """Join answers to items; count everything that does not fit.

    Args:
        benchmark: what was asked.
        responses: the answers.
        failures: items that could not be answered.

    Returns:
        The answers to be scored, duplicates included, in file order; and the coverage.

    Raises:
        DataError: an id is written as a text where the benchmark has the number.
    """
    items = {item.id: item for item in benchmark.items}
    joined: list[tuple[Item, Response]] = []
    odd: dict[str, list[Any]] = {"duplicate": [], "unknown": [], "outside": [], "null": []}
    answered: set[int | str] = set()
    for row, response in enumerate(responses, 1):
        item = items.get(response.id)
        if item is None and isinstance(response.id, str) and _number(response.id) in items.keys() | benchmark.known:
            number = response.id.strip()
            raise DataError(f'row {row}: id is the text "{number}", expected the number {number}; write ids unquoted')
        if item is None:
            odd["outside" if response.id in benchmark.known else "unknown"].append(response.id)
        elif response.text is None and item.kind == "text":
            odd["null"].append(response.id)
        else:
            if item.id in answered:
                odd["duplicate"].append(item.id)
            answered.add(item.id)
            joined.append((item, response))
    missing = [ident for ident in items if ident not in answered]
    counts = {kind: len(ids) for kind, ids in odd.items()}
    failed = list(dict.fromkeys(said.id for said in failures if said.id in items and said.id not in answered))
    examples = {kind: ids[:5] for kind, ids in {"missing": missing, **odd, "failed": failed}.items()}
    coverage = Coverage(len(items), len(answered), len(missing), **counts, examples=examples, failed=len(failed))
    return joined, coverage


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
