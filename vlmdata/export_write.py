"""The files of rows of an export, hashed as they are written: JSON with image files beside, tar shards, Parquet."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from vlmdata.errors import DataError
from vlmdata.export_folder import IMAGES
from vlmdata.parquet import RowWriter
from vlmdata.shards import Shards, shard_schema
from vlmdata.tables import column
from vlmdata.target import DataFile, RefusedRow, Row

__all__ = ["JsonWriter", "ParquetCopy", "TarWriter", "Writer"]

_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"GIF8[79]a"), "gif"),
)
_IMAGE_BYTES = "images.list.element.bytes"

Convert = Callable[[Row, Sequence[str], bool], dict[str, Any]]
Refuse = Callable[[int, Row, RefusedRow], None]


class Writer(ABC):
    """Takes the rows of a dataset, shard file by shard file, and says at the end what it wrote."""

    files: tuple[DataFile, ...] = ()

    def begin(self, name: str) -> None:  # noqa: B027  a writer of one file need not know
        """The rows of this shard file come next."""

    @abstractmethod
    def write(self, table: pa.Table, start: int, refuse: Refuse) -> None:
        """Write the rows of a table; a row that cannot be held goes to ``refuse`` with its number.

        Args:
            table: columns of ``shard_schema``.
            start: number of its first row in the dataset.
            refuse: told the row's number, the row and why.
        """

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(  # noqa: B027  nor need every one finish anything
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the files."""


class JsonWriter(Writer):
    """One JSON file, and every distinct image once as ``images/3f/3f....jpg``.

    Of JSON Lines the first row with an image comes first, the others keep their order: ``datasets`` takes the types of
    the columns from the first 10 MB, and a list of images that is always empty there has no type that an image fits.
    """

    def __init__(self, folder: Path, convert: Convert, *, escape: bool, lines: bool) -> None:
        """Open the file.

        Args:
            folder: of the export.
            convert: a row to what is written.
            escape: escape literal marks.
            lines: one row a line; else one list.
        """
        self._folder, self._convert, self._escape, self._lines = folder, convert, escape, lines
        self._name = "data.jsonl" if lines else "data.json"
        self._written: dict[bytes, str] = {}
        self._rows = 0
        self._typed = not lines
        self._before_images = tempfile.TemporaryFile(dir=folder)
        self._file = _Hashed(folder / self._name)
        self._file.write(b"" if lines else b"[\n")

    def write(self, table: pa.Table, start: int, refuse: Refuse) -> None:
        """See ``Writer``."""
        for number, row in enumerate(table.to_pylist(), start):
            names = [self._image_name(row, index) for index in range(len(row["images"]))]
            try:
                made = self._convert(row, names, self._escape)
            except RefusedRow as why:
                refuse(number, row, why)
                continue
            for index, name in enumerate(names):
                self._store(row, index, name)
            text = json.dumps(made, ensure_ascii=False)
            self._line(f"{text}\n" if self._lines else f",\n{text}" if self._rows else text, bool(names))
            self._rows += 1

    def _line(self, text: str, has_images: bool) -> None:
        if not self._typed and not has_images:
            self._before_images.write(text.encode())
            return
        self._file.write(text.encode())
        if not self._typed:
            self._typed = True
            self._write_before_images()

    def _write_before_images(self) -> None:
        self._before_images.seek(0)
        while data := self._before_images.read(1 << 20):
            self._file.write(data)

    def _image_name(self, row: Row, index: int) -> str:
        sha256 = row["image_sha256"][index]
        known = self._written.get(bytes.fromhex(sha256))
        return f"{IMAGES}/{sha256[:2]}/{sha256}.{known or _extension(row, index)}"

    def _store(self, row: Row, index: int, name: str) -> None:
        data, sha256 = row["images"][index]["bytes"], row["image_sha256"][index]
        digest = bytes.fromhex(sha256)
        if digest in self._written:
            return
        if hashlib.sha256(data).digest() != digest:
            raise DataError(f"image {index} of {row['id']} has another sha256 than its row says; run vlmdata validate")
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._written[digest] = name.rpartition(".")[2]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the list; say what was written."""
        with self._file, self._before_images:
            if not self._typed:
                self._write_before_images()
            if not self._lines:
                self._file.write(b"\n]\n")
        self.files = (self._file.told(self._name, self._rows),)


class TarWriter(Writer):
    """One tar file for each shard file with rows; a row is a JSON member and its images."""

    def __init__(self, folder: Path, convert: Convert) -> None:
        """Write into ``folder``."""
        self._folder, self._convert = folder, convert
        self._done: list[DataFile] = []
        self._file: _Hashed | None = None
        self._rows = 0

    def begin(self, name: str) -> None:
        """Close the tar file of the former shard file."""
        self._finish()

    def write(self, table: pa.Table, start: int, refuse: Refuse) -> None:
        """See ``Writer``."""
        for number, row in enumerate(table.to_pylist(), start):
            extensions = [_extension(row, index) for index in range(len(row["images"]))]
            if len(extensions) > 1:
                extensions = [f"{index}.{extension}" for index, extension in enumerate(extensions)]
            try:
                made = self._convert(row, extensions, False)
            except RefusedRow as why:
                refuse(number, row, why)
                continue
            if self._file is None:
                self._file, self._rows = _Hashed(self._folder / self._name()), 0
            _add(self._file, f"{number:09d}.json", json.dumps(made, ensure_ascii=False).encode())
            for extension, image in zip(extensions, row["images"], strict=True):
                _add(self._file, f"{number:09d}.{extension}", image["bytes"])
            self._rows += 1

    def _name(self) -> str:
        return f"data-{len(self._done):06d}.tar"

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with file:
                # Two empty blocks end a tar file, and its size is a multiple of the record's.
                end = 2 * tarfile.BLOCKSIZE
                file.write(bytes(end + -(file.size + end) % tarfile.RECORDSIZE))
            self._done.append(file.told(self._name(), self._rows))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the last file; say what was written."""
        self._finish()
        self.files = tuple(self._done)


