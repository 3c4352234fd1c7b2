"""Shards to datasets: opened, checked, and split into rows to train and to evaluate on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetInfo, Features, Image, List, concatenate_datasets

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmdata.manifest import MANIFEST
from vlmdata.places import is_remote, open_parquet, place
from vlmdata.plan import PLAN
from vlmdata.shards import Shards, open_shards
from vlmtrain.streaming import Stream

__all__ = ["Opened", "hold_out", "open_data", "shared_images"]

COLUMNS = {"messages": ("messages",), "preference": ("prompt", "chosen", "rejected")}
METHODS = {"messages": "sft", "preference": "dpo"}
# Above this, rows are memory-mapped from an Arrow cache that datasets writes once.
IN_MEMORY_BYTES = 1 << 31


@dataclass(slots=True)
class Opened:
    """Rows of one or several converted datasets.

    Attributes:
        rows: columns ``id``, ``images``, ``image_size``, ``image_sha256`` and the messages of the kind. Of a stream
            they are read when they are asked for, by number.
        origin: per dataset what a run folder records: name, hash of its manifest, source, licence, rows. No path.
        labels: names of the classes in index order, where the rows were opened with their ``label``.
        stream: where the rows of ``rows`` are read from; None is memory.
    """

    rows: Dataset
    origin: list[dict[str, Any]]
    labels: tuple[str, ...] = ()
    stream: Stream | None = None

    @property
    def sizes(self) -> list[int]:
        """Rows of each dataset; they stand one dataset after the other."""
        return [int(entry["rows"]) for entry in self.origin]


@dataclass(slots=True)
class _Wanted:
    kind: str
    labelled: bool
    meta: bool
    labels: tuple[str, ...] = field(default=())

    @property
    def columns(self) -> list[str]:
        more = [name for name, needed in (("label", self.labelled), ("meta", self.meta)) if needed]
        return ["id", "images", "image_size", "image_sha256", *COLUMNS[self.kind], *more]


def open_data(
    folders: Sequence[str | Path],
    kind: str,
    *,
    labelled: bool = False,
    meta: bool = False,
    streaming: bool = False,
) -> Opened:
    """Open converted datasets and join them.

    Args:
        folders: shards folders, or their addresses on an object store.
        kind: ``messages`` or ``preference``.
        labelled: the rows' class comes along as ``label``.
        meta: what was kept of the source comes along as ``meta``, JSON.
        streaming: rows are read from the shards when they are asked for, not kept.

    Raises:
        MissingError: no such folder.
        DataError: raw, unfinished, empty, of the other kind, without labels, or with those of other classes.
    """
    if not folders:
        raise ConfigError("no data given: expected --data with a folder that vlmdata convert wrote")
    wanted = _Wanted(kind, labelled, meta)
    opened = [_open(folder, wanted, folders[0]) for folder in folders]
    origin = [_origin(shards) for shards in opened]
    if streaming:
        files = [file for shards in opened for file in shards.files]
        stream = Stream(files, wanted.columns, _features(files[0], wanted))
        return Opened(stream.rows(), origin, wanted.labels, stream)
    parts = [_read(shards.files, wanted) for shards in opened]
    return Opened(concatenate_datasets(parts) if len(parts) > 1 else parts[0], origin, wanted.labels)


def shared_images(train: Iterable[Sequence[str]], held: Sequence[Sequence[str]]) -> int:
    """How many rows to evaluate on show an image that rows to train on show too.

    Args:
        train: the hashes of the images of each row.
        held: the same of the rows to evaluate on; these alone are kept in memory.
    """
    wanted = {digest for digests in held for digest in digests}
    both = {digest for digests in train for digest in digests if digest in wanted}
    return sum(any(digest in both for digest in digests) for digests in held) if both else 0


def hold_out(rows: Dataset, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers for training and for evaluation; rows that share their first image stay on one side.

    Raises:
        DataError: one side would be empty.
    """
    keys = [hashes[0] if hashes else row for hashes, row in zip(rows["image_sha256"], rows["id"], strict=True)]
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    held: list[int] = []
    for key in order:
        if len(held) >= fraction * len(keys):
            break
        held += groups[key]
    train = sorted(set(range(len(keys))) - set(held))
    if not train or not held:
        found = f"{len(keys)} rows on {len(order)} images"
        raise DataError(f"--eval-fraction {fraction:g} of {found} leaves one side empty")
    return train, sorted(held)


