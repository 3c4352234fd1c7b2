"""Finding the raw files: local files and folders, or the hub."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmdata import json_rows
from vlmdata.errors import ConfigError, DataError, MissingError, VlmError, choices
from vlmdata.fields import printable
from vlmdata.fit import common_kind, inspect_fitting
from vlmdata.hub import RemoteFiles, is_hub_id, list_remote
from vlmdata.image_folder import CAPTION_FILES, list_images
from vlmdata.places import absolute, files_below, is_remote, place
from vlmdata.readers import Contents, Format, Input
from vlmdata.source import Kind, Located, Pairs, Source

__all__ = ["Found", "find"]

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
}
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation",
           "dev": "validation", "test": "test"}  # fmt: skip
_TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab")
_NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "manifest.json",
                       "plan.json"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """The raw files of a conversion, in reading order.

    Attributes:
        inputs: the files.
        contents: what each holds.
        config: the sub-dataset they are of, if known.
        revision: the hub commit they are from, if they are from the hub.
        repo: the hub dataset they are from.
        kind: what their rows become.
        columns: which column holds which field of the source.
        tags: what the keys and roles of turns are called, where a list of data sets says so.
    """

    inputs: tuple[Input, ...]
    contents: tuple[Contents, ...]
    config: str | None
    revision: str | None
    repo: str | None = None
    kind: Kind = "messages"
    columns: Pairs = ()
    tags: Pairs = ()


def find(
    name: str,
    source: Source,
    raw: Sequence[str],
    *,
    config: str | None,
    split: str | None,
    revision: str | None,
    image_root: str | None,
    columns: Pairs = (),
    limit: int | None = None,
) -> Found:
    """Find and inspect the raw files; all that is wrong with them as a whole shows here.

    Args:
        name: what the source is called.
        source: the source.
        raw: local paths, or one hub dataset; none is the source's own hub dataset.
        config: the sub-dataset.
        split: part of the raw data.
        revision: branch, tag or commit on the hub.
        image_root: folder that image paths start from.
        columns: of ``parse_columns``: which column holds which field.
        limit: how many rows are wanted; files behind those that hold them are left out unopened.

    Raises:
        ConfigError: a configuration name is missing or makes no sense, or a column is not there.
        MissingError: a path or hub dataset is not there.
        DataError: a file cannot be read, or has other columns than the source needs.
    """
    search = _Search(name, source, config, split, image_root, columns, limit)
    if source.locate is not None:
        return _find_located(search, source.locate, raw)
    if config is not None and not source.configs:
        raise ConfigError(f"{name} has no configurations, --config {config} makes no sense with it")
    remote = _remote(name, source, raw, config, revision)
    if remote is not None:
        paths = [path for path, _ in remote.files]
        chosen = set(_of_split(_of_config(name, source, remote.repo, paths, config), split, remote.repo))
        _check_uploads(chosen)
        sizes = dict(remote.files)
        files = [Input(remote.url(path), path, "parquet", sizes[path], image_root) for path in sorted(chosen)]
        inputs, contents = _up_to(limit, files, search.inspect(files, 0))
        kind = common_kind(source, inputs, contents, columns)
        return Found(inputs, contents, config, remote.revision, remote.repo, kind, columns)
    if revision is not None:
        raise ConfigError(f"--revision {revision} is for the hub, but RAW is local: {raw[0]}")
    inputs, contents = _find_local(search, raw)
    kind = common_kind(source, inputs, contents, columns)
    return Found(inputs, contents, config or _known_config(source, inputs), None, None, kind, columns)


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for; as the parameters of ``find``."""

    name: str
    source: Source
    config: str | None
    split: str | None
    image_root: str | None
    columns: Pairs
    limit: int | None

    def inspect(self, files: Sequence[Input], rows: int, at_least: int = 0) -> list[Contents | None]:
        """What files hold, behind others with that many rows; None for those that are not needed."""
        found: list[Contents | None] = []
        for number, file in enumerate(files):
            if self.limit is not None and rows >= self.limit and number >= at_least:
                found.append(None)
                continue
            holds = inspect_fitting(self.name, self.source, file, self.columns)
            found.append(holds)
            rows += holds.rows
        return found


def _up_to(
    limit: int | None, files: Sequence[Input], found: Sequence[Contents | None]
) -> tuple[tuple[Input, ...], tuple[Contents, ...]]:
    """The files that hold the first rows, up to the limit."""
    inputs: list[Input] = []
    contents: list[Contents] = []
    rows = 0
    for file, holds in zip(files, found, strict=True):
        if holds is None or (limit is not None and rows >= limit):
            break
        inputs.append(file)
        contents.append(holds)
        rows += holds.rows
    return tuple(inputs), tuple(contents)


