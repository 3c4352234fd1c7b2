"""``dedup``: a dataset without the rows that an earlier row holds already.

Two rows are the same when their images are, one by one in order, and their texts are too; or when their images are,
if that is all that is asked. Images are the same by their encoded bytes, their pixels, or how they look
(``vlmdata.perceptual``). The first row stays. Looks are compared with rows that stay only, so that no chain of small
steps makes unlike images the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmdata.derive import DROPPED, DatasetWriter, Derived, Drop, copy_rows, derived_lines, write_manifest
from vlmdata.errors import ConfigError
from vlmdata.image_keys import KEYS, By, Key, image_keys
from vlmdata.perceptual import MAX_DISTANCE, near_pairs
from vlmdata.progress import Progress
from vlmdata.publish import check_output, publishing
from vlmdata.shards import Shards, open_shards, shard_schema
from vlmdata.sizes import DEFAULT_SHARD_SIZE, parse_size
from vlmdata.tables import row_groups
from vlmdata.terminal import harmless

__all__ = ["DEFAULT_DISTANCE", "Dedup", "Neighbours", "check_method", "dedup", "dedup_lines", "write_without"]

DEFAULT_DISTANCE = 4
"""Bits of 64 that the hashes of the same picture may differ in: compressed anew or scaled, it is seldom more."""

_TEXTS = ("messages", "prompt", "chosen", "rejected")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Dedup:
    """What was found.

    Attributes:
        rows: that were read.
        drops: the duplicates, in order.
        dataset: without them; None where only a report was asked for.
    """

    rows: int
    drops: list[Drop]
    dataset: Derived | None


class Neighbours:
    """Which difference hashes are near each other."""

    def __init__(self, hashes: Sequence[int], distance: int) -> None:
        """Find all near pairs of the hashes; they may repeat."""
        self._hashes = np.unique(np.array(hashes, np.uint64))
        left, right = near_pairs(self._hashes, distance)
        ends = np.concatenate([left, right]), np.concatenate([right, left])
        order = np.argsort(ends[0], kind="stable")
        self._near = ends[1][order]
        self._starts = np.searchsorted(ends[0][order], np.arange(len(self._hashes) + 1))
        self.distance = distance

    def of(self, value: int) -> list[int]:
        """The hash itself, then all others near it."""
        place = int(np.searchsorted(self._hashes, np.uint64(value)))
        near = self._hashes[self._near[self._starts[place] : self._starts[place + 1]]]
        return [value, *near.tolist()]


def dedup(
    path: str | Path,
    out: str | Path | None,
    *,
    by: By = "bytes",
    distance: int | None = None,
    images_only: bool = False,
    workers: int = 1,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    progress: bool = False,
) -> Dedup:
    """Leave out rows that an earlier row holds already.

    Args:
        path: folder of a converted dataset.
        out: folder to write; None only reports.
        by: how images are compared, one of ``KEYS``.
        distance: for ``perceptual``, bits of 64 that may differ; ``DEFAULT_DISTANCE`` unless given.
        images_only: the texts may differ. Rows without images stay then.
        workers: processes that decode; they do not change the result.
        shard_size: bytes of one shard, as a number or like "100MB".
        overwrite: replace a dataset in ``out``.
        progress: show progress on stderr.

    Raises:
        VlmError: an option, the input or the output is not as it must be.
    """
    limit = parse_size(shard_size)
    bits = check_method(by, distance, workers)
    shards = open_shards(Path(path))
    if out is not None:
        check_output(Path(out), [shards.path], overwrite=overwrite)
    with Progress("images", len(shards), shown=progress) as bar:
        keys = image_keys(shards, by, workers, bar.advance)
    ids, texts = _ids_and_texts(shards, images_only)
    near = None if by != "perceptual" else Neighbours([int(key) for held in keys for key in held], bits)
    drops = [
        Drop(row, ids[row], "duplicate", f"of {ids[first]}, by {by}{'' if images_only else ' and text'}{_bits(apart)}")
        for row, first, apart in _duplicates(keys, texts, near, images_only)
    ]
    if out is None:
        return Dedup(len(shards), drops, None)
    options = {"by": by, "distance": bits if near else None, "images_only": images_only, "shard_bytes": limit}
    made = write_without(shards, Path(out), drops, "dedup", options, overwrite=overwrite, progress=progress)
    return Dedup(len(shards), drops, made)


def dedup_lines(done: Dedup) -> list[str]:
    """What was found, as lines that add up."""
    if done.dataset is not None:
        return derived_lines(done.dataset)
    kept = done.rows - len(done.drops)
    lines = [f"rows     {done.rows:,} read = {kept:,} to keep + {len(done.drops):,} duplicates"]
    lines += [f"         {harmless(drop.id)}: {harmless(drop.detail)}" for drop in done.drops[:_SHOWN]]
    if len(done.drops) > _SHOWN:
        lines.append(f"         and {len(done.drops) - _SHOWN:,} more; --out writes all into rejects.jsonl")
    return lines


def check_method(by: str, distance: int | None, workers: int) -> int:
    """The distance that counts.

    Raises:
        ConfigError: the way, the distance or the number of workers cannot work.
    """
    if by not in KEYS:
        raise ConfigError(f"--by is {by!r}; valid: {', '.join(KEYS)}")
    if workers < 1:
        raise ConfigError(f"--workers is {workers}, expected at least 1")
    if distance is not None and by != "perceptual":
        raise ConfigError(f"--distance is for --by perceptual, images are compared by {by}")
    if distance is not None and not 0 <= distance <= MAX_DISTANCE:
        raise ConfigError(f"--distance is {distance}, expected 0 to {MAX_DISTANCE} of 64 bits")
    return DEFAULT_DISTANCE if distance is None else distance


def write_without(
    shards: Shards,
    out: Path,
    drops: Sequence[Drop],
    command: str,
    options: dict[str, Any],
    *,
    overwrite: bool,
    progress: bool,
) -> Derived:
    """Write a dataset without some of its rows; ``options["shard_bytes"]`` is the size of a shard."""
    parts = np.zeros(len(shards), np.int16)
    parts[[drop.row for drop in drops]] = DROPPED
    with publishing(out, [shards.path], overwrite=overwrite) as folder:
        with (
            DatasetWriter(folder, [shards], options["shard_bytes"]) as writer,
            Progress("write", len(shards), shown=progress) as bar,
        ):
            copy_rows(shards, parts, [writer], bar.advance)
            written = writer.finish()
        taken = len(shards) - len(drops)
        return Derived(out, write_manifest(folder, command, [(shards, taken)], written, options, drops))


def _ids_and_texts(shards: Shards, images_only: bool) -> tuple[list[str], list[bytes]]:
    """The id and a hash of the texts of each row; no hashes where texts do not matter."""
    ids: list[str] = []
    texts: list[bytes] = []
    known = shard_schema(shards.kind, shards.manifest.label_names).names
    names = [] if images_only else [name for name in _TEXTS if name in known]
    for _, table in row_groups(shards, ["id", *names]):
        ids += table.column("id").to_pylist()
        if names:
            texts += [hashlib.sha256(_text(row).encode()).digest() for row in table.select(names).to_pylist()]
    return ids, texts or [b""] * len(ids)


def _text(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def _duplicates(
    keys: Sequence[tuple[Key, ...]], texts: Sequence[bytes], near: Neighbours | None, images_only: bool
) -> Iterator[tuple[int, int, int | None]]:
    """Each duplicate with the earlier row it is the same as, and how many bits they are apart."""
    kept: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    same: tuple[int, int | None] | None
    for row, held in enumerate(keys):
        if not held:
            same = None if images_only or not kept[(), texts[row]] else (kept[(), texts[row]][0], None)
            place: tuple[Any, ...] = ((), texts[row])
        elif near is None:
            place = (held, texts[row])
            same = (kept[place][0], None) if kept[place] else None
        else:
            place = (held[0], len(held), texts[row])
            same = _near_row(row, keys, texts, near, kept)
        if same is None:
            kept[place].append(row)
        else:
            yield row, same[0], same[1]


def _near_row(
    row: int,
    keys: Sequence[tuple[Key, ...]],
    texts: Sequence[bytes],
    near: Neighbours,
    kept: dict[tuple[Any, ...], list[int]],
) -> tuple[int, int | None] | None:
    """The first row that stays and whose images are all near, with the largest distance."""
    held = keys[row]
    found: list[tuple[int, int]] = []
    for first in near.of(int(held[0])):
        for other in kept.get((first, len(held), texts[row]), ()):
            apart = max((int(a) ^ int(b)).bit_count() for a, b in zip(held, keys[other], strict=True))
            if apart <= near.distance:
                found.append((other, apart))
    return min(found, default=None)


def _bits(apart: int | None) -> str:
    return "" if apart is None else f", {apart} bits apart"
