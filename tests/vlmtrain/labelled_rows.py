"""For the tests of image classification: noisy coloured pictures, really converted, and a look at what comes out."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from vlmdata.convert import convert
from vlmtrain import family as families

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 180, 40),
    "blue": (30, 40, 200),
    "yellow": (210, 200, 40),
    "grey": (120, 120, 120),
    "dark_pink": (190, 40, 130),
}

CLASSES = tuple(sorted(COLOURS))
QUICK: dict[str, Any] = {"batch_size": 12, "learning_rate": 2e-2, "lora_dropout": 0.1, "progress": False, "seed": 1}


def pictures(folder: Path, per_class: int, names: Sequence[str] = tuple(COLOURS), seed: int = 0) -> Path:
    """A folder of pictures for each class, no two alike, of different sizes."""
    draws = random.Random(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            colour = tuple(min(255, max(0, part + draws.randint(-25, 25))) for part in COLOURS[name])
            picture = Image.new("RGB", (draws.randint(36, 60), draws.randint(36, 60)), colour)
            picture.putpixel((number % 30, seed % 30), (255, 255, 255))
            picture.save(folder / name / f"{number}.png")
    return folder


def kinds() -> list[tuple[str, str]]:
    """(family, model type) of every image classifier."""
    found = [name for name in families.names() if families.load(name).task == "classify"]
    return [(name, kind) for name in found for kind in importlib.import_module(f"tiny_models.{name}").NAMES]


def write(folder: Path, per_class: int, names: Sequence[str] = tuple(COLOURS), seed: int = 0) -> Path:
    """The same as shards."""
    raw = pictures(folder.with_name(folder.name + "-raw"), per_class, names, seed)
    convert("imagefolder", raw, folder, engine="serial")
    return folder


def shards(name: str, per_class: int, seed: int = 0) -> Any:
    """A fixture: these shards, written once for the tests of a file."""

    @pytest.fixture(scope="module")
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write(tmp_path_factory.mktemp("data") / name, per_class, seed=seed)

    return folder


def cut_short(folder: Path, places: Sequence[int]) -> list[dict[str, Any]]:
    """Leave only the beginnings of some rows' pictures; gives back all rows."""
    file = next(folder.glob("*.parquet"))
    table = pq.read_table(file)
    rows: list[dict[str, Any]] = table.to_pylist()
    for place in places:
        rows[place]["images"][0]["bytes"] = rows[place]["images"][0]["bytes"][:40]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    return rows


def batch(processor: Any, held: Path) -> tuple[torch.Tensor, torch.Tensor]:
    from vlmtrain.data import open_data
    from vlmtrain.pixels import PictureCollator

    rows = open_data([held], "messages", labelled=True).rows
    made = PictureCollator(processor, None)([rows[i] for i in range(len(rows))])
    return made["pixel_values"], made["labels"]


def logits(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(pixel_values=pixels).logits
    return found
