"""What is checked before a model is asked: the image folder, every image in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from vlmdata.errors import DataError, MissingError
from vlmeval.shardset import ShardImages, is_shards, reader
from vlmeval.task import Item, Task

__all__ = ["image_folder"]


def image_folder(task: Task, data: Path, images: str | Path | None, items: Sequence[Item]) -> Path | None:
    """The image folder or converted dataset, with every image that will be shown in it."""
    if not task.images:
        return None
    places = [Path(images)] if images is not None else [data / "images", data / "data" / "images", data / "image"]
    if images is None and is_shards(data):
        places = [data]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        hint = "" if images is not None else "; give --images FOLDER"
        raise MissingError(f"no image folder {places[0]}{hint}")
    blank = [item.id for item in items if not item.images]
    if blank:
        raise DataError(
            f"the data name no image and question for {len(blank)} items (id {blank[0]} ...): query/ is missing or "
            "incomplete, and a model cannot be asked"
        )
    names = list(dict.fromkeys(name for item in items for name in item.images))
    read = reader(folder)
    missing = [
        name for name in names if not (name in read if isinstance(read, ShardImages) else (folder / name).is_file())
    ]
    if missing:
        raise MissingError(f"{len(missing)} of {len(names)} images are not in {folder}: {_few(missing)}")
    _probe(folder, names, read)
    return folder


def _probe(folder: Path, names: Sequence[str], read: Callable[[str], bytes]) -> None:
    """Open every image's header, so that a run does not die of a broken file hours later."""
    from PIL import Image

    broken = []
    for name in names:
        try:
            with Image.open(io.BytesIO(read(name))):
                pass
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            broken.append(name)
    if broken:
        raise DataError(f"{len(broken)} of {len(names)} images in {folder} are no readable images: {_few(broken)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
