"""``mix``: several datasets in one, rows interleaved at random by weight.

Each dataset is read in its order; which one the next row comes from is drawn with its weight. Everything about the
order is settled before the first row is read, so memory holds a few row groups, however large the datasets are.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmdata.derive import DatasetWriter, Derived, write_manifest
from vlmdata.errors import ConfigError, DataError
from vlmdata.progress import Progress
from vlmdata.publish import check_output, publishing
from vlmdata.shards import ROW_GROUP_BYTES, Shards, open_shards
from vlmdata.sizes import DEFAULT_SHARD_SIZE, parse_size
from vlmdata.tables import row_groups

__all__ = ["Ids", "Weighted", "mix_rows", "parse_weighted", "schedule"]

_DRAWN = 1 << 16
_MAX_ROWS = 1 << 31
_MAX_PARENTS = 100


@dataclass(frozen=True, slots=True)
class Weighted:
    """A dataset to mix in.

    Attributes:
        path: its folder.
        weight: how often it is drawn, beside the weights of the others.
    """

    path: Path
    weight: float


def mix_rows(
    parents: Sequence[Weighted],
    out: str | Path,
    *,
    rows: int | None = None,
    stop: Literal["first", "all"] = "first",
    max_epochs: int | None = None,
    seed: int = 0,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    progress: bool = False,
) -> Derived:
    """Mix datasets of one kind.

    Args:
        parents: two or more.
        out: folder to write.
        rows: exactly so many; as many as ``stop`` gives unless given.
        stop: ``first`` ends when a dataset has no more rows, ``all`` begins it again until each was read to its end.
        max_epochs: for ``all``, end before any dataset is read for one time more than this.
        seed: of the draws.
        shard_size: bytes of one shard, as a number or like "100MB".
        overwrite: replace a dataset in ``out``.
        progress: show progress on stderr.

    Raises:
        VlmError: an option, the inputs or the output are not as they must be.
    """
    limit = parse_size(shard_size)
    _check_options(parents, rows, stop, max_epochs, seed)
    shards = [open_shards(parent.path) for parent in parents]
    paths = [held.path for held in shards]
    _check_alike(shards)
    check_output(Path(out), paths, overwrite=overwrite)
    names = _names(paths)
    weights = [parent.weight for parent in parents]
    order = schedule([len(held) for held in shards], weights, rows=rows, stop=stop, max_epochs=max_epochs, seed=seed)
    taken = np.bincount(order, minlength=len(shards)).tolist()
    options = {
        "weights": dict(zip(names, weights, strict=True)),
        "rows": rows,
        "stop": stop,
        "max_epochs": max_epochs,
        "seed": seed,
        "shard_bytes": limit,
    }
    ids = Ids(names, [_read_ids(held) for held in shards])
    with publishing(Path(out), paths, overwrite=overwrite) as folder:
        with DatasetWriter(folder, shards, limit) as writer, Progress("mix", len(order), shown=progress) as bar:
            _write(shards, order, ids, writer, bar.advance)
            written = writer.finish()
        parts = list(zip(shards, taken, strict=True))
        return Derived(Path(out), write_manifest(folder, "mix", parts, written, options))


def parse_weighted(texts: Sequence[str]) -> list[Weighted]:
    """Datasets written as ``FOLDER=WEIGHT``; a weight left out is 1.

    Raises:
        ConfigError: a weight is no number above 0.
    """
    found = []
    for text in texts:
        path, sign, weight = text.rpartition("=")
        if not sign or os.path.isdir(text):  # Path.is_dir fails at a text too long for a name
            path, weight = text, "1"
        if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", weight) or not 0 < float(weight) < math.inf:
            said = f"{text[:80]!r}: the weight is {weight[:40]!r}"
            raise ConfigError(f"{said}, expected a number above 0, like {path[:80]}=0.7")
        found.append(Weighted(Path(path), float(weight)))
    return found


def schedule(
    sizes: Sequence[int],
    weights: Sequence[float],
    *,
    rows: int | None = None,
    stop: str = "first",
    max_epochs: int | None = None,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Which dataset each row comes from.

    Args:
        sizes: rows of each dataset.
        weights: of each.
        rows: exactly so many.
        stop: ``first`` or ``all``.
        max_epochs: for ``all``, how often a dataset is read at most.
        seed: of the draws.

    Raises:
        ConfigError: ``rows`` cannot be had, or the mixture would be absurdly long.
    """
    epochs = 1 if stop == "first" else max_epochs
    caps = np.array([np.iinfo(np.int64).max if epochs is None else size * epochs for size in sizes])
    shares = np.array(weights) / sum(weights)
    expected = max(size / share for size, share in zip(sizes, shares, strict=True)) if epochs is None else 0
    if rows is None and expected > _MAX_ROWS:
        raise ConfigError(
            f"with these weights about {expected:,.0f} rows would be written; give --rows or --max-epochs"
        )
    ends = np.cumsum(shares)
    draws = np.random.Generator(np.random.PCG64(seed))
    taken = np.zeros(len(sizes), np.int64)
    blocks: list[NDArray[np.uint8]] = []
    total = 0
    until_all = rows is None and stop == "all"
    while rows is None or total < rows:
        wanted = _DRAWN if rows is None else min(_DRAWN, rows - total)
        block = np.minimum(np.searchsorted(ends, draws.random(wanted), side="right"), len(sizes) - 1).astype(np.uint8)
        length = _length(block, taken, caps, np.array(sizes), until_all)
        blocks.append(block[:length])
        total += length
        taken += np.bincount(block[:length], minlength=len(sizes))
        if length < wanted or (until_all and (taken >= sizes).all()):
            break
    if rows is not None and total < rows:
        raise ConfigError(
            f"--rows is {rows}, and with these weights a dataset ends after {total}; "
            + ("--stop all reads it again" if stop == "first" else "give more --max-epochs")
        )
    return np.concatenate(blocks)