def _find_local(search: _Search, raw: Sequence[str]) -> tuple[tuple[Input, ...], tuple[Contents, ...]]:
    files: list[Input] = []
    found: list[Contents | None] = []
    for path in map(place, raw):
        rows = sum(holds.rows for holds in found if holds is not None)
        for file, holds in _local(search, path, rows):
            if file.path in {other.path for other in files}:
                raise ConfigError(f"{file.path} is given twice")
            files.append(file)
            found.append(holds)
    return _up_to(search.limit, list(_named(files)), found)


def _find_located(search: _Search, locate: Callable[[Path, str | None], Located], raw: Sequence[str]) -> Found:
    """The files that a list of data sets means by a name."""
    name, config = search.name, search.config
    if search.columns:
        raise ConfigError(f"the entries of {name} name their columns themselves, --columns makes no sense with it")
    if len(raw) != 1:
        raise ConfigError(f"{name} reads one list of data sets, got {len(raw)} paths; give its file or its folder")
    located = locate(place(raw[0]), config)
    root = located.image_root if search.image_root is None else search.image_root
    search = replace(search, config=None, image_root=root, columns=located.columns)
    inputs, contents = _find_local(search, located.files)
    return Found(inputs, contents, config, None, None, located.kind, located.columns, located.tags)


def _remote(
    name: str, source: Source, raw: Sequence[str], config: str | None, revision: str | None
) -> RemoteFiles | None:
    """The hub dataset that is meant, or None when RAW is local."""
    if not raw:
        if source.hub_id is None:
            raise ConfigError(f"{name} has no hub dataset; give the raw file or folder: vlmdata convert {name} RAW")
        if source.configs and config not in source.configs:
            wrong = "needs --config" if config is None else f"has no configuration {config!r}"
            raise ConfigError(f"{name} {wrong}; valid: {choices(source.configs)}")
        return list_remote(source.hub_id, revision)
    missing = [path for path in raw if not _is_there(path)]
    if len(raw) == 1 and missing and is_hub_id(raw[0].removeprefix("hf://datasets/")):
        try:
            return list_remote(raw[0].removeprefix("hf://datasets/"), revision)
        except MissingError as error:
            raise MissingError(f"no file or folder {raw[0]} here; as a hub dataset: {error}") from None
    if missing:
        raise MissingError(f"no file or folder {missing[0]}; RAW is a local path, or a hub dataset as owner/name")
    return None


def _is_there(path: str) -> bool:
    found = place(path)
    if not is_remote(found):
        return os.path.lexists(path)
    try:
        return found.exists()
    except Exception as error:  # each kind of store has its own
        reason = printable(str(error))
        raise MissingError(f"{path} cannot be reached: {reason:.200}; check the address and the network") from None


def _of_config(name: str, source: Source, repo: str, paths: list[str], config: str | None) -> list[str]:
    if not source.configs:
        return paths
    folders = {path.split("/")[0] for path in paths if "/" in path}
    if config is None:
        raise ConfigError(f"{name} needs --config; {repo} has: {choices(folders or source.configs)}")
    inside = [path for path in paths if path.startswith(config + "/")]
    if not inside:
        raise ConfigError(f"{repo} has no configuration {config!r}; valid: {choices(folders)}")
    return inside


def _of_split(paths: Iterable[str], split: str | None, where: str) -> list[str]:
    """Files of a split, ``train`` unless another is asked for; a file that is not named by split is of ``train``."""
    named = {path: _split_of(path) or "train" for path in paths}
    wanted = _SPLITS.get(split, split) if split else "train"
    chosen = [path for path, of in named.items() if of == wanted]
    if not chosen:
        raise ConfigError(f"{where} has no split {wanted!r}; give --split: {choices(set(named.values()))}")
    return chosen


def _split_of(path: str) -> str | None:
    """The split a file is of by its name (``train-00000-of-00002.parquet``) or by its folder's."""
    *folders, last = path.split("/")
    first_word = re.split(r"[-_.]", last)[0]
    return next((_SPLITS[word] for word in (first_word, *reversed(folders)) if word in _SPLITS), None)


def _check_uploads(paths: Iterable[str]) -> None:
    """Refuse one shard in two versions, as interrupted uploads leave them."""
    seen: dict[str, str] = {}
    for path in sorted(paths):
        match = re.fullmatch(r"(.*-\d{5}-of-\d{5})-[0-9a-f]{8,}\.parquet", path)
        key = match[1] if match else path
        if key in seen:
            raise DataError(f"{seen[key]} and {path} are two uploads of one shard; give the right files as RAW")
        seen[key] = path


def _local(search: _Search, path: Path, rows: int) -> Iterator[tuple[Input, Contents | None]]:
    """The inputs a local path stands for: itself, or the first kind of data in a folder that fits the source.

    ``rows`` are in what stands before it.
    """
    name, split, root = search.name, search.split, search.image_root
    if not path.is_dir():
        if split is not None:
            _of_split([path.name], split, str(path))
        file = _input(path, root)
        yield file, search.inspect([file], rows)[0]
        return
    config = search.config
    base = path / config if config and (path / config).is_dir() else path
    errors: list[VlmError] = []
    for kind in (_tables, _captions, _rows, _pictures):
        try:
            files = kind(base, split, root)
            found = search.inspect(files, rows, at_least=1)
        except (ConfigError, DataError) as error:
            errors.append(error)
            continue
        if any(holds is None or holds.rows for holds in found):
            yield from zip(files, found, strict=True)
            return
    if errors:
        raise type(errors[0])("; ".join(map(str, errors)))
    raise _nothing_in(name, search.source, base, config)


