"""Raw Parquet for the conversion benchmark: photo-like pictures of about 640x480 in the_cauldron's schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

__all__ = ["KINDS", "write_raw"]

KINDS = {"L": 61, "exif": 62, "RGBA": 48, "P": 43, "CMYK": 17}
"""How many pictures of 2,000 are not upright RGB JPEG, by what they are."""

_SIZES = ((640, 480), (480, 640), (640, 427), (500, 375), (612, 612), (720, 480))
_ROWS_PER_GROUP = 100
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PAIR = pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())])
_FEATURES = {
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "texts": {
        "feature": {name: {"dtype": "string", "_type": "Value"} for name in ("user", "assistant", "source")},
        "_type": "List",
    },
}
_SCHEMA = pa.schema(
    [("images", pa.list_(_IMAGE)), ("texts", pa.list_(_PAIR))],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


def write_raw(folder: Path, rows: int, photos: Path | None, seed: int = 0) -> dict[str, Path]:
    """Write ``mix``, ``clean`` and, where a folder of JPEGs is given, ``photos``; the file of each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"mix": folder / "mix.parquet", "clean": folder / "clean.parquet"}
    _write(files["mix"], (_encoded(number, _kind(number, rows), seed) for number in range(rows)))
    clean = (number for number in range(rows) if _kind(number, rows) == "RGB")
    _write(files["clean"], (_encoded(number, "RGB", seed) for number in clean))
    real = sorted(photos.glob("*.jpg")) if photos is not None and photos.is_dir() else []
    if real:
        files["photos"] = folder / "photos.parquet"
        _write(files["photos"], (real[number % len(real)].read_bytes() for number in range(rows)))
    return files


def _write(path: Path, images: Iterator[bytes]) -> None:
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        held: list[dict[str, Any]] = []
        for number, data in enumerate(images):
            text = {"user": f"What does picture {number} show?", "assistant": f"Answer {number}. " * 4, "source": "x"}
            held.append({"images": [{"bytes": data, "path": None}], "texts": [text]})
            if len(held) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(held, _SCHEMA))
                held = []
        if held:
            writer.write_table(pa.Table.from_pylist(held, _SCHEMA))


def _kind(number: int, rows: int) -> str:
    """Odd pictures stand evenly among the others, in the shares of ``KINDS``."""
    at = int(np.random.default_rng([number, 7]).integers(2000))
    for kind, count in KINDS.items():
        if at < count:
            return kind
        at -= count
    return "RGB"


def _encoded(number: int, kind: str, seed: int) -> bytes:
    picture = _picture(number, seed)
    out = BytesIO()
    exif = Image.Exif()
    if kind == "RGBA":
        alpha = Image.linear_gradient("L").resize(picture.size)
        picture.putalpha(alpha)
        picture.save(out, "PNG")
    elif kind == "P":
        picture.convert("P", palette=Image.Palette.ADAPTIVE).save(out, "PNG")
    else:
        if kind == "exif":
            exif[0x0112] = 6
        picture = picture.convert(kind) if kind in ("L", "CMYK") else picture
        picture.save(out, "JPEG", quality=90, exif=exif)
    return out.getvalue()


def _picture(number: int, seed: int) -> Image.Image:
    """Clouds of 1/f noise with a few hard-edged patches: about as hard to compress as a photo."""
    random = np.random.default_rng([seed, number])
    width, height = _SIZES[number % len(_SIZES)]
    clouds = _clouds(number % 60, seed)
    shifted = np.roll(clouds, tuple(map(int, random.integers(clouds.shape[0], size=2))), axis=(0, 1))
    mixed = shifted[:height, :width].copy()
    for _ in range(6):
        x, y = int(random.integers(width - 40)), int(random.integers(height - 40))
        w, h = int(random.integers(20, width // 3)), int(random.integers(20, height // 3))
        mixed[y : y + h, x : x + w] += random.normal(0, 30, 3).astype(np.float32)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


@lru_cache(maxsize=60)
def _clouds(number: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``[768, 768, 3]`` that goes on at its edges, so that any shift of it is another picture."""
    random = np.random.default_rng([seed, number])
    side = 768
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = 1
    layers = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * random.random(frequency.shape))
        noise = np.fft.irfft2(phases / frequency**1.4, s=(side, side))
        layers.append(noise / noise.std())
    grey, red, blue = layers
    mixed = np.stack([grey + 0.35 * red, grey, grey + 0.35 * blue], axis=-1)
    return (128 + 42 * mixed).astype(np.float32)
