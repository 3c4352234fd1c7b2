"""For the tests of image classification: noisy coloured pictures, really converted, and a look at what comes out."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

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


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter_model.safetensors")


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
