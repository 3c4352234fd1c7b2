"""The unit of work: some input rows become one shard. Every engine runs this same function."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from vlmdata.atomic import replacing, sha256_file, write_json
from vlmdata.errors import DataError, RecordError
from vlmdata.fields import printable
from vlmdata.images import ImagePolicy, StoredImage, read_inside, store
from vlmdata.manifest import ImageCounts, ShardInfo, add_counts
from vlmdata.plan import Task
from vlmdata.readers import Input, read
from vlmdata.records import Image, Provenance
from vlmdata.shards import ShardWriter, shard_schema, to_row
from vlmdata.source import Options, Source, load

__all__ = ["Job", "Outcome", "Report", "WORK", "convert_row", "run_task"]

WORK = ".work"
"""Folder in the output that holds the outcome of each finished shard until the manifest is written."""

Report = Callable[[int], None]
"""Told how many rows more have been read."""

_REPORT_EVERY = 16


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of a conversion share.

    Attributes:
        source: name of the source.
        inputs: the raw files, in the order that pieces count them.
        out: output folder.
        options: for the source's ``convert``.
        dataset: what the rows' provenance calls the raw data.
        revision: hub commit of the raw data.
        licence: what every row says of its licence.
        policy: for images.
        fail: the first rejected row ends the conversion.
    """

    source: str
    inputs: tuple[Input, ...]
    out: Path
    options: Options
    policy: ImagePolicy
    dataset: str
    revision: str | None
    licence: str
    fail: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        shard: the file that was written.
        read: raw rows.
        kept: raw rows that became records.
        rejects: the other rows: ``{id, file, row, reason, detail}``.
    """

    shard: ShardInfo
    read: int
    kept: int
    rejects: tuple[dict[str, Any], ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """For the file that marks the shard as finished."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """Read ``to_json`` back."""
        shard = {**values["shard"], "images": ImageCounts(**values["shard"]["images"])}
        return cls(ShardInfo(**shard), values["read"], values["kept"], tuple(values["rejects"]))

    @classmethod
    def finished(cls, task: Task, out: Path) -> Outcome | None:
        """The outcome of an earlier run, if the shard it speaks of is still there as it was written."""
        try:
            found = cls.from_json(json.loads(_outcome_path(task, out).read_bytes()))
            same = sha256_file(out / task.shard) == found.shard.sha256
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if same else None


def run_task(job: Job, task: Task, report: Report) -> Outcome:
    """Convert the rows of a task and write its shard.

    Raises:
        DataError: an input cannot be read on; or, where a reject ends the conversion, the first rejected row.
    """
    source = load(job.source)
    rejects: list[dict[str, Any]] = []
    images = ImageCounts()
    count = kept = 0
    with replacing(job.out / task.shard) as temporary:
        schema = shard_schema(source.kind, job.options.label_names)
        with ShardWriter(temporary, schema, shared_images=job.options.turns == "split") as writer:
            for file, number, row in _rows(job, task):
                row_id = f"{file.name}:{number}"
                count += 1
                try:
                    rows, counts = convert_row(source, row, file, number, job)
                except RecordError as error:
                    if job.fail:
                        raise DataError(f"row {row_id} is rejected: {error}; --on-error quarantine goes on") from None
                    rejects.append(_reject(row_id, file, number, error))
                else:
                    kept += 1
                    images.add(counts)
                    for shard_row in rows:
                        writer.write(shard_row)
                if count % _REPORT_EVERY == 0:
                    report(_REPORT_EVERY)
        records = writer.rows
    report(count % _REPORT_EVERY)
    path = job.out / task.shard
    shard = ShardInfo(task.shard, records, path.stat().st_size, sha256_file(path), images)
    outcome = Outcome(shard, count, kept, tuple(rejects))
    write_json(_outcome_path(task, job.out), outcome.to_json())
    return outcome


def convert_row(
    source: Source, row: Any, file: Input, number: int, job: Job
) -> tuple[list[dict[str, Any]], ImageCounts]:
    """A raw row as shard rows; all of them, or a reject.

    Raises:
        RecordError: the row cannot be kept.
    """
    if isinstance(row, RecordError):
        raise row
    if not isinstance(row, Mapping):
        raise RecordError("not_object", f"the row is {type(row).__name__}, expected an object with named fields")
    records = source.convert(row, f"{file.name}:{number}", job.options)
    provenance = Provenance(job.dataset, job.options.config, job.revision, file.name, number)
    counts = ImageCounts()
    stored: dict[int, StoredImage] = {}  # records that share images share the very same objects
    rows = []
    for record in records:
        for image in record.images:
            if id(image) not in stored:
                stored[id(image)] = _store(image, file, job.policy)
                _count(counts, stored[id(image)])
        images = [stored[id(image)] for image in record.images]
        rows.append(to_row(record, images, job.licence, provenance))
    return rows, counts


def _rows(job: Job, task: Task) -> Iterator[tuple[Input, int, Any]]:
    """All rows of a task as (file, number in the file, row), in the order they are written."""
    by_file = groupby(task.pieces, key=lambda piece: job.inputs[piece.input])
    rows = ((file, number, row) for file, pieces in by_file for number, row in read(file, list(pieces)))
    if task.seed is None:
        return rows
    held = list(rows)  # at most about the bytes of one shard
    random.Random(f"order {task.seed}").shuffle(held)
    return iter(held)


def _store(image: Image, file: Input, policy: ImagePolicy) -> StoredImage:
    data = image.data
    if data is None:
        assert image.path is not None
        if file.images is None:
            raise RecordError("image_path_only", f"{image.path} has no bytes; --image-root says where such files are")
        data = read_inside(Path(file.images), image.path)
    return store(data, policy)


def _count(counts: ImageCounts, stored: StoredImage) -> None:
    counts.count += 1
    counts.passed += not stored.changes
    counts.reencoded += bool(stored.changes)
    add_counts(counts.changes, dict.fromkeys(stored.changes, 1))
    add_counts(counts.formats, {stored.format: 1})
    counts.bytes_in += stored.size_in
    counts.bytes_out += len(stored.data)
    counts.widest = max(counts.widest, stored.width)
    counts.highest = max(counts.highest, stored.height)


def _reject(row_id: str, file: Input, number: int, error: RecordError) -> dict[str, Any]:
    detail = printable(error.detail)
    return {"id": row_id, "file": file.name, "row": number, "reason": error.reason, "detail": detail}


def _outcome_path(task: Task, out: Path) -> Path:
    return out / WORK / (Path(task.shard).stem + ".json")
