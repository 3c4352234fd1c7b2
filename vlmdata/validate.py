"""Checking a converted dataset against its manifest and the rules of its rows, down to the pixels."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmdata.atomic import sha256_file
from vlmdata.errors import ConfigError, RecordError
from vlmdata.image_log import IMAGES, LOG_SCHEMA
from vlmdata.manifest import MANIFEST, Manifest, ShardInfo
from vlmdata.placeholders import RULES
from vlmdata.places import open_parquet, place
from vlmdata.records import Image, Message, Preference, Sample
from vlmdata.rejects import REJECTS, REJECTS_FILE
from vlmdata.shards import shard_schema

__all__ = ["Problem", "validate"]

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: in which file, at which row if it is one, and what."""

    file: str
    row: str | None
    what: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.file}: {self.row + ': ' if self.row else ''}{self.what}"


def validate(
    path: str | Path,
    *,
    sample: int | None = None,
    rules: tuple[str, ...] = tuple(RULES),
    workers: int = 1,
    report: Callable[[int], None] = lambda rows: None,
) -> Iterator[Problem]:
    """All problems of a dataset; none means that every file is as it was written and every row can be used.

    Args:
        path: the folder.
        sample: decode the images of so many rows, evenly spread; None decodes all.
        rules: names of ``vlmdata.placeholders.RULES`` that every row must pass.
        workers: threads that decode.
        report: told how many rows more were checked.

    Raises:
        MissingError, DataError: there is no finished dataset to check.
    """
    if sample is not None and sample < 0:
        raise ConfigError(f"sample is {sample}, expected 0 (decode nothing) or a number of rows")
    path = place(path)
    manifest = Manifest.read(path)
    yield from _counts(path, manifest)
    schema = shard_schema(manifest.kind, manifest.label_names)
    every = 0 if sample == 0 else 1 if sample is None else max(1, math.ceil(manifest.records / sample))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        checking = _Checking(manifest, schema, rules, every, pool)
        for shard in manifest.shards:
            yield from _files(path, shard)
            file = path / shard.name
            if not file.is_file():
                continue
            try:
                yield from checking.shard(file, shard, report)
            except (pa.ArrowException, OSError) as error:
                yield Problem(shard.name, None, f"cannot be read: {' '.join(str(error).split())[:120]}")


def _counts(path: Path, manifest: Manifest) -> Iterator[Problem]:
    rows, images = manifest.rows, manifest.images
    if rows.kept + rows.rejected != rows.read or sum(manifest.rejected.values()) != rows.rejected:
        yield Problem(MANIFEST, None, f"rows do not add up: {rows}, rejected {manifest.rejected}")
    if sum(shard.rows for shard in manifest.shards) != manifest.records:
        yield Problem(MANIFEST, None, f"the shards' rows do not add up to {manifest.records} records")
    if manifest.command == "convert" and images.passed + images.reencoded != images.count:
        yield Problem(MANIFEST, None, f"images do not add up: {images.passed} + {images.reencoded} of {images.count}")
    known = {shard.name for shard in manifest.shards}
    for extra in sorted(file.name for file in path.glob("*.parquet") if file.name not in known):
        yield Problem(extra, None, "is in the folder and not in the manifest")
    rejects = path / REJECTS_FILE
    lines = len(rejects.read_bytes().splitlines()) if rejects.is_file() else 0
    if lines != rows.rejected:
        yield Problem(rejects.name, None, f"has {lines} rows, the manifest says {rows.rejected}")
    if any(REJECTS in shard.beside for shard in manifest.shards):
        found = sum(map(_rows_in, (path / REJECTS).glob("*.parquet")))
        if found != rows.rejected:
            yield Problem(f"{REJECTS}/", None, f"has {found} rows, the manifest says {rows.rejected}")


def _rows_in(file: Path) -> int:
    """How many rows a Parquet file holds; none when it is broken, of which its hash tells."""
    try:
        with open_parquet(file) as parquet:
            return int(parquet.metadata.num_rows)
    except (pa.ArrowException, OSError):
        return 0


def _files(path: Path, shard: ShardInfo) -> Iterator[Problem]:
    """Files of a shard that are not as they were written."""
    digests = {shard.name: shard.sha256} | {f"{name}/{shard.name}": of for name, of in shard.beside.items()}
    for name, digest in digests.items():
        if not (path / name).is_file():
            yield Problem(name, None, "is in the manifest and not in the folder")
        elif sha256_file(path / name) != digest:
            yield Problem(name, None, "has other bytes than were written (sha256 differs)")


