"""Pictures of noise, and rows of shards that show them."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["PLACE", "noise", "shown", "text", "write_shard"]

# Where a turn has its picture.
PLACE: dict[str, Any] = {"type": "image", "text": None}


def text(words: str) -> dict[str, Any]:
    """A part of a turn."""
    return {"type": "text", "text": words}


def noise(seed: int, side: int) -> Image.Image:
    """A square picture, always the same of a seed, ``side`` pixels wide."""
    return Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(side * side * 3))


def shown(seed: int, side: int) -> dict[str, Any]:
    """The columns of a row that hold its one picture."""
    stream = io.BytesIO()
    noise(seed, side).save(stream, "PNG", compress_level=1)
    data = stream.getvalue()
    return {
        "images": [{"bytes": data, "path": None}],
        "image_sha256": [hashlib.sha256(data).hexdigest()],
        "image_size": [{"width": side, "height": side}],
    }


def write_shard(folder: Path, kind: Any, rows: list[dict[str, Any]]) -> Path:
    """A converted dataset of one shard.

    Args:
        folder: that is made.
        kind: ``messages`` or ``preference``.
        rows: what is not the same in all of them.
    """
    from vlmdata.manifest import ImageCounts, Manifest, RowCounts, ShardInfo
    from vlmdata.shards import ShardWriter, shard_schema

    folder.mkdir(parents=True)
    path = folder / "data-00000-of-00001.parquet"
    with ShardWriter(path, shard_schema(kind)) as writer:
        for row in rows:
            writer.write({"meta": "{}", "source": "benchmark", "licence": "", "provenance": None, **row})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shard = ShardInfo(path.name, len(rows), path.stat().st_size, digest, ImageCounts())
    Manifest(
        kind=kind,
        source="benchmark",
        url="",
        licence="",
        config=None,
        split=None,
        revision=None,
        options={},
        rows=RowCounts(len(rows), len(rows), 0),
        rejected={},
        records=len(rows),
        images=ImageCounts(),
        inputs=(),
        shards=(shard,),
        label_names=(),
        versions={},
    ).write(folder)
    return folder
