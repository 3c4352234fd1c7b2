"""What the tests of the local model ask, and of what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmeval.models.local import Local
from vlmeval.models.questions import turns_of
from vlmeval.task import Item, Response
from vlmtrain import family as families
from vlmtrain.questions import Questions

__all__ = ["FAMILIES", "encoded", "local", "questions", "ranked", "said", "shares", "write_pictures"]

FAMILIES = [name for name in families.names() if families.load(name).task == "text"]
LIMITS = {"text": 6, "answer": 4}
COLOURS = ("It is a red square.", "It is a blue circle, large and round.", "green")


def write_pictures(folder: Path) -> Path:
    for place, (colour, size) in enumerate((("red", (40, 40)), ("blue", (64, 30)), ("green", (90, 120)))):
        Image.new("RGB", size, colour).save(folder / f"{place}.png")
    return folder


def questions(number: int) -> list[Item]:
    return [
        Item(place, "Is it red? " * (1 + place % 3), (f"{place % 3}.png",), "Yes", ("g",), choices=("Yes", "No"))
        for place in range(number)
    ]


def ranked(number: int) -> list[Item]:
    return [
        Item(f"r{place}", "What is it?", (f"{place % 3}.png",), 0, ("g",), "choice", choices=COLOURS)
        for place in range(number)
    ]


def local(model: Path, pictures: Path | None, **options: Any) -> Local:
    adapter = options.pop("adapter", None)
    options = {"batch_size": 4, "max_new_tokens": LIMITS, **options}
    if "device_map" not in options:
        options["device"] = "cpu"
    return Local(str(model), adapter, images=pictures, **options)


def encoded(model: Local, item: Item) -> dict[str, Any]:
    """What a model is given for the whole prompt of an item."""
    opened = [model.pictures.open(name) for name in item.images]
    return Questions(model.loaded).prompts([turns_of(item)], [opened])


def said(model: Local, items: Sequence[Item], done: Sequence[Any] = ()) -> dict[Any, Response]:
    return {response.id: response for batch in model.answer(items, done) for response in batch}


def shares(response: Response) -> list[float]:
    return list(response.detail["probabilities"].values())
