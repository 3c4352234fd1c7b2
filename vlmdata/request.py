"""What is asked of a conversion: options checked, raw files found, work planned. Nothing is written here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from vlmdata.adapter import digest, title
from vlmdata.errors import ConfigError, DataError
from vlmdata.images import ImagePolicy, Verify
from vlmdata.inputs import Found, find
from vlmdata.manifest import InputFile
from vlmdata.places import place
from vlmdata.plan import Plan, fingerprint, make_tasks
from vlmdata.readers import Input, inspect
from vlmdata.rejects import REJECTS
from vlmdata.sizes import DEFAULT_SHARD_SIZE, parse_size
from vlmdata.source import Options, Source, load, parse_columns

__all__ = ["RawOptions", "Request", "parse_budget", "plan_again", "plan_request", "policy_of"]


class RawOptions(TypedDict, total=False):
    """What decides what a conversion writes, besides the raw data.

    Keys:
        config: sub-dataset, for sources that have several.
        split: part of the raw data; ``train`` where files are named by split and none is asked for.
        revision: branch, tag or commit on the hub.
        licence: of the data, where it is not what the source says.
        columns: ``FIELD=COLUMN,...``, where the file calls the fields of the source otherwise.
        limit: how many raw rows to read.
        shuffle_seed: choose the rows at random over all files and shuffle them (between shards, and within each).
        scale: factor for both sides of every image, in (0, 1].
        max_side: largest side of a stored image, in pixels.
        verify_images: ``header`` finds images that end too early without decoding those that pass; ``full`` decodes
            every image.
        image_root: folder that image paths start from; the folder of the JSON file unless given.
        image_position: images before or after the text of their turn, where the raw row does not say it itself.
        turns: ``split`` makes a record of each question/answer pair of a row.
        prompt: user's text where the raw data has none; "" is none at all; None is the source's default.
        shard_size: input bytes for one shard, as a number or like "100MB".
    """

    config: str | None
    split: str | None
    revision: str | None
    licence: str | None
    columns: str | None
    limit: int | None
    shuffle_seed: int | None
    scale: float
    max_side: int | None
    verify_images: Verify
    image_root: str | Path | None
    image_position: Literal["first", "last"]
    turns: Literal["keep", "split"]
    prompt: str | None
    shard_size: int | str


_DEFAULTS: RawOptions = {
    "config": None,
    "split": None,
    "revision": None,
    "licence": None,
    "columns": None,
    "limit": None,
    "shuffle_seed": None,
    "scale": 1.0,
    "max_side": None,
    "verify_images": "header",
    "image_root": None,
    "image_position": "first",
    "turns": "keep",
    "prompt": None,
    "shard_size": DEFAULT_SHARD_SIZE,
}


@dataclass(frozen=True, slots=True)
class Request:
    """A conversion that can be run: its plan, and where its raw files lie on this machine."""

    plan: Plan
    inputs: tuple[Input, ...]


def plan_request(source: str, raw: Sequence[str], **options: Unpack[RawOptions]) -> Request:
    """Check the options, find the raw files and plan the work.

    Raises:
        VlmError: an option or the input is not as it must be.
    """
    given: RawOptions = {**_DEFAULTS, **options}
    kind = load(source)
    policy_of(given)
    _check_options(source, kind, given)
    root = _root(given["image_root"])
    limit = given["limit"] if given["shuffle_seed"] is None else None
    found = find(
        source,
        kind,
        raw,
        config=given["config"],
        split=given["split"],
        revision=given["revision"],
        image_root=root,
        columns=parse_columns(given["columns"], kind),
        limit=limit,
    )
    reading = Options(
        found.config,
        given["image_position"],
        given["turns"],
        given["prompt"],
        _label_names(kind, found),
        found.kind,
        found.columns,
        found.tags,
    )
    recorded = {
        "limit": given["limit"],
        "shuffle_seed": given["shuffle_seed"],
        "scale": given["scale"],
        "max_side": given["max_side"],
        "verify_images": given["verify_images"],
        "shard_bytes": parse_size(given["shard_size"]),
        "image_position": given["image_position"],
        "turns": given["turns"],
        "prompt": kind.prompt if given["prompt"] is None else given["prompt"],
        "columns": given["columns"],
        "adapter_sha256": digest(source),
        "config": found.config,
        "split": given["split"],
        "revision": found.revision,
        "licence": kind.licence if given["licence"] is None else given["licence"],
        "image_root": root,
    }
    return _planned(source, found.repo, recorded, reading, found)


def plan_again(old: Path, **options: Unpack[RawOptions]) -> Request:
    """Plan to convert the rejected rows of an earlier conversion, with its options where none are given.

    Raises:
        VlmError: there is no such conversion, it rejected nothing, or an option cannot work.
    """
    before = Plan.read(old)
    fixed = {"config", "split", "revision", "columns"} & options.keys()
    if fixed:
        raise ConfigError(f"--{min(fixed)} is settled for the rows of {old}; leave it out")
    kind = load(before.source)
    recorded = {**before.options, "limit": None, "shuffle_seed": None, "verify_images": "header", **options}
    recorded["adapter_sha256"] = digest(before.source)
    recorded["shard_bytes"] = parse_size(recorded.pop("shard_size", before.options["shard_bytes"]))
    recorded["image_root"] = root = _root(recorded["image_root"])
    policy_of(recorded)
    _check_options(before.source, kind, {**_DEFAULTS, **options})
    reading = Options.from_json(
        {**asdict(before.reading), **{key: recorded[key] for key in ("image_position", "turns", "prompt")}}
    )
    files = sorted((old / REJECTS).glob("data-*.parquet"))
    if not files:
        raise DataError(f"{old} holds no rejected rows: there is no file in {old / REJECTS}")
    inputs = tuple(
        Input(str(file), f"{REJECTS}/{file.name}", "rejects", file.stat().st_size, root) for file in files
    )
    found = Found(inputs, tuple(map(inspect, inputs)), reading.config, recorded["revision"])
    return _planned(before.source, before.dataset, recorded, reading, found)


def policy_of(options: Any) -> ImagePolicy:
    """What sizes the options allow for stored images.

    Raises:
        ConfigError: they cannot work.
    """
    return ImagePolicy(options["scale"], options["max_side"], verify=options["verify_images"])


def parse_budget(value: int | str | None, rows: int) -> int | None:
    """How many rejected rows are allowed: a number, or ``2%`` of the rows.

    Raises:
        ConfigError: it is neither.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(value))
    if match is None or (not match[2] and "." in match[1]) or (match[2] and float(match[1]) > 100):
        raise ConfigError(f"max rejects is {value!r}, expected a number of rows such as 50, or a share such as 0.5%")
    return int(rows * float(match[1]) / 100) if match[2] else int(match[1])