def _add(file: _Hashed, name: str, data: bytes) -> None:
    """Add a member; ``tarfile`` itself copies the data several times over."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    file.write(member.tobuf(tarfile.USTAR_FORMAT))
    file.write(data)
    file.write(bytes(-len(data) % tarfile.BLOCKSIZE))


class ParquetCopy(Writer):
    """One Parquet file for each shard file with rows; row groups are copied as Arrow."""

    def __init__(self, folder: Path, shards: Shards, form: str | None, *, shared_images: bool) -> None:
        """Write into ``folder``.

        Args:
            folder: of the export.
            shards: the dataset.
            form: ``prompt-completion`` parts the last turn from the messages; else the columns stay.
            shared_images: the images of the dataset are compressed once more.
        """
        self._folder = folder
        self._split = form == "prompt-completion"
        schema = shard_schema(shards.kind, shards.manifest.label_names)
        self._schema = _split_schema(schema) if self._split else schema
        self._encoded = () if shared_images else (_IMAGE_BYTES,)
        self._done: list[DataFile] = []
        self._writer: RowWriter | None = None

    def begin(self, name: str) -> None:
        """Close the file of the former shard file."""
        self._finish(None, None, None)

    def write(self, table: pa.Table, start: int, refuse: Refuse) -> None:
        """See ``Writer``; no row is refused."""
        if self._writer is None:
            self._writer = RowWriter(self._folder / self._name(), self._schema, encoded=self._encoded).__enter__()
        columns = {name: column(table, name) for name in table.column_names}
        if self._split:
            columns["prompt"], columns["completion"] = _split_last(columns.pop("messages"))
        arrays = [columns[field.name].cast(field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def _name(self) -> str:
        return f"data-{len(self._done):05d}.parquet"

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(kind, error, trace)
            self._done.append(DataFile(self._name(), writer.rows, writer.bytes, writer.sha256))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the last file; say what was written."""
        self._finish(kind, error, trace)
        self.files = tuple(self._done)


def _split_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with ``prompt`` and ``completion`` in the place of ``messages``."""
    told = json.loads(schema.metadata[b"huggingface"])
    features = dict(_renamed(told["info"]["features"].items()))
    fields = [pa.field(name, kind) for name, kind in _renamed((field.name, field.type) for field in schema)]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _renamed(named: Any) -> Iterator[tuple[str, Any]]:
    for name, value in named:
        yield from ((part, value) for part in (("prompt", "completion") if name == "messages" else (name,)))


def _split_last(messages: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Lists without their last value, and their last values as lists of one."""
    ends = np.cumsum(messages.value_lengths().to_numpy())
    turns = messages.flatten()
    first = np.ones(len(turns), bool)
    first[ends - 1] = False
    rows = np.arange(len(messages) + 1)
    starts = pa.array(np.concatenate([[0], ends]) - rows, pa.int32())
    prompt = pa.ListArray.from_arrays(starts, turns.filter(pa.array(first)))
    return prompt, pa.ListArray.from_arrays(pa.array(rows, pa.int32()), turns.take(pa.array(ends - 1)))


def _extension(row: Mapping[str, Any], index: int) -> str:
    """The file name extension of an encoded image."""
    data = row["images"][index]["bytes"]
    if data is None:
        raise DataError(f"image {index} of {row['id']} has no bytes; run vlmdata validate")
    for signature, extension in _SIGNATURES:
        if signature.match(data):
            return extension
    raise DataError(f"image {index} of {row['id']} is of no known format; run vlmdata validate")


class _Hashed:
    """A file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)
        self._file.write(data)

    def told(self, name: str, rows: int) -> DataFile:
        """What was written."""
        return DataFile(name, rows, self.size, self._digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
