"""A key for every image of a dataset or of a folder of pictures: images with the same key count as the same."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlmdata.errors import ConfigError, DataError, MissingError, RecordError
from vlmdata.image_folder import list_images
from vlmdata.images import ImagePolicy, read_inside, store
from vlmdata.manifest import MANIFEST
from vlmdata.perceptual import dhash, pixel_sha256
from vlmdata.places import open_parquet
from vlmdata.shards import Shards, open_shards

__all__ = ["By", "EvalImages", "KEYS", "Key", "evaluation_images", "image_keys"]

By = Literal["bytes", "pixels", "perceptual"]
Key = bytes | int | str

KEYS = ("bytes", "pixels", "perceptual")
"""Ways to compare images: encoded bytes, decoded pixels, difference hash."""

_Report = Callable[[int], None]
_FOLDER_BATCH = 64


@dataclass(frozen=True, slots=True)
class EvalImages:
    """The images of an evaluation set.

    Attributes:
        name: its folder.
        images: for each image its name and keys: a file has two where it would be stored as other bytes.
        unreadable: files that are no readable image, with the reason.
    """

    name: str
    images: Sequence[tuple[str, tuple[Key, ...]]]
    unreadable: Sequence[tuple[str, str]]


def image_keys(shards: Shards, by: By, workers: int = 1, report: _Report = lambda rows: None) -> list[tuple[Key, ...]]:
    """For each row the keys of its images, in order.

    Args:
        shards: the dataset.
        by: one of ``KEYS``.
        workers: processes; they do not change the result.
        report: told how many rows more are done.

    Raises:
        DataError: an image cannot be decoded, or a worker was killed.
    """
    if by not in KEYS:
        raise ConfigError(f"--by is {by!r}; valid: {', '.join(KEYS)}")
    tasks = []
    for file in shards.files:
        with open_parquet(file) as parquet:
            tasks += [(str(file), group) for group in range(parquet.num_row_groups)]
    keys: list[tuple[Key, ...]] = []
    # Bytes are hashed already: reading them is no work for a pool.
    for found in _mapped(partial(_group_keys, by), tasks, 1 if by == "bytes" else workers):
        keys += found
        report(len(found))
    return keys


def evaluation_images(path: Path, by: By, workers: int = 1) -> EvalImages:
    """The keys of an evaluation set: a converted dataset, or a folder of pictures.

    Raises:
        DataError: the folder holds neither.
        MissingError: there is no such folder.
    """
    if not path.is_dir():
        raise MissingError(f"no folder {path}; expected a dataset or a folder of pictures")
    if (path / MANIFEST).is_file():
        shards = open_shards(path)
        keys = image_keys(shards, by, workers)
        ids = [row["id"] for row in shards.rows(["id"])]
        named = [
            (f"{row_id} image {number}" if len(held) > 1 else row_id, (key,))
            for row_id, held in zip(ids, keys, strict=True)
            for number, key in enumerate(held)
        ]
        return EvalImages(path.resolve().name, named, [])
    files = list_images(path)
    if not files:
        raise DataError(f"{path} holds neither a {MANIFEST} nor pictures; expected a dataset or a folder of pictures")
    batches = [files[start : start + _FOLDER_BATCH] for start in range(0, len(files), _FOLDER_BATCH)]
    images: list[tuple[str, tuple[Key, ...]]] = []
    unreadable: list[tuple[str, str]] = []
    for found in _mapped(partial(_file_keys, by, str(path)), batches, workers):
        for name, held in found:
            if isinstance(held, str):
                unreadable.append((name, held))
            else:
                images.append((name, held))
    return EvalImages(path.resolve().name, images, unreadable)


def _mapped(work: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """Results in the order of the tasks."""
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    # Ctrl-C is for the caller, who ends the pool.
    ignoring = (signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), *ignoring) as pool:
        try:
            yield from pool.map(work, tasks)
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, most likely because memory ran out; use --workers 1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _group_keys(by: By, task: tuple[str, int]) -> list[tuple[Key, ...]]:
    """Keys of the rows of one row group; an image that several rows share is decoded once."""
    file, group = task
    columns = ["image_sha256"] if by == "bytes" else ["id", "image_sha256", "images"]
    with open_parquet(file) as parquet:
        table = parquet.read_row_group(group, columns=columns)
    if by == "bytes":
        return [tuple(held) for held in table.column("image_sha256").to_pylist()]
    known: dict[str, Key] = {}
    keys = []
    for batch in table.to_batches(max_chunksize=16):
        for row in batch.to_pylist():
            for sha256, image in zip(row["image_sha256"], row["images"], strict=True):
                if sha256 not in known:
                    known[sha256] = _key(by, image["bytes"], f"{Path(file).name}: an image of row {row['id']}")
            keys.append(tuple(known[sha256] for sha256 in row["image_sha256"]))
    return keys


def _file_keys(by: By, folder: str, names: Sequence[str]) -> list[tuple[str, tuple[Key, ...] | str]]:
    """Keys of picture files, or why there are none."""
    found: list[tuple[str, tuple[Key, ...] | str]] = []
    for name in names:
        try:
            raw = read_inside(Path(folder), name)
            # As a conversion would store it: upright, RGB. Then the same file has the same key.
            stored = store(raw, ImagePolicy())
            if by == "bytes":
                keys: tuple[Key, ...] = tuple(
                    dict.fromkeys(hashlib.sha256(held).hexdigest() for held in (stored.data, raw))
                )
            else:
                keys = (_key(by, stored.data, name),)
        except (RecordError, DataError) as error:
            found.append((name, str(error)))
            continue
        found.append((name, keys))
    return found


def _key(by: By, data: bytes, name: str) -> Key:
    try:
        return pixel_sha256(data) if by == "pixels" else dhash(data)
    except Exception as error:  # whatever broken bytes make a decoder raise
        raise DataError(f"{name} cannot be decoded ({type(error).__name__}: {error}); see vlmdata validate") from None
