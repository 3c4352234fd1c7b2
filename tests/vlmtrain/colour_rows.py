"""Small converted datasets for the tests of vlmtrain: coloured squares, written as shards."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image as Pictures

from vlmdata.manifest import ImageCounts, Manifest, RowCounts, ShardInfo
from vlmdata.shards import ShardWriter, shard_schema

COLOURS = ("red", "blue", "green", "yellow")
PLACE = {"type": "image", "text": None}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [text(p) if isinstance(p, str) else p for p in parts]}


def assistant(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [text(words)]}


def picture(colour: Any, size: tuple[int, int] = (40, 40)) -> bytes:
    stream = io.BytesIO()
    Pictures.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def sample(name: str, messages: list[Any], pictures: list[bytes]) -> dict[str, Any]:
    return {**_images(name, pictures), "messages": messages}


def preference(name: str, prompt: list[Any], chosen: str, rejected: str, pictures: list[bytes]) -> dict[str, Any]:
    answers = {"chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    return {**_images(name, pictures), "prompt": prompt, **answers}


def colours(number: int, size: tuple[int, int] = (40, 40)) -> list[dict[str, Any]]:
    """Rows that ask for the colour of their picture."""
    rows = []
    for i in range(number):
        colour = COLOURS[i % 4]
        ask = [user(PLACE, "What colour is it?"), assistant(f"It is {colour}.")]
        rows.append(sample(f"row-{i}", ask, [picture(colour, size)]))
    return rows


def pairs(number: int) -> list[dict[str, Any]]:
    """Preferences for the colour that is there."""
    rows = []
    for i in range(number):
        right, wrong = COLOURS[i % 4], COLOURS[(i + 1) % 4]
        ask = [user(PLACE, "What colour is it?")]
        rows.append(preference(f"pair-{i}", ask, f"It is {right}.", f"It is {wrong}, a circle.", [picture(right)]))
    return rows


def write(folder: Path, rows: list[dict[str, Any]], files: int = 1) -> Path:
    """Rows as a finished shards folder."""
    kind: Any = "messages" if "messages" in rows[0] else "preference"
    folder.mkdir(parents=True)
    shards = []
    for number in range(files):
        path = folder / f"data-{number:05d}-of-{files:05d}.parquet"
        with ShardWriter(path, shard_schema(kind)) as writer:
            for row in rows[number::files]:
                writer.write({"meta": "{}", **row, "source": "test", "licence": "", "provenance": None})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(ShardInfo(path.name, writer.rows, path.stat().st_size, digest, ImageCounts()))
    Manifest(
        kind=kind,
        source="test",
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
        shards=tuple(shards),
        label_names=(),
        versions={},
    ).write(folder)
    return folder


def _images(name: str, pictures: list[bytes]) -> dict[str, Any]:
    sizes = [Pictures.open(io.BytesIO(data)).size for data in pictures]
    return {
        "id": name,
        "images": [{"bytes": data, "path": None} for data in pictures],
        "image_sha256": [hashlib.sha256(data).hexdigest() for data in pictures],
        "image_size": [{"width": width, "height": height} for width, height in sizes],
    }
