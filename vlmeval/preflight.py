"""What is checked before a model is asked: the images, the output folder, the room on its disk.

Nothing that can be known now ends a run hours later. Every image is read once: its bytes are hashed, so that a resumed
run can tell that a picture was exchanged, and its header is opened.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmeval import official
from vlmeval.shardset import ShardImages, is_shards, reader
from vlmeval.task import Item, Response, Task

__all__ = ["MISSING", "ON_MISSING", "Pictures", "UNREADABLE", "image_folder", "pictures", "room"]

MISSING = "image missing"
UNREADABLE = "image unreadable"
ON_MISSING = ("fail", "skip")

_THREADS = 8
_DIGITS = 16
_ROW, _TOKEN, _THUMBNAIL = 3000, 6, 16_000
"""Bytes: of an item in all files together, of a generated token in them, of an image as it is shown in a report."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """The images that the items show.

    Attributes:
        folder: the image folder or converted dataset; None where the task shows none.
        files: name to the first 16 digits of the sha256 of its bytes.
        faults: name to what is wrong with it: missing or unreadable.
    """

    folder: Path | None
    files: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)

    def unasked(self, items: Iterable[Item]) -> list[Response]:
        """Items that cannot be asked, as failures; the reason stands before the first colon."""
        found = []
        for item in items:
            bad = next((name for name in item.images if name in self.faults), None)
            if bad is not None:
                found.append(Response(item.id, None, error=f"{self.faults[bad]}: {bad}"))
        return found


def image_folder(task: Task, data: Path, images: str | Path | None) -> Path | None:
    """The image folder, or the converted dataset that holds the images.

    Raises:
        MissingError: there is none.
    """
    if not task.images:
        return None
    places = [Path(images)] if images is not None else [data / "images", data / "data" / "images", data / "image"]
    if images is None and is_shards(data):
        places = [data]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        if images is not None:
            raise MissingError(f"no image folder {places[0]}")
        hint = official.images(task.name, data) or "give --images FOLDER"
        raise MissingError(f"no image folder {places[0]}; {hint}")
    return folder


def pictures(
    task: Task, data: Path, images: str | Path | None, items: Sequence[Item], *, skip: bool = False
) -> Pictures:
    """Look at every image that the items show.

    Args:
        task: what the items belong to.
        data: its data folder.
        images: the image folder; None looks for one in the data folder.
        items: what is to be asked.
        skip: tell of images that are missing or cannot be read, rather than refuse them.

    Raises:
        MissingError: no folder, or images are not in it.
        DataError: items without an image or a question, or images that cannot be read.
    """
    folder = image_folder(task, data, images)
    if folder is None:
        return Pictures(None)
    blank = [item.id for item in items if not item.images and not item.turns]
    if blank:
        raise DataError(
            f"the data name no image and question for {len(blank)} items (id {blank[0]} ...): query/ is missing or "
            "incomplete, and a model cannot be asked"
        )
    names = list(dict.fromkeys(name for item in items for name in item.images))
    files, faults = _probe(reader(folder), names)
    _refuse(folder, names, faults, skip)
    return Pictures(folder, files, faults)


def _refuse(folder: Path, names: Sequence[str], faults: Mapping[str, str], skip: bool) -> None:
    missing, broken = ([name for name in names if faults.get(name) == fault] for fault in (MISSING, UNREADABLE))
    if skip and (not names or len(faults) < len(names)):
        return
    on = "" if skip else "; --on-missing skip asks the rest"
    if missing:
        more = f", {len(broken)} are no readable images" if broken else ""
        raise MissingError(f"{len(missing)} of {len(names)} images are not in {folder}{more}: {_few(missing)}{on}")
    if broken:
        raise DataError(f"{len(broken)} of {len(names)} images in {folder} are no readable images: {_few(broken)}{on}")


def _probe(read: Callable[[str], bytes], names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Name to hash of every good image, name to fault of every bad one."""
    opening = Lock()

    def look(name: str) -> tuple[str, str | None]:
        from vlmdata.pixels import open_picture

        try:
            raw = read(name)
        except MissingError:
            return "", MISSING
        digest = hashlib.sha256(raw).hexdigest()[:_DIGITS]
        try:
            # Opening silences warnings for the whole process: one at a time, or they stay silent.
            with opening, open_picture(raw):
                return digest, None
        except Exception:  # whatever broken bytes make Pillow raise
            return digest, UNREADABLE

    # Row groups of a dataset are kept in turn, which several threads would undo.
    if isinstance(read, ShardImages):
        found = [look(name) for name in names]
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(look, names))
    files = {name: digest for name, (digest, _) in zip(names, found, strict=True) if digest}
    return files, {name: fault for name, (_, fault) in zip(names, found, strict=True) if fault}


def room(out: Path, items: Sequence[Item], images: int, max_new_tokens: int) -> None:
    """Check that the evaluation folder can be made and filled.

    Args:
        out: the folder, which need not be there.
        items: what is to be asked.
        images: how many different images they show.
        max_new_tokens: longest text.

    Raises:
        ConfigError: nothing can be written there, or its disk has not the room.
    """
    place = out
    while not place.exists() and place.parent != place:
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"--out {out} cannot be made: {place} is a file")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {place}: {error.strerror or os.strerror(5)}") from None
    texts = sum(item.kind == "text" for item in items)
    words = sum(len(item.prompt) for item in items)
    needed = _ROW * len(items) + 4 * words + _TOKEN * texts * max_new_tokens + _THUMBNAIL * images
    if free < needed:
        raise ConfigError(
            f"--out {out}: {_size(free)} are free on its disk, answers and report of {len(items)} items may take "
            f"{_size(needed)}"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