def _planned(source: str, repo: str | None, recorded: dict[str, Any], reading: Options, found: Found) -> Request:
    tasks = make_tasks(
        found.contents,
        limit=recorded["limit"],
        shuffle_seed=recorded["shuffle_seed"],
        shard_bytes=recorded["shard_bytes"],
    )
    if not any(task.rows for task in tasks):
        raise DataError(f"there are no rows in {', '.join(file.path for file in found.inputs[:3])}")
    files = tuple(_input_file(found, index) for index in range(len(found.inputs)))
    kind = reading.kind or load(source).kind
    dataset = repo or title(source)
    return Request(Plan(source, kind, dataset, recorded, reading, files, tasks), found.inputs)


def _input_file(found: Found, index: int) -> InputFile:
    file, held = found.inputs[index], found.contents[index]
    size = file.bytes or sum(size for _, size in held.segments)
    return InputFile(file.name, size, held.rows, fingerprint(file))


def _check_options(name: str, source: Source, given: RawOptions) -> None:
    limit = given["limit"]
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, expected at least 1 row")
    if given["turns"] == "split" and not source.splits_turns:
        raise ConfigError(f"the rows of {name} are single conversations, --turns split makes no sense with it")
    if given["prompt"] is not None and source.prompt is None:
        raise ConfigError(f"the rows of {name} bring their own user text, --prompt makes no sense with it")


def _root(image_root: str | Path | None) -> str | None:
    if image_root is None:
        return None
    if not place(image_root).is_dir():
        raise ConfigError(f"image root {image_root} is not a folder; give the folder that image paths start from")
    return str(image_root)


def _label_names(source: Source, found: Found) -> tuple[str, ...]:
    """Class names: as the files tell them, else as the publisher fixes them; none where there are no labels."""
    if not source.label_names and not source.labelled:
        return ()
    told = {held.label_names for held in found.contents if held.label_names}
    if len(told) > 1:
        raise DataError("the raw files have different class names; convert them one by one")
    return told.pop() if told else source.label_names
