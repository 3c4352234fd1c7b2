"""Datasets to export, and exports that are checked as they are made."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export_rules import lines
from made import rows_of
from rawfiles import encoded, write_json

from vlmdata.convert import convert
from vlmdata.export import Export, export


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows}


def made(folder: Path, rows: Sequence[Any], name: str = "wild") -> Path:
    """Shards from rows of ``ocr_json``: content lists keep parts as they are."""
    for seed in range(4):
        kind = ("JPEG", "PNG")[seed % 2]
        path = folder / "photos" / f"{seed}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(kind=kind, seed=seed))
    raw = write_json(folder / f"{name}.json", rows)
    return convert("ocr_json", raw, folder / name, image_root=folder / "photos").out


def parts(*content: str | int) -> list[dict[str, Any]]:
    """Content: a text, or the number of a picture."""
    return [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "image": f"{item}.{ext(item)}"}
        for item in content
    ]


def ext(seed: int) -> str:
    return ("jpeg", "png")[seed % 2]


def run(shards: Path, target: str, out: Path, **options: Any) -> Export:
    done = export(shards, target, out, **options)
    told = json.loads((out / "export.json").read_text())
    assert told["rows"]["exported"] + told["rows"]["skipped"] == told["rows"]["read"] == len(rows_of(shards))
    assert sum(told["skipped"].values()) == told["rows"]["skipped"] == len(lines(out / "skipped.jsonl"))
    named = {file["name"]: file for file in told["files"]}
    assert {path.name for path in out.iterdir() if path.is_file()} == {*named, "export.json"}
    for name, file in named.items():
        data = (out / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"] and len(data) == file["bytes"]
    images = [path for path in out.glob("images/*/*")]
    assert len(images) == told["image_files"]
    for path in images:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem and path.parent.name == path.stem[:2]
    everything = b"".join(path.read_bytes() for path in out.iterdir() if path.is_file())
    assert str(shards.parent).encode() not in everything
    return done


def module(path: Path) -> Any:
    """The load.py of an export."""
    spec = importlib.util.spec_from_file_location(f"load_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
