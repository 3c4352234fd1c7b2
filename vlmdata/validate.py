"""Checking a converted dataset against its manifest and the rules of its rows, down to the pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.atomic import sha256_file
from vlmdata.errors import RecordError
from vlmdata.manifest import MANIFEST, Manifest
from vlmdata.records import Image, Message, Preference, Sample
from vlmdata.shards import shard_schema

__all__ = ["Problem", "validate"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: in which file, at which row if it is one, and what."""

    file: str
    row: str | None
    what: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.file}: {self.row + ': ' if self.row else ''}{self.what}"


def validate(path: Path, *, report: Callable[[int], None] = lambda rows: None) -> Iterator[Problem]:
    """All problems of a dataset; none means that every file is as it was written and every row can be used.

    Args:
        path: the folder.
        report: told how many rows more were checked.

    Raises:
        MissingError, DataError: there is no finished dataset to check.
    """
    manifest = Manifest.read(path)
    yield from _counts(path, manifest)
    schema = shard_schema(manifest.kind, manifest.label_names)
    ids: set[str] = set()
    for shard in manifest.shards:
        file = path / shard.name
        if not file.is_file():
            yield Problem(shard.name, None, "is in the manifest and not in the folder")
            continue
        if sha256_file(file) != shard.sha256:
            yield Problem(shard.name, None, "has other bytes than were written (sha256 differs)")
        try:
            yield from _shard(file, schema, shard.rows, manifest, ids, report)
        except (pa.ArrowException, OSError) as error:
            yield Problem(shard.name, None, f"cannot be read: {' '.join(str(error).split())[:120]}")


def _counts(path: Path, manifest: Manifest) -> Iterator[Problem]:
    rows = manifest.rows
    if rows.kept + rows.rejected != rows.read or sum(manifest.rejected.values()) != rows.rejected:
        yield Problem(MANIFEST, None, f"rows do not add up: {rows}, rejected {manifest.rejected}")
    if sum(shard.rows for shard in manifest.shards) != manifest.records:
        yield Problem(MANIFEST, None, f"the shards' rows do not add up to {manifest.records} records")
    known = {shard.name for shard in manifest.shards}
    for extra in sorted(file.name for file in path.glob("*.parquet") if file.name not in known):
        yield Problem(extra, None, "is in the folder and not in the manifest")
    rejects = path / "rejects.jsonl"
    lines = len(rejects.read_bytes().splitlines()) if rejects.is_file() else 0
    if lines != rows.rejected:
        yield Problem(rejects.name, None, f"has {lines} rows, the manifest says {rows.rejected}")


def _shard(
    file: Path, schema: pa.Schema, count: int, manifest: Manifest, ids: set[str], report: Callable[[int], None]
) -> Iterator[Problem]:
    with pq.ParquetFile(file, memory_map=True) as parquet:
        found = parquet.schema_arrow
        if not found.equals(schema) or _features(found) != _features(schema):
            yield Problem(file.name, None, "has another schema than its manifest says")
            return
        if parquet.metadata.num_rows != count:
            yield Problem(file.name, None, f"has {parquet.metadata.num_rows} rows, the manifest says {count}")
        for batch in parquet.iter_batches(batch_size=16):
            for row in batch.to_pylist():
                if row["id"] in ids:
                    yield Problem(file.name, row["id"], "the id stands in two rows")
                ids.add(row["id"])
                for what in _row(row, manifest):
                    yield Problem(file.name, row["id"], what)
            report(batch.num_rows)


def _features(schema: pa.Schema) -> Any:
    return json.loads((schema.metadata or {}).get(b"huggingface", b"null"))


def _row(row: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """What is wrong with a row."""
    try:
        _record(row, manifest)
    except RecordError as error:
        yield str(error)
    lengths = {len(row[name]) for name in ("images", "image_sha256", "image_size")}
    if len(lengths) > 1:
        yield "images, image_sha256 and image_size have different lengths"
        return
    for index, image in enumerate(row["images"]):
        for what in _image(image["bytes"], row["image_sha256"][index], row["image_size"][index]):
            yield f"image {index} {what}"


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


def _image(data: bytes | None, sha256: str, size: Mapping[str, int]) -> Iterator[str]:
    import PIL.Image

    if data is None:
        yield "has no bytes"
        return
    if hashlib.sha256(data).hexdigest() != sha256:
        yield "has another sha256 than its row says"
    try:
        with PIL.Image.open(BytesIO(data)) as picture:
            picture.load()
            turned = picture.getexif().get(0x0112, 1) != 1
            found, mode = picture.size, picture.mode
    except Exception as error:
        yield f"cannot be decoded: {type(error).__name__}: {error}"
        return
    if found != (size["width"], size["height"]):
        yield f"is {found[0]}x{found[1]} pixels, its row says {size['width']}x{size['height']}"
    if mode != "RGB" or turned:
        yield f"is of mode {mode}{', turned by EXIF' if turned else ''}; expected upright RGB"