@dataclass(slots=True)
class _Checking:
    """What is known while rows are checked one shard after the other."""

    manifest: Manifest
    schema: pa.Schema
    rules: tuple[str, ...]
    every: int
    pool: ThreadPoolExecutor
    ids: set[str] = field(default_factory=set)
    seen: int = 0

    def shard(self, file: Path, shard: ShardInfo, report: Callable[[int], None]) -> Iterator[Problem]:
        """What is wrong in one file."""
        stored: Counter[str] = Counter()
        with open_parquet(file) as parquet:
            found = parquet.schema_arrow
            if not found.equals(self.schema) or _features(found) != _features(self.schema):
                yield Problem(file.name, None, "has another schema than its manifest says")
                return
            if parquet.metadata.num_rows != shard.rows:
                yield Problem(file.name, None, f"has {parquet.metadata.num_rows} rows, the manifest says {shard.rows}")
            for batch in parquet.iter_batches(batch_size=_BATCH):
                rows = batch.to_pylist()
                for row, problems in zip(rows, self.pool.map(self._row, rows, self._decoded(len(rows))), strict=True):
                    if row["id"] in self.ids:
                        yield Problem(file.name, row["id"], "the id stands in two rows")
                    self.ids.add(row["id"])
                    stored.update(dict.fromkeys(row["image_sha256"] or (), 1))
                    yield from (Problem(file.name, row["id"], what) for what in problems)
                report(batch.num_rows)
        if IMAGES in shard.beside:
            yield from _log(file.parent / IMAGES / file.name, shard, set(stored))

    def _decoded(self, count: int) -> list[bool]:
        """Which of the next rows are to be decoded."""
        start, self.seen = self.seen, self.seen + count
        return [self.every > 0 and number % self.every == 0 for number in range(start, start + count)]

    def _row(self, row: Mapping[str, Any], decoded: bool) -> list[str]:
        """What is wrong with a row."""
        try:
            return [*self._texts(row), *_images(row, decoded)]
        except (TypeError, KeyError, AttributeError) as error:  # a null where a row has none
            return [f"has a field that is null or of another form: {error}"]

    def _texts(self, row: Mapping[str, Any]) -> Iterator[str]:
        try:
            _record(row, self.manifest)
        except RecordError as error:
            yield str(error)
        prompt = row["prompt"] if self.manifest.kind == "preference" else row["messages"]
        answers = [row[name] for name in ("chosen", "rejected")] if self.manifest.kind == "preference" else []
        for name in self.rules:
            faults = [RULES[name](prompt, len(row["images"])), *(RULES[name](answer, 0) for answer in answers)]
            yield from (fault for fault in faults if fault)


def _log(path: Path, shard: ShardInfo, stored: set[str]) -> Iterator[Problem]:
    """Where the image log of a shard does not agree with its rows and counts."""
    name = f"{IMAGES}/{path.name}"
    if not path.is_file():
        return
    with open_parquet(path) as parquet:
        if not parquet.schema_arrow.equals(LOG_SCHEMA):
            yield Problem(name, None, "has another schema than an image log")
            return
        log = parquet.read(["action", "sha256_before", "sha256_after"]).to_pylist()
    if len(log) != shard.images.count:
        yield Problem(name, None, f"has {len(log)} images, the manifest says {shard.images.count}")
    passed = [line for line in log if line["action"] == "passed"]
    if len(passed) != shard.images.passed:
        yield Problem(name, None, f"{len(passed)} images passed, the manifest says {shard.images.passed}")
    if any(line["sha256_before"] != line["sha256_after"] for line in passed):
        yield Problem(name, None, "an image passed and has another sha256 than before")
    logged = {line["sha256_after"] for line in log}
    if logged != stored:
        lost, strange = len(logged - stored), len(stored - logged)
        yield Problem(name, None, f"{lost} logged images are not in the shard, {strange} of the shard are not logged")


def _features(schema: pa.Schema) -> Any:
    return json.loads((schema.metadata or {}).get(b"huggingface", b"null"))


def _record(row: Mapping[str, Any], manifest: Manifest) -> Sample | Preference:
    images = tuple(Image(image["bytes"], image["path"]) for image in row["images"])

    def messages(name: str) -> tuple[Message, ...]:
        return tuple(map(Message.from_json, row[name]))

    if manifest.kind == "preference":
        texts = (messages("prompt"), messages("chosen"), messages("rejected"))
        return Preference(row["id"], images, *texts, source=row["source"])
    label = row.get("label")
    if manifest.label_names and not (isinstance(label, int) and 0 <= label < len(manifest.label_names)):
        raise RecordError("unknown_label", f"label {label} of {len(manifest.label_names)} classes")
    return Sample(row["id"], images, messages("messages"), source=row["source"], label=label)


def _images(row: Mapping[str, Any], decoded: bool) -> Iterator[str]:
    if len({len(row[name]) for name in ("images", "image_sha256", "image_size")}) > 1:
        yield "images, image_sha256 and image_size have different lengths"
        return
    for index, image in enumerate(row["images"]):
        data = image["bytes"]
        if data is None:
            yield f"image {index} has no bytes"
            continue
        if hashlib.sha256(data).hexdigest() != row["image_sha256"][index]:
            yield f"image {index} has another sha256 than its row says"
        if decoded:
            yield from (f"image {index} {what}" for what in _pixels(data, row["image_size"][index]))


def _pixels(data: bytes, size: Mapping[str, int]) -> Iterator[str]:
    import PIL.Image

    try:
        with PIL.Image.open(BytesIO(data)) as picture:
            picture.load()
            turned = picture.getexif().get(0x0112, 1) in range(2, 9)  # 0 and others mean nothing
            found, mode = picture.size, picture.mode
    except Exception as error:
        yield f"cannot be decoded: {type(error).__name__}: {error}"
        return
    if found != (size["width"], size["height"]):
        yield f"is {found[0]}x{found[1]} pixels, its row says {size['width']}x{size['height']}"
    if mode != "RGB" or turned:
        yield f"is of mode {mode}{', turned by EXIF' if turned else ''}; expected upright RGB"
