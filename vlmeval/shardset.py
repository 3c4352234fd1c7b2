"""Converted datasets as evaluation data: their rows as items, their images from the shards, no image folder.

An image is named by its sha256, so rows on one picture are one cluster of the intervals, and nothing in an evaluation
names a path. Wherever an image folder is given, a dataset folder does as well: see :func:`reader`. A folder that
``vlmdata split`` wrote is evaluated by its held-out part: see :func:`part`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmdata.errors import ConfigError, DataError, MissingError, choices
from vlmdata.manifest import MANIFEST, Manifest
from vlmeval.task import Option

if TYPE_CHECKING:
    from vlmdata.shards import Shards

__all__ = ["HELD_OUT", "SPLIT", "ShardImages", "ShardSet", "is_shards", "open_set", "part", "reader"]

HELD_OUT = ("test", "validation", "val", "valid", "eval", "dev")
"""Parts of a split that are evaluated unasked, the first that is there."""

SPLIT = Option("split", "Part of a split folder to ask; test, else validation, where left out.")
"""The option of every task that reads converted datasets."""

_TRAINED = ("train", "training")
_HOLDS = {
    "messages": "a question and its answer in each",
    "preference": "a question with a better and a worse answer in each",
}
_KEPT = 4


def is_shards(folder: Path) -> bool:
    """Whether a folder is a finished converted dataset."""
    return (folder / MANIFEST).is_file()


def part(folder: Path, name: str | None = None) -> Path:
    """The dataset to evaluate: the folder itself, or the held-out part of a split in it.

    Args:
        folder: a converted dataset, or a folder of several, as ``vlmdata split`` writes it.
        name: of the part; None takes the first of ``HELD_OUT`` that is there.

    Raises:
        MissingError: there is no such part.
        ConfigError: the folder is one dataset and a part is named; or none of its parts is known to be held out, and
            none is named: training data are never evaluated unasked.
    """
    if is_shards(folder) or not folder.is_dir():
        if name is not None and folder.is_dir():
            raise ConfigError(f"{folder} is one dataset, without parts, so --split {name} names none: leave it out")
        return folder
    parts = sorted(inner.name for inner in folder.iterdir() if is_shards(inner))
    if not parts:
        return folder
    if name is not None:
        if name not in parts:
            raise MissingError(f"{folder} has no part {name!r}; valid: {choices(parts)}")
        return folder / name
    held = [known for known in HELD_OUT if known in parts]
    if not held:
        raise ConfigError(f"{folder} has none of {', '.join(HELD_OUT)}: give --split NAME; valid: {choices(parts)}")
    return folder / held[0]


class ShardSet:
    """A converted dataset to ask questions from.

    Attributes:
        shards: its files.
        manifest: what it is.
        data: file name to sha256 of every shard, as the manifest has them.
        folder: where it lies.
        protocol: what the report says of it: which part of a split it is.
        notes: what a reader of the report must be told of it.
    """

    def __init__(self, shards: Shards, given: Path) -> None:
        """Take an opened dataset; ``given`` is the folder that was asked for."""
        self.shards = shards
        self.manifest: Manifest = shards.manifest
        self.data = {shard.name: shard.sha256 for shard in shards.manifest.shards}
        self.folder = shards.path
        name = shards.path.resolve().name
        named = shards.path != given or name.lower() in (*_TRAINED, *HELD_OUT) or _of_split(shards.path)
        chosen = name if named else self.manifest.split
        self.protocol: Mapping[str, str] = {"split": chosen} if chosen else {}
        self.notes: tuple[str, ...] = ()
        if chosen and chosen.lower() in _TRAINED:
            self.notes = (
                f"The data are the part {chosen!r} of their dataset: a model trained on it knows the answers.",
            )

    def rows(self, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Rows without their images, each with an ``id`` of its own, ``image_sha256`` and the columns asked for.

        Rows of a mixture may share an id; answers join by it, so the second is ``ID#2``.
        """
        seen: Counter[str] = Counter()
        for row in self.shards.rows(["id", "image_sha256", *columns]):
            seen[row["id"]] += 1
            if seen[row["id"]] > 1:
                row["id"] = f"{row['id']}#{seen[row['id']]}"
            yield row


def open_set(
    folder: Path, split: str | None = None, *, kind: Literal["messages", "preference"] = "messages"
) -> ShardSet:
    """Open a converted dataset to ask questions from.

    Args:
        folder: the dataset, or a folder of the parts of a split.
        split: which of the parts; see :func:`part`.
        kind: what its rows are.

    Raises:
        MissingError: there is no such folder or part.
        ConfigError: it has no held-out part, or a part is named that cannot be.
        DataError: it is no finished dataset, it is empty, or it holds rows of another kind.
    """
    from vlmdata.shards import open_shards

    shards = open_shards(part(folder, split))
    if shards.kind != kind:
        raise DataError(f"{shards.path} holds {shards.kind} rows, expected {kind}: {_HOLDS[kind]}")
    if not len(shards):
        raise DataError(f"{shards.path} holds no rows")
    return ShardSet(shards, folder)


def _of_split(folder: Path) -> bool:
    """Whether a dataset is a part that ``vlmdata split`` wrote."""
    from vlmdata.publish import SPLIT as SPLIT_FILE

    return (folder.resolve().parent / SPLIT_FILE).is_file()


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
