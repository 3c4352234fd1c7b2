"""``manifest.json``: what a converted dataset is. It is written last, so where it stands the dataset is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmdata.atomic import write_json
from vlmdata.errors import DataError, MissingError

__all__ = [
    "CARD",
    "ImageCounts",
    "InputFile",
    "MANIFEST",
    "Manifest",
    "Parent",
    "RowCounts",
    "SCHEMA_VERSION",
    "ShardInfo",
    "add_counts",
]

MANIFEST = "manifest.json"
CARD = "README.md"
_SUMMED = (
    "count passed reencoded rotated composited resized small_decodes small_decodes_declined bytes_in bytes_out".split()
)
SCHEMA_VERSION = 2


@dataclass(slots=True)
class ImageCounts:
    """What happened to the images; counts add up over rows and shards.

    Attributes:
        count: stored images (an image that several records share counts once for each).
        passed: stored as the bytes they came in.
        reencoded: stored anew; count = passed + reencoded.
        rotated: of those, turned upright as EXIF says.
        composited: of those, put on white where they were transparent.
        resized: of those, scaled.
        small_decodes: of the resized, scaled from a JPEG that was decoded small.
        small_decodes_declined: of the resized, decoded in full because the small decode was not close enough.
        changes: why they were stored anew, by reason; one image may have several.
        formats: what they are stored as.
        bytes_in: encoded bytes before.
        bytes_out: encoded bytes after.
        widest: largest width in pixels.
        highest: largest height in pixels.
    """

    count: int = 0
    passed: int = 0
    reencoded: int = 0
    rotated: int = 0
    composited: int = 0
    resized: int = 0
    small_decodes: int = 0
    small_decodes_declined: int = 0
    changes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    widest: int = 0
    highest: int = 0

    def add(self, other: ImageCounts) -> None:
        """Add the counts of another part."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        add_counts(self.changes, other.changes)
        add_counts(self.formats, other.formats)
        self.widest = max(self.widest, other.widest)
        self.highest = max(self.highest, other.highest)


def add_counts(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add counts by name; names stay sorted."""
    known = len(total)
    for name, count in more.items():
        total[name] = total.get(name, 0) + count
    if len(total) > known:
        ordered = sorted(total.items())
        total.clear()
        total.update(ordered)


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Raw rows; kept + rejected = read."""

    read: int
    kept: int
    rejected: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """One raw file.

    Attributes:
        name: path relative to what all raw files have in common.
        bytes: its size.
        rows: how many it holds.
        fingerprint: sha256 of its size, first and last 64 KiB; None for a file on the hub, which the revision fixes.
    """

    name: str
    bytes: int
    rows: int
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One Parquet file.

    Attributes:
        name: file name in the folder.
        rows: records in it.
        bytes: its size.
        sha256: of the whole file.
        images: what happened to its images.
        beside: sha256 of the files of the same name in other folders, by folder: ``images`` and ``rejects``.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    images: ImageCounts
    beside: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parent:
    """A converted dataset that another one was made from.

    Attributes:
        name: name of its folder.
        manifest_sha256: of its ``manifest.json``.
        records: how many it holds.
        taken: how many of them are in the new dataset, repeats counted.
    """

    name: str
    manifest_sha256: str
    records: int
    taken: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A converted dataset.

    Attributes:
        kind: ``messages`` or ``preference``.
        source: name of the source.
        url: where the raw data is published.
        licence: as the publisher states it.
        config: sub-dataset, if the source has several.
        split: the part that was asked for.
        revision: hub commit the raw files are from, if they are from the hub.
        options: every option that changes what is written, resolved; but for the image root, which names a place
            on one machine.
        rows: raw rows.
        rejected: raw rows by reason.
        records: rows in the shards; more than ``rows.kept`` when a raw row gives several.
        images: sums over the shards.
        inputs: the raw files.
        shards: the Parquet files, in order.
        label_names: class names in index order; empty where there is no label.
        versions: of what wrote the bytes.
        command: what made the dataset: ``convert``, or ``split``, ``filter``, ``dedup``, ``mix``.
        parents: the converted datasets it was made from; none for ``convert``. Where there are some, rows are their
            records, and ``images`` counts what is stored without saying how it came about.
        schema: version of this form.
    """

    kind: Literal["messages", "preference"]
    source: str
    url: str
    licence: str
    config: str | None
    split: str | None
    revision: str | None
    options: dict[str, Any]
    rows: RowCounts
    rejected: dict[str, int]
    records: int
    images: ImageCounts
    inputs: tuple[InputFile, ...]
    shards: tuple[ShardInfo, ...]
    label_names: tuple[str, ...]
    versions: dict[str, str]
    command: str = "convert"
    parents: tuple[Parent, ...] = ()
    schema: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        values = asdict(self)
        return {"schema": values.pop("schema"), **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Manifest:
        """Read ``to_json`` back.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        parts = dict(values)
        parts["rows"] = RowCounts(**parts["rows"])
        parts["images"] = ImageCounts(**parts["images"])
        parts["inputs"] = tuple(InputFile(**item) for item in parts["inputs"])
        parts["shards"] = tuple(
            ShardInfo(**{**item, "images": ImageCounts(**item["images"])}) for item in parts["shards"]
        )
        parts["parents"] = tuple(Parent(**item) for item in parts["parents"])
        parts["label_names"] = tuple(parts["label_names"])
        return cls(**parts)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically."""
        write_json(folder / MANIFEST, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder.

        Raises:
            MissingError: there is no such folder.
            DataError: the folder holds no readable manifest.
        """
        path = folder / MANIFEST
        if not folder.is_dir():
            raise MissingError(f"no folder {folder}; expected the --out folder of vlmdata convert")
        if not path.is_file():
            raise DataError(
                f"{folder} holds no {MANIFEST}: the conversion was never finished, or it is no converted dataset; "
                "run the command that made it again; vlmdata convert takes --resume"
            )
        try:
            values = json.loads(path.read_bytes())
            if values["schema"] != SCHEMA_VERSION:
                raise DataError(f"{path} is of schema {values['schema']}, this version reads {SCHEMA_VERSION}")
            return cls.from_json(values)
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); make it again with --overwrite") from None