def _tables(base: Path, split: str | None, image_root: str | None) -> list[Input]:
    files = _data_files(base, (".parquet", ".pq"), split) or _data_files(base, (".arrow",), split)
    _check_uploads(map(str, files))
    return [_input(file, image_root) for file in files]


def _captions(base: Path, split: str | None, image_root: str | None) -> list[Input]:
    """The caption file of a folder of pictures, or those of its subfolders."""
    folder = _picture_folder(base, split)
    inside: list[Path] = []
    if _caption_file(folder) is None:
        inside = [folder / part for part in sorted({posixpath.dirname(path) for path in files_below(folder)}) if part]
    files = [found for part in (folder, *inside) if (found := _caption_file(part)) is not None]
    return [_input(file, image_root) for file in files]


def _caption_file(folder: Path) -> Path | None:
    return next((file for name in CAPTION_FILES if (file := folder / name).is_file()), None)


def _rows(base: Path, split: str | None, image_root: str | None) -> list[Input]:
    return [_input(file, image_root) for file in _data_files(base, _TEXTS, split)]


def _pictures(base: Path, split: str | None, image_root: str | None) -> list[Input]:
    folder = _picture_folder(base, split)
    if not list_images(folder):
        return []
    if image_root is not None:
        raise ConfigError(f"{folder} is read as a folder of pictures; --image-root makes no sense with it")
    return [Input(str(folder), printable(absolute(folder).name), "folder", 0, str(folder))]


def _picture_folder(base: Path, split: str | None) -> Path:
    """The folder of a split, where pictures are parted so."""
    folder = base / (split or "train")
    if folder.is_dir():
        return folder
    splits = [name for name in _SPLITS if (base / name).is_dir()]
    if split is not None and splits:
        raise ConfigError(f"{base} has no split {split!r}; it has: {choices(splits)}")
    return base


def _data_files(base: Path, suffixes: tuple[str, ...], split: str | None) -> list[Path]:
    """Data files of a split in a folder, in its ``data`` folder, or in that of the split, sorted."""
    for folder in (base, base / "data", base / (split or "train")):
        files = sorted(
            file
            for file in (folder.iterdir() if folder.is_dir() else ())
            if file.suffix.lower() in suffixes
            and file.is_file()
            and file.name not in (*_NOT_DATA, *CAPTION_FILES)
            and not file.name.startswith((".", "cache-"))
        )
        if files:
            relative = {file.relative_to(base).as_posix(): file for file in files}
            return [relative[path] for path in _of_split(relative, split, str(base))]
    return []


def _nothing_in(name: str, source: Source, base: Path, config: str | None) -> DataError | ConfigError:
    folders = [child.name for child in base.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if source.configs and config is None and folders:
        return ConfigError(f"{name} needs --config; {base} has: {choices(folders)}")
    if source.configs and config is not None and folders:
        return ConfigError(f"{base} has no configuration {config!r}; valid: {choices(folders)}")
    return DataError(f"{base} holds no data; expected Parquet, Arrow, JSON, JSON Lines, CSV or TSV files, or pictures")


def _input(path: Path, image_root: str | None) -> Input:
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} is of no known form; expected {choices(_FORMATS)}, or a folder")
    if not path.is_file():
        raise MissingError(f"{path} is no regular file; give a file or a folder")
    try:
        size = path.stat().st_size
        if kind == "json" and json_rows.is_lines(path):
            kind = "jsonl"
    except OSError as error:
        raise MissingError(f"{path} cannot be opened: {error.strerror}") from None
    beside = str(path.parent) if kind in ("json", "jsonl", "csv") or path.name in CAPTION_FILES else None
    return Input(str(path), printable(path.name), kind, size, image_root or beside)


def _named(inputs: Sequence[Input]) -> Iterator[Input]:
    """Inputs named by their paths below the folder they have in common."""
    if len(inputs) == 1:
        yield inputs[0]
        return
    paths = [absolute(file.path).as_posix().split("/") for file in inputs]
    common = len(os.path.commonprefix([path[:-1] for path in paths]))
    for file, path in zip(inputs, paths, strict=True):
        name = printable("/".join(path[common:]))
        yield Input(file.path, name, file.format, file.bytes, file.images)


def _known_config(source: Source, inputs: Sequence[Input]) -> str | None:
    """The configuration that the files' folders are named after, if it is one."""
    parents = {absolute(file.path).parent.name for file in inputs}
    return next(iter(parents)) if len(parents) == 1 and parents <= set(source.configs) else None
