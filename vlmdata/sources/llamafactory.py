"""A data set of LLaMA-Factory's ``dataset_info.json``, read as it says there.

Link: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
Licence: your own.

RAW is the ``dataset_info.json`` or its folder, ``--config`` the name of the entry::

    {"plates": {"file_name": "plates.json", "formatting": "sharegpt",
                "columns": {"messages": "messages", "images": "images"},
                "tags": {"role_tag": "role", "content_tag": "content",
                         "user_tag": "user", "assistant_tag": "assistant"}}}

``file_name`` is a file or a folder beside the list, and image paths start from there too. ``ranking: true`` makes
preferences of ``chosen`` and ``rejected``. With ``columns`` only what they name is read, as LLaMA-Factory does.

Raw row: that of ``sharegpt`` or of ``alpaca`` (the default of ``formatting``), under the names the entry gives.

Record: as those two sources make it.

Rejected: as there. Refused as a whole: an entry that names a hub data set or a script in place of a file, another
``formatting``, a ``kto_tag``, videos or sounds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, MissingError, choices
from vlmdata.marks import chat_records, instruction_records
from vlmdata.records import Record
from vlmdata.source import Located, Options, Row, Source

__all__ = ["SOURCE", "convert", "locate"]

_LIST = "dataset_info.json"
_COLUMNS = {
    "sharegpt": {"messages": "conversations"},
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
}
_SHARED = {"system": "system", "tools": "tools", "images": "images", "chosen": "chosen", "rejected": "rejected"}
_NOT_READ = ("kto_tag", "videos", "audios")
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One conversation or one preference, in the form the entry tells."""
    if "conversations" in row:
        return chat_records(row, row_id, options, "llamafactory")
    return instruction_records(row, row_id, options, "llamafactory")


def locate(path: Path, config: str | None) -> Located:
    """The file an entry means, and what its columns and tags are called.

    Raises:
        MissingError: there is no such list, or the file it names is not there.
        ConfigError: there is no such entry.
        DataError: the list cannot be read, or the entry is of a form that is not read here.
    """
    path = path / _LIST if path.is_dir() else path
    entries = _read(path)
    if config is None:
        raise ConfigError(f"llamafactory needs --config, the name of an entry of {path}; valid: {choices(entries)}")
    if config not in entries:
        raise ConfigError(f"{path} has no entry {config!r}; valid: {choices(entries)}")
    entry = entries[config]
    where = f"entry {config!r} of {path}"
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} is {type(entry).__name__}, expected an object with file_name")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in _COLUMNS:
        raise DataError(f"{where} has formatting {formatting!r}, which is not read here; valid: {choices(_COLUMNS)}")
    ranking = entry.get("ranking") is True
    columns = _columns(entry, formatting, where, ranking)
    lacking = [name for name in ("chosen", "rejected") if ranking and not dict(columns).get(name)]
    if lacking:
        raise DataError(f"{where} has ranking: true but its columns do not name {' and '.join(lacking)}")
    file = _file(entry, formatting, where, path)
    tags = _names(entry, "tags", where)
    return Located(
        files=(str(file),),
        image_root=str(path.parent),
        kind="preference" if ranking else "messages",
        columns=columns,
        tags=tuple((tag, tags[tag]) for tag in _TAGS if tag in tags) if formatting == "sharegpt" else (),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"no file {path}; RAW of llamafactory is a {_LIST} or its folder") from None
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}") from None
    if not isinstance(entries, dict):
        raise DataError(f"{path} holds {type(entries).__name__}, expected an object of entries by name")
    return entries


def _names(entry: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    given = entry.get(key) or {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given.values()):
        raise DataError(f"{where} has {key} {given!r:.80}, expected an object of names")
    return dict(given)


def _columns(entry: Mapping[str, Any], formatting: str, where: str, ranking: bool) -> tuple[tuple[str, str], ...]:
    """Which column holds which field. What the entry does not name is not read, nor are pairs that are not ranked."""
    known = _COLUMNS[formatting] | _SHARED
    # Without columns LLaMA-Factory takes the usual names of the turns or of the instruction, and nothing else.
    defaults = {name: column for name, column in _COLUMNS[formatting].items() if name != "history"}
    given = _names(entry, "columns", where) or defaults
    unread = [name for name in _NOT_READ if given.get(name)]
    if unread:
        raise DataError(f"{where} has columns {choices(unread)}, which are not read here; only texts and images are")
    unknown = [name for name in given if name not in known and name not in _NOT_READ]
    if unknown:
        raise DataError(
            f"{where} has columns {choices(unknown)}, which are not of {formatting}; valid: {choices(known)}"
        )
    left_out = () if ranking else ("chosen", "rejected")
    return tuple(sorted((field, "" if name in left_out else given.get(name, "")) for name, field in known.items()))


def _file(entry: Mapping[str, Any], formatting: str, where: str, path: Path) -> Path:
    name = entry.get("file_name")
    if isinstance(name, str) and name:
        file = path.parent / name
        if not os.path.lexists(file):
            raise MissingError(f"{where} names {name}, which is not in {path.parent}")
        return file
    if isinstance(entry.get("hf_hub_url"), str):
        renamed = _columns(entry, formatting, where, entry.get("ranking") is True)
        option = ",".join(f"{field}={column}" for field, column in renamed if column and field != column)
        option = f" --columns {option}" if option else ""
        raise DataError(
            f"{where} is a data set of the hub; give it to the source itself: "
            f"vlmdata convert {formatting} {entry['hf_hub_url']}{option} --out ..."
        )
    if isinstance(entry.get("script_url"), str):
        raise DataError(f"{where} is a loading script, which is not run here; save what it loads as Parquet or JSON")
    raise DataError(f"{where} has no file_name, found {choices(map(str, entry))}")


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"conversations"}), frozenset({"instruction"})),
    preference_columns=(
        frozenset({"conversations", "chosen", "rejected"}),
        frozenset({"instruction", "chosen", "rejected"}),
    ),
    optional=frozenset({"history", "images", "input", "output", "system", "tools"}),
    convert=convert,
    url="https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md",
    licence="your own",
    summary="an entry of LLaMA-Factory's dataset_info.json (--config NAME), alpaca or sharegpt",
    locate=locate,
)
