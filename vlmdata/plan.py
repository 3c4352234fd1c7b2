"""``plan.json``: which input rows become which shard. Written first, so that names, resume and engines agree."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmdata.atomic import write_json
from vlmdata.errors import ConfigError, DataError, MissingError
from vlmdata.manifest import InputFile
from vlmdata.places import place
from vlmdata.readers import Contents, Input, Piece
from vlmdata.source import Kind, Options

__all__ = ["PLAN", "Plan", "Task", "fingerprint", "make_tasks", "select_rows"]

PLAN = "plan.json"
_END = 64 << 10


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work: some input rows become one shard.

    Attributes:
        index: its place in the plan.
        shard: file name of the shard.
        pieces: the rows, in input order.
        seed: rows are put into an order of their own within the shard; None keeps the input order.
    """

    index: int
    shard: str
    pieces: tuple[Piece, ...]
    seed: str | None = None

    @property
    def rows(self) -> int:
        """How many rows are read."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion before it is run.

    Attributes:
        source: name of the source.
        kind: what its rows become.
        dataset: what the rows' provenance calls the raw data.
        options: every option that changes what is written, resolved; ``image_root`` as it was given.
        reading: what the source's ``convert`` depends on.
        inputs: the raw files.
        tasks: the units of work.
    """

    source: str
    kind: Kind
    dataset: str
    options: dict[str, Any]
    reading: Options
    inputs: tuple[InputFile, ...]
    tasks: tuple[Task, ...]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        values = asdict(self)
        values["tasks"] = [
            {
                "shard": task.shard,
                "rows": task.rows,
                "pieces": [[piece.input, piece.start, piece.stop, piece.offset] for piece in task.pieces],
            }
            for task in self.tasks
        ]
        return values

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan of a folder.

        Raises:
            MissingError: there is no such folder.
            DataError: the folder holds no plan, or one that cannot be read.
        """
        path = folder / PLAN
        if not folder.is_dir():
            raise MissingError(f"no folder {folder}; expected the --out folder of vlmdata convert")
        if not path.is_file():
            raise DataError(f"{folder} holds no {PLAN}; it is no folder that vlmdata convert wrote")
        try:
            values = json.loads(path.read_bytes())
            seed = values["options"]["shuffle_seed"]
            tasks = tuple(
                Task(index, task["shard"], tuple(Piece(*piece) for piece in task["pieces"]), _order(seed, index))
                for index, task in enumerate(values["tasks"])
            )
            inputs = tuple(InputFile(**item) for item in values["inputs"])
            reading = Options.from_json(values["reading"])
            return cls(values["source"], values["kind"], values["dataset"], values["options"], reading, inputs, tasks)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); convert again with --overwrite") from None

    def write(self, folder: Path) -> None:
        """Write ``plan.json`` atomically."""
        write_json(folder / PLAN, self.to_json())

    def check_same(self, folder: Path) -> None:
        """Refuse to go on with a conversion that was planned otherwise.

        Raises:
            ConfigError: options, inputs or ranges differ.
            DataError: the plan in the folder cannot be read.
        """
        path = folder / PLAN
        try:
            before = json.loads(path.read_bytes())
        except ValueError:
            raise DataError(f"{path} cannot be read; start again with --overwrite") from None
        now = json.loads(json.dumps(self.to_json()))
        if before != now:
            changed = _difference(before, now)
            raise ConfigError(f"{path} is of another conversion ({changed}); give the same options, or --overwrite")


def select_rows(total: int, limit: int | None, shuffle_seed: int | None) -> list[tuple[int, int]]:
    """The rows to read, as ascending ``[start, stop)`` ranges over all inputs together.

    Without a seed the first ``limit``, with one a random choice of ``limit`` of all rows.
    """
    count = total if limit is None else min(limit, total)
    if shuffle_seed is None or count == total:
        return [(0, count)] if count else []
    chosen = sorted(random.Random(f"rows {shuffle_seed}").sample(range(total), count))
    ranges: list[tuple[int, int]] = []
    for row in chosen:
        if ranges and ranges[-1][1] == row:
            ranges[-1] = (ranges[-1][0], row + 1)
        else:
            ranges.append((row, row + 1))
    return ranges


def make_tasks(
    contents: Sequence[Contents], *, limit: int | None, shuffle_seed: int | None, shard_bytes: int
) -> tuple[Task, ...]:
    """Cut the chosen rows into shards of about ``shard_bytes`` input bytes each.

    With ``shuffle_seed`` the order is shuffled on two levels, so that every row is still read in one pass: the shards
    among each other and the rows within each.
    """
    total = sum(held.rows for held in contents)
    shards: list[list[Piece]] = [[]]
    room = float(shard_bytes)
    for piece, row_bytes in _pieces(contents, select_rows(total, limit, shuffle_seed)):
        start = piece.start
        while start < piece.stop:
            fits = max(0, int(room / row_bytes))
            if fits == 0 and shards[-1]:
                shards.append([])
                room = float(shard_bytes)
                continue
            stop = min(piece.stop, start + max(1, fits))
            _append(shards[-1], Piece(piece.input, start, stop))
            room -= (stop - start) * row_bytes
            start = stop
    if shuffle_seed is not None:
        random.Random(f"shards {shuffle_seed}").shuffle(shards)
    count = len(shards)
    return tuple(
        Task(
            index,
            f"data-{index:05d}-of-{count:05d}.parquet",
            tuple(_with_offset(piece, contents[piece.input]) for piece in pieces),
            _order(shuffle_seed, index),
        )
        for index, pieces in enumerate(shards)
    )


def fingerprint(source: Input) -> str | None:
    """The sha256 of a local file's size, first and last 64 KiB; for a folder of its list of files and sizes."""
    if source.path.startswith("hf://"):
        return None
    path = place(source.path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "".join(f"{file.relative_to(path).as_posix()!a} {file.stat().st_size}\n" for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        start = file.read(_END)
        file.seek(max(0, source.bytes - _END))
        return hashlib.sha256(b"%d\n%b%b" % (source.bytes, start, file.read(_END))).hexdigest()


def _order(shuffle_seed: int | None, index: int) -> str | None:
    """What the order of the rows within a shard depends on."""
    return None if shuffle_seed is None else f"{shuffle_seed} {index}"


def _pieces(contents: Sequence[Contents], ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[Piece, float]]:
    """The ranges as pieces that lie in one segment each, with the bytes of a row there."""
    segments = _segments(contents)
    current = next(segments, None)
    for start, stop in ranges:
        while current is not None and start < stop:
            index, base, first, last, row_bytes = current
            if start >= last:
                current = next(segments, None)
                continue
            end = min(stop, last)
            yield Piece(index, start - base, end - base), row_bytes
            start = end


def _segments(contents: Sequence[Contents]) -> Iterator[tuple[int, int, int, int, float]]:
    """``(input, its first row, the segment's first and last row, bytes of a row)``, rows counted over all inputs."""
    base = 0
    for index, held in enumerate(contents):
        first = base
        for rows, size in held.segments:
            if rows:
                yield index, base, first, first + rows, max(1.0, size / rows)
            first += rows
        base = first


def _append(pieces: list[Piece], piece: Piece) -> None:
    if pieces and pieces[-1].input == piece.input and pieces[-1].stop == piece.start:
        pieces[-1] = Piece(piece.input, pieces[-1].start, piece.stop)
    else:
        pieces.append(piece)


def _with_offset(piece: Piece, held: Contents) -> Piece:
    return piece if held.offsets is None else Piece(piece.input, piece.start, piece.stop, held.offsets[piece.start])


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    """What differs, in a few words."""
    if not isinstance(before, dict) or before.get("source") != now["source"]:
        return "another source"
    old, new = before.get("options", {}), now["options"]
    old, new = {**before.get("reading", {}), **old}, {**now["reading"], **new}
    names = [name for name in new if old.get(name) != new[name]]
    if names:
        return "; ".join(f"{name} was {old.get(name)!r}, is {new[name]!r}" for name in names)
    return "the input files changed" if before.get("inputs") != now["inputs"] else "the row ranges changed"
