"""Raw files in the published forms, built small for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CAULDRON = pa.schema(
    [
        ("images", pa.list_(IMAGE)),
        ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())]))),
    ]
)
RLAIF = pa.schema(
    [("image", IMAGE)]
    + [
        (name, pa.string())
        for name in ("ds_name", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path")
    ]
)
FOOTBALL = pa.schema([("image", IMAGE), ("text", pa.string())])


def food_schema(names: Sequence[str]) -> pa.Schema:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("image", IMAGE), ("label", pa.int64())], metadata=metadata)


def encoded(
    mode: str = "RGB", size: tuple[int, int] = (24, 16), kind: str = "JPEG", seed: int = 0, **save: Any
) -> bytes:
    gradient = Image.linear_gradient("L").resize(size).rotate(90 * (seed % 4))
    picture = Image.merge("RGB", [gradient, gradient.point(lambda v: (v * 3 + seed) % 256), gradient.rotate(180)])
    if mode in ("RGBA", "LA"):
        picture.putalpha(gradient)
    picture = picture.convert(mode)
    out = BytesIO()
    picture.save(out, kind, **save)
    return out.getvalue()


def picture(data: bytes) -> Image.Image:
    opened = Image.open(BytesIO(data))
    opened.load()
    return opened


def image(seed: int = 0, **how: Any) -> dict[str, Any]:
    return {"bytes": encoded(seed=seed, **how), "path": None}


def pairs(*texts: tuple[str | None, str | None]) -> list[dict[str, Any]]:
    return [{"user": user, "assistant": assistant, "source": "test"} for user, assistant in texts]


def cauldron_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "images": [image(number), *([image(number + 1)] if number % 3 == 0 else [])],
            "texts": pairs((f"Question {number}?", f"Answer {number}."), ("And then?", "Nothing.")),
        }
        for number in range(count)
    ]


def rlaif_row(number: int = 0, **changed: Any) -> dict[str, Any]:
    row = {
        "image": image(number),
        "ds_name": "rlaif",
        "question": f"What is shown in {number}?",
        "chosen": "A gradient.",
        "rejected": "A gradient and a dog.",
        "origin_dataset": "test",
        "origin_split": '{"model": "x"}',
        "idx": str(number),
        "image_path": None,
    }
    return {**row, **changed}


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, group: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, row_group_size=group)
    return path


def write_json(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def chat(user: Any, assistant: Any, images: Any = None, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, **({} if images is None else {"images": images}), **more}


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def reject_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