def _open(folder: str | Path, wanted: _Wanted, first: str | Path) -> Shards:
    where = place(folder)
    _check_converted(where)
    shards = open_shards(where)
    if shards.kind != wanted.kind:
        other = METHODS.get(shards.kind, "another command")
        raise DataError(f"{folder} holds {shards.kind} rows, expected {wanted.kind}: train on it with vlmtrain {other}")
    if not len(shards):
        raise DataError(f"{folder} holds no rows: vlmdata convert kept none, its rejects.jsonl says why")
    if wanted.labelled:
        names = shards.manifest.label_names
        if not names:
            raise DataError(
                f"{folder} has no labels: expected data of food101 or imagefolder (a subfolder for each class)"
            )
        if wanted.labels and names != wanted.labels:
            raise DataError(f"{folder} has other classes than {first}: {_strange(names, wanted.labels)}")
        wanted.labels = names
    return shards


def _check_converted(where: Path) -> None:
    """Say what a place without a manifest is: nothing, raw data, or a conversion that was stopped."""
    if where.is_dir() and ((where / MANIFEST).is_file() or (where / PLAN).is_file()):
        return
    if not where.exists():
        raise MissingError(f"no folder {where}; expected the --out folder of vlmdata convert")
    convert = f"vlmdata convert SOURCE {where} --out shards/{where.stem}"
    raise DataError(f"{where} is no converted dataset: convert it first, {convert} (vlmdata sources lists them)")


def _origin(shards: Shards) -> dict[str, Any]:
    return {
        "name": shards.path.name if is_remote(shards.path) else shards.path.resolve().name,
        "manifest_sha256": hashlib.sha256((shards.path / MANIFEST).read_bytes()).hexdigest(),
        "source": shards.manifest.source,
        "licence": shards.manifest.licence,
        "rows": len(shards),
    }


def _features(file: Path, wanted: _Wanted) -> Features:
    with open_parquet(file) as parquet:
        schema = parquet.schema_arrow
    missing = [name for name in wanted.columns if name not in schema.names]
    if missing:
        raise DataError(f"{file} has no column {', '.join(missing)}: convert it again")
    # Images stay encoded: they are decoded in the collator. Casting afterwards would copy them all.
    known = Features.from_arrow_schema(schema)
    return Features({name: known[name] for name in wanted.columns} | {"images": List(Image(decode=False))})


def _read(files: list[Path], wanted: _Wanted) -> Dataset:
    import pyarrow as pa

    features = _features(files[0], wanted)
    if sum(file.stat().st_size for file in files) > IN_MEMORY_BYTES and not is_remote(files[0]):
        return Dataset.from_parquet([str(file) for file in files], columns=wanted.columns, features=features)
    tables = []
    for file in files:
        with open_parquet(file) as parquet:
            tables.append(parquet.read(columns=wanted.columns))
    # Tables stay apart: joining their columns into one chunk could pass the 2 GiB of 32-bit offsets.
    return Dataset(pa.concat_tables(tables).cast(features.arrow_schema), info=DatasetInfo(features=features))


def _strange(names: Sequence[str], known: Sequence[str]) -> str:
    if len(names) != len(known):
        return f"{len(names)}, not {len(known)}"
    place = next(index for index, pair in enumerate(zip(names, known, strict=True)) if pair[0] != pair[1])
    return f"class {place} is {names[place]!r}, not {known[place]!r}"