class Ids:
    """New ids of mixed rows: as they were where that is clear, else ``dataset/id``; with ``#2`` for a second time."""

    def __init__(self, names: Sequence[str], ids: Sequence[Sequence[str]]) -> None:
        """Remember the ids of all datasets.

        Args:
            names: of the datasets, all different.
            ids: of their rows.
        """
        self._names = names
        self._parents = Counter(one for held in ids for one in held)
        self._given: set[str] = set()

    def new(self, parent: int, one: str, time: int) -> str:
        """The id of a row of a dataset that is read for the ``time``-th time, from 1."""
        clear = self._parents[one] == 1
        found = one if clear else f"{self._names[parent]}/{one}"
        if time > 1:
            found += f"#{time}"
        # An id made here may be what another row is called.
        while found in self._given or (found in self._parents and not (clear and time == 1)):
            found = f"{self._names[parent]}/{found}"
        self._given.add(found)
        return found


class _Reader:
    """Gives the rows of a dataset in order, from the start again when they end."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._groups: Iterator[tuple[int, pa.Table]] = iter(())
        self._table: pa.Table | None = None
        self._next = 0
        self.epoch = 0

    def take(self, rows: int) -> Iterator[tuple[int, pa.Table]]:
        """The next rows in pieces, each with the number of the epoch it is from."""
        while rows:
            while self._table is None or self._next == self._table.num_rows:
                self._advance()
            piece = self._table.slice(self._next, rows)
            self._next += piece.num_rows
            rows -= piece.num_rows
            yield self.epoch, piece

    def _advance(self) -> None:
        following = next(self._groups, None)
        if following is None:
            self._groups = row_groups(self._shards)
            self.epoch += 1
            following = next(self._groups)
        self._table, self._next = following[1], 0


def _write(
    shards: Sequence[Shards],
    order: NDArray[np.uint8],
    ids: Ids,
    writer: DatasetWriter,
    report: Callable[[int], None],
) -> None:
    readers = [_Reader(held) for held in shards]
    size = max(sum(shard.bytes for shard in held.manifest.shards) / max(len(held), 1) for held in shards)
    step = int(min(max(ROW_GROUP_BYTES / max(size, 1), 1), 1024))
    for start in range(0, len(order), step):
        block = order[start : start + step]
        pieces: list[pa.Table] = []
        named: list[str] = []
        for parent, reader in enumerate(readers):
            for epoch, piece in reader.take(int((block == parent).sum())):
                named += [ids.new(parent, one, epoch) for one in piece.column("id").to_pylist()]
                pieces.append(piece)
        # Pieces stand dataset by dataset; the place of each row in the block is the inverse of a stable sort.
        places = np.empty(len(block), np.int64)
        places[np.argsort(block, kind="stable")] = np.arange(len(block))
        table = pa.concat_tables(pieces)
        table = table.set_column(table.column_names.index("id"), "id", pa.array(named, pa.string()))
        writer.write(table.take(pa.array(places)))
        report(len(block))


def _length(
    block: NDArray[np.uint8], taken: NDArray[np.int64], caps: NDArray[np.int64], sizes: NDArray[np.int64], full: bool
) -> int:
    """How many draws of a block count: up to one from a dataset that has no more, or that completes the last one."""
    length = len(block)
    completed = 0
    for parent in range(len(sizes)):
        at = np.flatnonzero(block == parent)
        room = int(caps[parent] - taken[parent])
        if room < len(at):
            length = min(length, int(at[room]))
        lacks = int(sizes[parent] - taken[parent])
        if lacks > 0:
            completed = max(completed, int(at[lacks - 1]) + 1 if lacks <= len(at) else len(block) + 1)
    if full and completed <= len(block):
        length = min(length, completed)
    return length


def _read_ids(shards: Shards) -> list[str]:
    return [one for _, table in row_groups(shards, ["id"]) for one in table.column("id").to_pylist()]


def _check_options(parents: Sequence[Weighted], rows: int | None, stop: str, max_epochs: int | None, seed: int) -> None:
    if not 2 <= len(parents) <= _MAX_PARENTS:
        raise ConfigError(f"{len(parents)} datasets are given, expected 2 to {_MAX_PARENTS}: A=0.7 B=0.3")
    real = [parent.path.resolve() for parent in parents]
    twice = [path for path in real if real.count(path) > 1]
    if twice:
        raise ConfigError(f"{twice[0].name} is given twice; add its weights up")
    if any(not parent.weight > 0 for parent in parents):
        raise ConfigError("a weight is not above 0; leave the dataset out")
    if stop not in ("first", "all"):
        raise ConfigError(f"--stop is {stop!r}; valid: all, first")
    if rows is not None and rows < 1:
        raise ConfigError(f"--rows is {rows}, expected at least 1")
    if max_epochs is not None and stop == "first":
        raise ConfigError("--max-epochs is for --stop all; with --stop first no row is read twice")
    if max_epochs is not None and max_epochs < 1:
        raise ConfigError(f"--max-epochs is {max_epochs}, expected at least 1")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}, expected 0 or more")


def _check_alike(shards: Sequence[Shards]) -> None:
    first = shards[0]
    for held in shards[1:]:
        if held.kind != first.kind:
            raise DataError(f"{first.path} holds {first.kind} and {held.path} {held.kind}; mix datasets of one kind")
        ours, theirs = first.manifest.label_names, held.manifest.label_names
        if ours != theirs:
            raise DataError(
                f"{first.path} and {held.path} have different class names: {_differ(ours, theirs)}; "
                "mix datasets with the same"
            )


def _differ(ours: Sequence[str], theirs: Sequence[str]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} classes"
    place = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"class {place} is {ours[place]} and {theirs[place]}"


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the datasets, all different: of their folders, with as much of the path as that takes."""
    parts = [path.resolve().parts[1:] for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]
