"""Parquet shards of converted datasets: schema, writer and reader.

Plain Parquet that ``datasets``, pandas, DuckDB and TRL read as it is. Three points make images come back as images:
the ``huggingface`` key in the schema's metadata, 32-bit ``binary`` (with ``large_binary`` the decoding is silently
off), and content parts of exactly ``{type, text}`` (an ``image`` field that Arrow fills with null makes TRL count no
places at all).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmdata.errors import DataError
from vlmdata.images import StoredImage
from vlmdata.manifest import Manifest
from vlmdata.parquet import ROW_GROUP_BYTES, RowWriter
from vlmdata.places import open_parquet, place
from vlmdata.records import Provenance, Record, Sample

__all__ = ["ROW_GROUP_BYTES", "ShardWriter", "Shards", "open_shards", "shard_schema", "to_row"]

_IMAGE_BYTES = "images.list.element.bytes"


def shard_schema(kind: str, label_names: Sequence[str] = ()) -> pa.Schema:
    """The Arrow schema of a kind of shards, with the features ``datasets`` reads in its metadata."""
    string = {"dtype": "string", "_type": "Value"}
    size = {"dtype": "int32", "_type": "Value"}
    number = {"dtype": "int64", "_type": "Value"}
    messages = _list({"role": string, "content": _list({"type": string, "text": string})})
    features: dict[str, Any] = {"id": string, "images": _list({"_type": "Image"})}
    texts = ("messages",) if kind == "messages" else ("prompt", "chosen", "rejected")
    features |= dict.fromkeys(texts, messages)
    if label_names:
        features["label"] = {"names": list(label_names), "_type": "ClassLabel"}
    features |= {"source": string, "licence": string}
    features["provenance"] = {**dict.fromkeys(("dataset", "config", "revision", "file"), string), "row": number}
    features |= {"meta": string, "image_sha256": _list(string)}
    features["image_size"] = _list({"width": size, "height": size})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, _arrow_type(feature)) for name, feature in features.items()], metadata=metadata)


def to_row(record: Record, images: Sequence[StoredImage], licence: str, provenance: Provenance) -> dict[str, Any]:
    """A record as a shard row; ``images`` are those of the record, in order, as they are stored."""
    row: dict[str, Any] = {
        "id": record.id,
        "images": [
            {"bytes": stored.data, "path": raw.path} for stored, raw in zip(images, record.images, strict=True)
        ],
        "source": record.source,
        "licence": licence,
        "provenance": {
            "dataset": provenance.dataset,
            "config": provenance.config,
            "revision": provenance.revision,
            "file": provenance.file,
            "row": provenance.row,
        },
        "meta": json.dumps(dict(record.meta), sort_keys=True, ensure_ascii=False),
        "image_sha256": [stored.after.sha256 for stored in images],
        "image_size": [{"width": stored.after.width, "height": stored.after.height} for stored in images],
    }
    if isinstance(record, Sample):
        row["messages"] = [message.to_json() for message in record.messages]
        if record.label is not None:
            row["label"] = record.label
    else:
        for name in ("prompt", "chosen", "rejected"):
            row[name] = [message.to_json() for message in getattr(record, name)]
    return row


class ShardWriter(RowWriter):
    """Writes shard rows to one Parquet file, in row groups of limited size. The same rows give the same bytes."""

    def __init__(self, path: Path, schema: pa.Schema, *, shared_images: bool = False) -> None:
        """Open the file.

        Args:
            path: the file to write.
            schema: of ``shard_schema``.
            shared_images: neighbouring rows hold the same images, so that compressing them pays; one encoded image
                does not get smaller.
        """
        super().__init__(path, schema, encoded=() if shared_images else (_IMAGE_BYTES,))

    def write(self, row: Mapping[str, Any], size: int | None = None) -> None:
        """Add one row; its size is counted where it is not given."""
        if size is None:
            size = sum(len(image["bytes"]) for image in row["images"]) + _text_size(row)
        super().write(row, size)


@dataclass(frozen=True, slots=True)
class Shards:
    """A complete converted dataset.

    Attributes:
        path: its folder.
        manifest: what it is.
        files: its Parquet files, in order.
    """

    path: Path
    manifest: Manifest
    files: list[Path]

    @property
    def kind(self) -> str:
        """``messages`` or ``preference``."""
        return self.manifest.kind

    def __len__(self) -> int:
        """How many records there are."""
        return self.manifest.records

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows as plain Python values, batch by batch; images are ``{bytes, path}``."""
        for file in self.files:
            with open_parquet(file) as parquet:
                for batch in parquet.iter_batches(batch_size=64, columns=columns):
                    yield from batch.to_pylist()


def open_shards(path: str | Path) -> Shards:
    """Open a converted dataset.

    Raises:
        MissingError: there is no such folder.
        DataError: the folder holds no finished dataset, or a shard is missing.
    """
    path = place(path)
    manifest = Manifest.read(path)
    files = [path / shard.name for shard in manifest.shards]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing[:3])} of its manifest; make it again with --overwrite")
    return Shards(path, manifest, files)


def _text_size(row: Mapping[str, Any]) -> int:
    """Characters of all texts of a row."""
    lists = (row.get(name, ()) for name in ("messages", "prompt", "chosen", "rejected"))
    messages = (message for messages in lists for message in messages)
    return len(row["meta"]) + sum(len(part["text"] or "") for message in messages for part in message["content"])


def _list(feature: Any) -> dict[str, Any]:
    return {"feature": feature, "_type": "List"}


def _arrow_type(feature: Any) -> pa.DataType:
    """The storage type ``datasets`` gives a feature."""
    kind = feature.get("_type")
    if kind == "List":
        return pa.list_(_arrow_type(feature["feature"]))
    if kind == "Image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if kind == "ClassLabel":
        return pa.int64()
    if kind == "Value":
        return pa.type_for_alias(feature["dtype"])
    return pa.struct([(name, _arrow_type(part)) for name, part in feature.items()])
