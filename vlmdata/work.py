"""The unit of work: some input rows become one shard. Every engine runs this same function."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from vlmdata.ahead import map_ahead
from vlmdata.atomic import replacing, sha256_file, write_json
from vlmdata.errors import DataError, RecordError
from vlmdata.fields import printable
from vlmdata.image_log import IMAGES, count_image, log_row, open_log
from vlmdata.images import ImagePolicy, StoredImage, read_inside, store
from vlmdata.manifest import ImageCounts, ShardInfo, add_counts
from vlmdata.memory import release
from vlmdata.parquet import RowWriter
from vlmdata.places import place
from vlmdata.plan import Task
from vlmdata.readers import Input, read
from vlmdata.records import Image, Provenance, Record
from vlmdata.rejects import REJECTS, RawRow, open_rejects, reject_row
from vlmdata.shards import ShardWriter, shard_schema, to_row
from vlmdata.source import Kind, Options, Source, load, records

__all__ = ["Job", "Outcome", "Report", "WORK", "check_budget", "run_task"]

WORK = ".work"
"""Folder in the output that holds the outcome of each finished shard until the manifest is written."""

Report = Callable[[int], None]
"""Told how many rows more have been read."""

_REPORT_EVERY = 16
_CHUNK_ROWS = 8
_ROW_BYTES = 1 << 30  # half of what 32-bit offsets reach


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of a conversion share.

    Attributes:
        source: name of the source.
        kind: what its rows become.
        inputs: the raw files, in the order that pieces count them.
        out: output folder.
        options: for the source's ``convert``.
        dataset: what the rows' provenance calls the raw data.
        revision: hub commit of the raw data.
        licence: what every row says of its licence.
        policy: for images.
        max_rejects: more rejected rows than these end the conversion; None for no limit.
        threads: how many threads of a task decode and encode images.
    """

    source: str
    kind: Kind
    inputs: tuple[Input, ...]
    out: Path
    options: Options
    policy: ImagePolicy
    dataset: str
    revision: str | None
    licence: str
    max_rejects: int | None = None
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        shard: the file that was written, and the hashes of those beside it.
        read: raw rows.
        kept: raw rows that became records.
        rejected: the other rows, by reason.
    """

    shard: ShardInfo
    read: int
    kept: int
    rejected: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """For the file that marks the shard as finished."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """Read ``to_json`` back."""
        shard = {**values["shard"], "images": ImageCounts(**values["shard"]["images"])}
        return cls(ShardInfo(**shard), values["read"], values["kept"], dict(values["rejected"]))

    @classmethod
    def finished(cls, task: Task, out: Path) -> Outcome | None:
        """The outcome of an earlier run, if the files it speaks of are still there as they were written."""
        try:
            found = cls.from_json(json.loads(_outcome_path(task, out).read_bytes()))
            files = {out / task.shard: found.shard.sha256}
            files |= {out / folder / task.shard: digest for folder, digest in found.shard.beside.items()}
            same = all(sha256_file(path) == digest for path, digest in files.items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if same else None


def run_task(job: Job, task: Task, report: Report) -> Outcome:
    """Convert the rows of a task and write its shard, its image log and its rejects.

    Raises:
        DataError: an input cannot be read on; or, where rejects end the conversion, why they do.
    """
    paths = {folder: job.out / folder / task.shard for folder in (IMAGES, REJECTS)}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    paths[REJECTS].unlink(missing_ok=True)  # of a run that was ended, after which what it rejected may have been mended
    with ExitStack() as stack:
        enter = stack.enter_context
        # What is entered first is moved into place last: the shard, when all that belongs to it is there.
        temporary = enter(replacing(job.out / task.shard))
        schema = shard_schema(job.kind, job.options.label_names)
        shared = job.options.turns == "split"
        writer = enter(ShardWriter(temporary, schema, shared_images=shared))
        log = enter(open_log(enter(replacing(paths[IMAGES]))))
        writing = _Writing(job, writer, log, lambda: enter(open_rejects(enter(replacing(paths[REJECTS])))))
        with closing(_convert(job, task)) as rows:
            for count, row in enumerate(rows, 1):
                writing.take(row)
                if count % _REPORT_EVERY == 0:
                    report(_REPORT_EVERY)
    report(writing.read % _REPORT_EVERY)
    hashes = {IMAGES: log.sha256} | ({REJECTS: writing.rejects.sha256} if writing.rejects else {})
    shard = ShardInfo(task.shard, writer.rows, writer.bytes, writer.sha256, writing.images, hashes)
    outcome = Outcome(shard, writing.read, writing.kept, writing.rejected)
    write_json(_outcome_path(task, job.out), outcome.to_json())
    release()
    return outcome


@dataclass(slots=True)
class _Converted:
    """A raw row on its way: its records and their distinct images, or why it is rejected."""

    file: Input
    name: str
    number: int
    value: Any
    records: Sequence[Record] = ()
    images: Sequence[Image] = ()
    stored: Sequence[StoredImage] = ()
    error: RecordError | None = None


@dataclass(slots=True)
class _Writing:
    """The files of a task being written, and its counts."""

    job: Job
    shard: ShardWriter
    log: RowWriter
    open_rejects: Callable[[], RowWriter]
    rejects: RowWriter | None = None
    images: ImageCounts = field(default_factory=ImageCounts)
    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def take(self, row: _Converted) -> None:
        """Write one raw row where it belongs."""
        self.read += 1
        if row.error is not None:
            self._reject(row, row.error)
            return
        self.kept += 1
        row_id = f"{row.name}:{row.number}"
        for number, image in enumerate(row.stored):
            count_image(self.images, image)
            self.log.write(*log_row(row_id, number, image))
        by_image = {id(image): done for image, done in zip(row.images, row.stored, strict=True)}
        job = self.job
        provenance = Provenance(job.dataset, job.options.config, job.revision, row.name, row.number)
        for record in row.records:
            images = [by_image[id(image)] for image in record.images]
            self.shard.write(to_row(record, images, job.licence, provenance))

    def _reject(self, row: _Converted, error: RecordError) -> None:
        add_counts(self.rejected, {error.reason: 1})
        if self.rejects is None:
            self.rejects = self.open_rejects()
        self.rejects.write(*reject_row(row.name, row.number, error, row.value, printable(error.detail)))
        last = f"; the last is {row.name}:{row.number}, {printable(str(error))}"
        check_budget(self.rejected, self.job.max_rejects, last)


def check_budget(rejected: Mapping[str, int], most: int | None, last: str = "") -> None:
    """End a conversion that rejects too much.

    Raises:
        DataError: more rows are rejected than ``most``.
    """
    count = sum(rejected.values())
    if most is not None and count > most:
        reasons = ", ".join(f"{reason} {number}" for reason, number in rejected.items())
        raise DataError(
            f"more than {most} rows are rejected ({reasons}){last}; mend the input, or allow more with --max-rejects"
        )


def _convert(job: Job, task: Task) -> Generator[_Converted, None, None]:
    """All rows of a task in the order they are written; their images are worked on in threads."""
    source = load(job.source)

    def chunks() -> Iterator[list[_Converted]]:
        rows = _rows(job, task)
        while chunk := [_converted(source, *row, job) for row in islice(rows, _CHUNK_ROWS)]:
            yield chunk

    def stored(chunk: list[_Converted]) -> list[_Converted]:
        for row in chunk:
            _store_images(row, job.policy)
        return chunk

    with closing(map_ahead(stored, chunks(), job.threads)) as done:
        yield from chain.from_iterable(done)


def _converted(source: Source, file: Input, number: int, value: Any, job: Job) -> _Converted:
    """One raw row as records; their images are as they came."""
    name = file.name
    if isinstance(value, RawRow):
        name, number, value = value.file, value.number, value.value
    row = _Converted(file, name, number, value)
    try:
        if isinstance(value, RecordError):
            raise value
        if not isinstance(value, Mapping):
            raise RecordError("not_object", f"the row is {type(value).__name__}, expected an object with named fields")
        row.records = records(source, value, f"{name}:{number}", job.options)
        # Records that share images share the very same objects.
        row.images = list({id(image): image for record in row.records for image in record.images}.values())
    except RecordError as error:
        row.error = error
    return row


def _store_images(row: _Converted, policy: ImagePolicy) -> None:
    if row.error is None:
        try:
            row.stored = [_store(image, row.file, policy) for image in row.images]
            size = sum(image.after.bytes for image in row.stored)
            if size > _ROW_BYTES:
                detail = f"the row's images have {size} bytes together, at most {_ROW_BYTES} fit in a row"
                raise RecordError("image_too_large", detail)
        except RecordError as error:
            row.error = error


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
        data = read_inside(place(file.images), image.path)
    return store(data, policy)


def _outcome_path(task: Task, out: Path) -> Path:
    return out / WORK / (Path(task.shard).stem + ".json")
