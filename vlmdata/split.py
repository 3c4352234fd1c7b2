"""``split``: a dataset in parts, no image in two of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmdata.atomic import sha256_file, write_json
from vlmdata.derive import DatasetWriter, Derived, copy_rows, write_manifest
from vlmdata.errors import ConfigError, DataError
from vlmdata.grouping import allot, quotas, together
from vlmdata.manifest import MANIFEST
from vlmdata.progress import Progress
from vlmdata.publish import SPLIT, check_output, publishing
from vlmdata.row_fields import FIELDS, Values
from vlmdata.shards import Shards, open_shards
from vlmdata.sizes import DEFAULT_SHARD_SIZE, parse_size
from vlmdata.tables import row_groups

__all__ = ["DEFAULT_PARTS", "GROUP_FIELDS", "Split", "parse_parts", "split_lines", "split_rows"]

DEFAULT_PARTS = "train=0.8,validation=0.1,test=0.1"
GROUP_FIELDS = ("source", "licence", "dataset", "config", "file", "label")
"""Fields that rows can be held together by, besides ``meta.KEY``."""

REST = "rest"

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Split:
    """A dataset in parts.

    Attributes:
        out: the folder of the parts.
        parts: each a dataset in ``out/NAME``.
        counts: what ``split.json`` says.
    """

    out: Path
    parts: dict[str, Derived]
    counts: dict[str, Any]


def split_rows(
    path: str | Path,
    out: str | Path,
    parts: str = DEFAULT_PARTS,
    *,
    by: Literal["group", "label"] = "group",
    group_keys: Sequence[str] = (),
    seed: int = 0,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    progress: bool = False,
) -> Split:
    """Split a dataset; rows that share any image are in one part.

    Args:
        path: folder of a converted dataset.
        out: folder to write; each part is a dataset in it.
        parts: ``name=share`` with commas between; shares add up to 1, or are numbers of rows, one of them ``rest``
            if need be.
        by: ``group`` deals groups out at random, ``label`` does so within each class.
        group_keys: rows with the same value are in one part too: a name of ``GROUP_FIELDS``, or ``meta.KEY``.
        seed: of the random order.
        shard_size: bytes of one shard, as a number or like "100MB".
        overwrite: replace a split in ``out``.
        progress: show progress on stderr.

    Raises:
        VlmError: an option, the input or the output is not as it must be; or a part would be empty.
    """
    limit = parse_size(shard_size)
    shards = open_shards(Path(path))
    targets = parse_parts(parts, len(shards))
    if by not in ("group", "label"):
        raise ConfigError(f"--by is {by!r}; valid: group, label")
    if by == "label" and not shards.manifest.label_names:
        raise ConfigError(f"--by label needs labels, the rows of {shards.path} have none; valid: group")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}, expected 0 or more")
    _check_keys(group_keys, shards)
    check_output(Path(out), [shards.path], overwrite=overwrite)
    groups, labels = _read_groups(shards, group_keys, progress)
    dealt = _deal(groups, labels if by == "label" else None, list(targets.values()), seed)
    rows = np.bincount(dealt, minlength=len(targets))
    _check_filled(dict(zip(targets, rows.tolist(), strict=True)), int(groups.max()) + 1)
    options = {
        "parts": parts,
        "by": by,
        "group_keys": list(group_keys),
        "seed": seed,
        "shard_bytes": limit,
    }
    counts = {
        "parent": {
            "name": shards.path.resolve().name,
            "manifest_sha256": sha256_file(shards.path / MANIFEST),
            "records": len(shards),
        },
        "options": options,
        "parts": _part_counts(targets, dealt, groups, labels, shards.manifest.label_names),
    }
    with publishing(Path(out), [shards.path], overwrite=overwrite) as folder:
        made = _write(folder, Path(out), shards, dealt, list(targets), options, limit, progress)
        write_json(folder / SPLIT, counts)
    return Split(Path(out), made, counts)


def parse_parts(text: str, rows: int) -> dict[str, int]:
    """The number of rows each part should have.

    Args:
        text: ``train=0.8,test=0.2``, ``train=800,test=200`` or ``train=rest,test=200``.
        rows: there are.

    Raises:
        ConfigError: it cannot be read, or does not add up.
    """
    given: dict[str, str] = {}
    for item in text.split(","):
        name, sign, amount = (piece.strip() for piece in item.partition("="))
        if not sign or not _PART.fullmatch(name):
            raise ConfigError(f"--parts has {item.strip()!r}, expected name=share, like {DEFAULT_PARTS}")
        if name.casefold() in map(str.casefold, given):  # not every file system tells a folder A from a folder a
            raise ConfigError(f"--parts names {name} twice, case aside")
        given[name] = amount
    if len(given) < 2:
        raise ConfigError(f"--parts is {text!r}, expected two or more parts, like {DEFAULT_PARTS}")
    numbers = {name: _amount(name, amount) for name, amount in given.items() if amount != REST}
    counts = all(isinstance(number, int) for number in numbers.values())
    if not counts and any(isinstance(number, int) for number in numbers.values()):
        raise ConfigError(f"--parts is {text!r}: give shares (0.8) or numbers of rows (800), not both")
    total, whole = sum(numbers.values()), rows if counts else 1
    rest = [name for name in given if given[name] == REST]
    if len(rest) > 1:
        raise ConfigError(f"--parts has {len(rest)} times {REST}, at most one part can take it")
    short = total < whole - 1e-9
    if rest and not short:
        raise ConfigError(f"--parts leave nothing for {rest[0]}={REST}: the others add up to {total:g} of {whole}")
    if total > whole + 1e-9 or short != bool(rest):
        hint = f"; one part may be {REST}" if short else ""
        raise ConfigError(f"--parts add up to {total:g}, expected {whole}{' rows' if counts else ''}{hint}")
    numbers |= dict.fromkeys(rest, whole - total)
    ordered = [numbers[name] for name in given]
    targets = ordered if counts else quotas(rows, np.array(ordered, float)).tolist()
    return dict(zip(given, map(int, targets), strict=True))


def split_lines(done: Split) -> list[str]:
    """What was made, as lines that add up."""
    parent, parts = done.counts["parent"], done.counts["parts"]
    lines = [f"input    {parent['records']:,} records in {parent['name']}"]
    for name, part in parts.items():
        share = 100 * part["records"] / parent["records"]
        asked = "" if part["records"] == part["asked"] else f" ({part['asked']:,} asked)"
        lines.append(f"{name:8} {part['records']:,} records{asked}, {share:.1f} %, {part['groups']:,} groups")
    if any("labels" in part for part in parts.values()):
        lines.append(f"labels   share of each class by part stands in {done.out / SPLIT}")
    lines.append(f"         {' + '.join(str(part['records']) for part in parts.values())} = {parent['records']}")
    return lines


def _amount(name: str, text: str) -> int | float:
    try:
        value: int | float = int(text) if re.fullmatch(r"\d+", text) else float(text)
    except ValueError:
        raise ConfigError(f"--parts has {name}={text}, expected a share, a number of rows, or {REST}") from None
    if not 0 < value < float("inf") or (isinstance(value, float) and value >= 1):
        raise ConfigError(f"--parts has {name}={text}, expected a share between 0 and 1, or a number of rows")
    return value


def _check_keys(keys: Sequence[str], shards: Shards) -> None:
    for key in keys:
        if key not in GROUP_FIELDS and not (key.startswith("meta.") and len(key) > len("meta.")):
            raise ConfigError(f"--group-key is {key!r}; valid: {', '.join(GROUP_FIELDS)}, meta.KEY")
        if key == "label" and not shards.manifest.label_names:
            raise ConfigError(f"--group-key is label, and the rows of {shards.path} have none")


def _read_groups(
    shards: Shards, keys: Sequence[str], progress: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """For each row its group, and its label where rows have one."""
    names = shards.manifest.label_names
    columns = {"image_sha256", *(["label"] if names else [])}
    for key in keys:
        columns |= {"meta"} if key.startswith("meta.") else set(FIELDS[key].columns)
    labels: list[Any] = []
    found = dict.fromkeys(keys, 0)

    def row_keys(bar: Progress) -> Iterator[list[Any]]:
        for _, table in row_groups(shards, sorted(columns)):
            if names:
                labels.append(table.column("label"))
            for row in table.to_pylist():
                values = Values(row, names)
                held: list[Any] = list(row["image_sha256"])
                for key in keys:
                    value = values.meta(key[len("meta.") :]) if key.startswith("meta.") else values[key]
                    if value not in (None, ""):
                        found[key] += 1
                        held.append((key, str(value)))
                yield held
            bar.advance(table.num_rows)

    with Progress("group", len(shards), shown=progress) as bar:
        groups = together(row_keys(bar))
    for key, count in found.items():
        if not count:
            raise ConfigError(f"--group-key is {key!r}, and no row of {shards.path} has it")
    if not names:
        return groups, None
    joined = pa.chunked_array([chunk for column in labels for chunk in column.chunks])
    return groups, joined.fill_null(-1).to_numpy().astype(np.int64)


def _deal(
    groups: NDArray[np.int64], labels: NDArray[np.int64] | None, targets: Sequence[int], seed: int
) -> NDArray[np.int16]:
    """The part of each row."""
    sizes = np.bincount(groups)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(sizes))
    if labels is None:
        return allot(sizes, targets, order.tolist())[groups]
    shares = np.array(targets) / sum(targets)
    strata = _strata(groups, labels, len(sizes))
    parts = np.zeros(len(sizes), np.int16)
    owed = np.zeros(len(targets))
    for label in np.unique(strata):
        members = order[strata[order] == label]
        rows = int(sizes[members].sum())
        parts[members] = allot(sizes[members], quotas(rows, shares, owed).tolist(), range(len(members)))
        owed += rows * shares - np.bincount(parts[members], sizes[members], len(targets))
    return parts[groups]


def _strata(groups: NDArray[np.int64], labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """For each group the label most of its rows have; of several the lowest."""
    pairs, rows = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    strata = np.full(count, -1, np.int64)
    order = np.lexsort((-pairs[1], rows))
    strata[pairs[0][order]] = pairs[1][order]  # the last one written stays: most rows, then the lowest label
    return strata


def _check_filled(rows: dict[str, int], groups: int) -> None:
    empty = [name for name, count in rows.items() if not count]
    if empty:
        shown = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise DataError(
            f"part {empty[0]} would be empty ({shown}): {sum(rows.values())} rows are {groups} groups that stay "
            "together; give fewer or larger parts, or another --group-key"
        )


def _part_counts(
    targets: dict[str, int],
    dealt: NDArray[np.int16],
    groups: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    names: Sequence[str],
) -> dict[str, Any]:
    """For each part what it was to have and what it has."""
    found: dict[str, Any] = {}
    for number, (name, asked) in enumerate(targets.items()):
        inside = dealt == number
        found[name] = {
            "records": int(inside.sum()),
            "asked": asked,
            "share": round(float(inside.mean()), 6),
            "groups": len(np.unique(groups[inside])),
        }
        if labels is not None:
            here = np.bincount(labels[inside & (labels >= 0)], minlength=len(names)).tolist()
            found[name]["labels"] = {label: count for label, count in zip(names, here, strict=True) if count}
    return found


def _write(
    folder: Path,
    out: Path,
    shards: Shards,
    dealt: NDArray[np.int16],
    names: Sequence[str],
    options: dict[str, Any],
    limit: int,
    progress: bool,
) -> dict[str, Derived]:
    with ExitStack() as stack:
        writers = []
        for name in names:
            (folder / name).mkdir()
            writers.append(stack.enter_context(DatasetWriter(folder / name, [shards], limit)))
        bar = stack.enter_context(Progress("write", len(shards), shown=progress))
        copy_rows(shards, dealt, writers, bar.advance)
        written = [writer.finish() for writer in writers]
    made = {}
    for name, infos in zip(names, written, strict=True):
        parents = [(shards, sum(info.rows for info in infos))]
        made[name] = Derived(out / name, write_manifest(folder / name, "split", parents, infos, options, split=name))
    return made
