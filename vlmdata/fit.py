"""Whether the rows of a raw file are those a source reads, and what they become."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.errors import ConfigError, DataError, choices
from vlmdata.readers import Contents, Input, inspect
from vlmdata.source import Kind, Pairs, Source, fitting, kind_of, renamed

__all__ = ["common_kind", "inspect_fitting"]

_TOLD = 4


def inspect_fitting(name: str, source: Source, file: Input, columns: Pairs) -> Contents:
    """Inspect a file and refuse it when its rows are not the source's.

    Raises:
        ConfigError: a column that ``--columns`` names is not there.
        DataError: it cannot be read, or has other columns than the source needs.
    """
    contents = inspect(file)
    if contents.rows == 0:
        return contents
    if not contents.columns:
        raise DataError(f"{file.path} holds no row that is an object; expected {_wanted(name, source)}")
    if any(kind_of(source, _fields(found, columns)) for found in contents.columns):
        return contents
    found = contents.columns[0]
    lacking = [f"{field}={column}" for field, column in columns if column and column not in found]
    if lacking and source.locate is None:
        raise ConfigError(f"{file.path} has no column for {choices(lacking)} of --columns; it has: {choices(found)}")
    others = fitting(found)
    hint = f"; these columns fit {choices(others)}" if others else ""
    if file.format == "folder":
        hint += "; one subfolder for each class gives label, a metadata.jsonl or a .txt beside each picture gives text"
    elif not others:
        hint = "; --columns FIELD=COLUMN says which column holds which field" if source.locate is None else ""
    raise DataError(f"{file.path} is not of {name}: expected {_wanted(name, source)}, found {choices(found)}{hint}")


def _fields(found: frozenset[str], columns: Pairs) -> frozenset[str]:
    """The fields that rows with these columns have."""
    return frozenset(renamed(dict.fromkeys(found), columns))


def common_kind(source: Source, inputs: Sequence[Input], contents: Sequence[Contents], columns: Pairs) -> Kind:
    """What all the rows become; the first row that fits decides for its file, and the files must agree.

    Raises:
        DataError: they do not.
    """
    kinds: dict[Kind, str] = {}
    for file, holds in zip(inputs, contents, strict=True):
        told = (kind_of(source, _fields(found, columns)) for found in holds.columns)
        kind = next((kind for kind in told if kind is not None), None)
        if kind is not None:
            kinds.setdefault(kind, file.path)
    if len(kinds) > 1:
        places = " and ".join(f"{path} as {kind}" for kind, path in kinds.items())
        raise DataError(f"the files hold rows of both kinds ({places}); convert them one by one")
    return next(iter(kinds), source.kind)


def _wanted(name: str, source: Source) -> str:
    told = ", or ".join("columns " + choices(columns) for columns in source.alternatives[:_TOLD])
    return told if len(source.alternatives) <= _TOLD else f"{told}, or others (vlmdata sources {name} lists them)"
