"""Converted datasets as evaluation data: their rows as items, their images from the shards, no image folder.

An image is named by its sha256, so rows on one picture are one cluster of the intervals, and nothing in an evaluation
names a path. Wherever an image folder is given, a dataset folder does as well: see :func:`reader`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import DataError, MissingError
from vlmdata.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from vlmdata.shards import Shards

__all__ = ["ShardImages", "ShardSet", "is_shards", "open_set", "reader"]

_KEPT = 4


def is_shards(folder: Path) -> bool:
    """Whether a folder is a finished converted dataset."""
    return (folder / MANIFEST).is_file()


class ShardSet:
    """A messages dataset.

    Attributes:
        shards: its files.
        manifest: what it is.
        data: file name to sha256 of every shard, as the manifest has them.
    """

    def __init__(self, shards: Shards) -> None:
        """Take an opened dataset."""
        self.shards = shards
        self.manifest: Manifest = shards.manifest
        self.data = {shard.name: shard.sha256 for shard in shards.manifest.shards}

    def rows(self, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Rows without their images: ``id``, ``messages``, ``image_sha256`` and the columns asked for."""
        yield from self.shards.rows(["id", "messages", "image_sha256", *columns])


def open_set(folder: Path) -> ShardSet:
    """Open a converted dataset to ask questions from.

    Raises:
        MissingError: there is no such folder.
        DataError: it is no finished dataset, it is empty, or it holds preferences.
    """
    from vlmdata.shards import open_shards

    shards = open_shards(folder)
    if shards.kind != "messages":
        raise DataError(f"{folder} holds {shards.kind} rows, expected messages: a question and its answer in each")
    if not len(shards):
        raise DataError(f"{folder} holds no rows")
    return ShardSet(shards)


def reader(folder: Path) -> Callable[[str], bytes]:
    """What gives an image's encoded bytes by its name: of a folder of image files, or of a converted dataset.

    The function raises MissingError for a name that is not there.
    """
    if is_shards(folder):
        return ShardImages(folder)

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise MissingError(f"image {folder / name} cannot be read: {error.strerror}") from error

    return read


class ShardImages:
    """Images of a converted dataset by their sha256; the row groups used last are kept."""

    def __init__(self, folder: Path) -> None:
        """Look at the hashes of all rows; no image is read.

        Raises:
            DataError: the folder is no finished dataset.
        """
        from vlmdata.shards import open_shards

        self.folder = folder
        self._files = open_shards(folder).files
        self._places: dict[str, tuple[int, int, int, int]] = {}
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        for number, file in enumerate(self._files):
            for group, hashes in enumerate(_hashes(file)):
                for row, digests in enumerate(hashes):
                    for index, digest in enumerate(digests):
                        self._places.setdefault(digest, (number, group, row, index))

    def __contains__(self, name: str) -> bool:
        """Whether there is such an image."""
        return name in self._places

    def __call__(self, name: str) -> bytes:
        """The encoded bytes.

        Raises:
            MissingError: no such image.
        """
        if name not in self._places:
            raise MissingError(f"{self.folder} holds no image {name[:16]}")
        number, group, row, index = self._places[name]
        found: bytes = self._group(number, group)[row][index]["bytes"].as_py()
        return found

    def _group(self, number: int, group: int) -> Any:
        from vlmdata.places import open_parquet

        key = (number, group)
        if key not in self._kept:
            with open_parquet(self._files[number]) as parquet:
                self._kept[key] = parquet.read_row_group(group, columns=["images"]).column("images")
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _hashes(file: Path) -> Iterator[list[list[str]]]:
    """Image hashes of each row, row group by row group."""
    from vlmdata.places import open_parquet

    with open_parquet(file) as parquet:
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group, columns=["image_sha256"]).column("image_sha256").to_pylist()
