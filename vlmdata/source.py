"""What a source is, and how sources are found: by the file names in ``vlmdata/sources``, or in a file of the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmdata.errors import ConfigError, DataError, RecordError, choices
from vlmdata.leaves import leaf_names, load_leaf
from vlmdata.records import Preference, Record, Sample

__all__ = [
    "Kind",
    "Located",
    "Options",
    "Pairs",
    "Row",
    "Source",
    "documentation",
    "fitting",
    "kind_of",
    "load",
    "names",
    "parse_columns",
    "records",
    "renamed",
    "wants_preference",
]

Row = Mapping[str, Any]
Kind = Literal["messages", "preference"]
Pairs = tuple[tuple[str, str], ...]
"""A small mapping that can be hashed and sent to workers."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a source's ``convert`` may depend on besides the row.

    Attributes:
        config: the sub-dataset, for sources that have several.
        image_position: whether images stand before or after the text of their turn, where the raw row does not
            say it itself.
        turns: ``keep`` makes one conversation of all question/answer pairs of a row, ``split`` one record each.
        prompt: the user's text where the raw data has none; None is the source's default, "" is no text at all.
        label_names: class names in index order, where the raw data tells them.
        kind: what the rows become, for sources that make either; None is the source's own kind.
        columns: (field the source reads, column that holds it), where the file calls it otherwise. A field whose
            column is "" is taken as not there.
        tags: (what it is, what the file calls it) of the keys and roles inside a turn, where the file says so.
    """

    config: str | None = None
    image_position: Literal["first", "last"] = "first"
    turns: Literal["keep", "split"] = "keep"
    prompt: str | None = None
    label_names: tuple[str, ...] = ()
    kind: Kind | None = None
    columns: Pairs = ()
    tags: Pairs = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Options:
        """Read back what ``dataclasses.asdict`` gave and JSON kept.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        names, columns, tags = (values[name] for name in ("label_names", "columns", "tags"))
        pairs = {"columns": tuple(map(tuple, columns)), "tags": tuple(map(tuple, tags))}
        return cls(**{**values, "label_names": tuple(names), **pairs})


@dataclass(frozen=True, slots=True)
class Located:
    """What a list of data sets says of one of them.

    Attributes:
        files: its raw files.
        image_root: the folder its image paths start from.
        kind: what its rows become.
        columns: as in ``Options``.
        tags: as in ``Options``.
    """

    files: tuple[str, ...]
    image_root: str
    kind: Kind
    columns: Pairs = ()
    tags: Pairs = ()


@dataclass(frozen=True, slots=True)
class Source:
    """One raw format.

    Attributes:
        kind: which shards it makes.
        columns: alternatives; a raw file fits when it has all columns of one of them.
        convert: (row, row id, options) to records; pure. Raises RecordError. One record, or several with
            ``turns="split"``.
        url: where the data is published.
        hub_id: what is streamed when no raw path is given; None when there is no such thing.
        licence: as the publisher states it.
        summary: one line for ``vlmdata sources``.
        configs: configuration names, for sources that consist of several data sets; one of them is required.
        config_rows: rows of each configuration as published, for ``vlmdata sources --configs``.
        splits_turns: ``turns="split"`` makes sense: the question/answer pairs of a row do not build on each other.
        prompt: the stated default of the user's text; None where the raw data brings its own.
        label_names: class names where the publisher fixes them.
        labelled: class names are told by the raw files alone.
        preference_columns: alternatives for which the source makes preferences, whatever its ``kind``.
        optional: fields that rows may have besides; with the columns all that ``--columns`` can name.
        locate: for sources whose RAW is a list of data sets: (RAW, configuration) to the files that are meant.
    """

    kind: Kind
    columns: tuple[frozenset[str], ...]
    convert: Callable[[Row, str, Options], list[Record]]
    url: str
    licence: str
    summary: str
    hub_id: str | None = None
    configs: tuple[str, ...] = field(default=(), repr=False)
    config_rows: Mapping[str, str] = field(default_factory=dict, repr=False)
    splits_turns: bool = False
    prompt: str | None = None
    label_names: tuple[str, ...] = field(default=(), repr=False)
    labelled: bool = False
    preference_columns: tuple[frozenset[str], ...] = ()
    optional: frozenset[str] = frozenset()
    locate: Callable[[Path, str | None], Located] | None = None

    @property
    def alternatives(self) -> tuple[frozenset[str], ...]:
        """All sets of columns that it can read."""
        return (*self.columns, *(columns for columns in self.preference_columns if columns not in self.columns))

    @property
    def fields(self) -> frozenset[str]:
        """All fields it reads."""
        return self.optional.union(*self.alternatives)


def names() -> list[str]:
    """All source names, sorted; nothing is imported."""
    return leaf_names("vlmdata.sources")


def load(name: str) -> Source:
    """The source of that name; a name that ends in ``.py`` is a file with ``SOURCE = Source(...)``.

    Raises:
        MissingError: there is no such source.
        DataError: the file is no source.
    """
    if name.endswith(".py"):
        from vlmdata.adapter import load_file

        return load_file(name)
    source: Source = load_leaf("vlmdata.sources", name, "SOURCE", "source", ", or a file of your own: ./NAME.py")
    return source


def documentation(name: str) -> str:
    """The docstring of a source's file.

    Raises:
        MissingError, DataError: as ``load`` does.
    """
    if name.endswith(".py"):
        from vlmdata.adapter import docstring

        return docstring(name)
    load(name)
    return (importlib.import_module(f"vlmdata.sources.{name}").__doc__ or "").strip()


def fitting(columns: frozenset[str]) -> list[str]:
    """The names of the sources that can read rows with these columns."""
    sources = ((name, load(name)) for name in names())
    return [
        name
        for name, source in sources
        if source.locate is None and any(needed <= columns for needed in source.alternatives)
    ]


def kind_of(source: Source, columns: frozenset[str]) -> Kind | None:
    """What rows with these columns become; None when the source cannot read them."""
    if any(needed <= columns for needed in source.preference_columns):
        return "preference"
    return source.kind if any(needed <= columns for needed in source.columns) else None


def wants_preference(row: Row, options: Options) -> bool:
    """Whether a row of a source that makes either is to become a preference.

    Raises:
        RecordError: ``wrong_fields``, it is a pair of answers in a file of conversations: one would be lost.
    """
    is_pair = row.get("chosen") is not None and row.get("rejected") is not None
    if is_pair and options.kind == "messages":
        raise RecordError("wrong_fields", "the row has chosen and rejected, in a file that is read as conversations")
    return is_pair if options.kind is None else options.kind == "preference"


def parse_columns(value: str | Mapping[str, str] | None, source: Source) -> Pairs:
    """Read ``image=file,answer=label`` or a mapping: which column holds which field of the source.

    Raises:
        ConfigError: it is not of that form, or names a field the source does not read.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",")]
        pairs = [(name.strip(), column.strip()) for name, _, column in parts]
    else:
        pairs = list(value.items())
    for name, column in pairs:
        if not name or not column:
            raise ConfigError(
                f"columns are {value!r}, expected FIELD=COLUMN,FIELD=COLUMN such as image=file,answer=label"
            )
        if name not in source.fields:
            raise ConfigError(f"columns name a field {name!r} that this source does not read; {_fields(source)}")
    if len({name for name, _ in pairs}) < len(pairs):
        raise ConfigError(f"columns are {value!r}, which names a field twice")
    return tuple(sorted(pairs))


def _fields(source: Source) -> str:
    return f"valid: {choices(source.fields)}"


def renamed(row: Row, columns: Pairs) -> Row:
    """A row with its columns under the names of the fields they hold."""
    if not columns:
        return row
    moved = {column for _, column in columns} | {name for name, _ in columns}
    kept = {name: value for name, value in row.items() if name not in moved}
    return kept | {name: row[column] for name, column in columns if column in row}


def records(source: Source, row: Row, row_id: str, options: Options) -> list[Record]:
    """A raw row as records: what ``source.convert`` makes of it, columns renamed and the answer checked.

    Raises:
        RecordError: the row cannot become a record.
        DataError: ``convert`` gave something else than records of the source's kind.
    """
    made = source.convert(renamed(row, options.columns), row_id, options)
    wanted = Sample if (options.kind or source.kind) == "messages" else Preference
    if isinstance(made, list) and made and all(isinstance(record, wanted) for record in made):
        return made
    found = {type(record).__name__ for record in made} if isinstance(made, list) else {type(made).__name__}
    raise DataError(
        f"convert() of the source gave {choices(found) if found else 'an empty list'} for row {row_id}, "
        f"expected a list of {wanted.__name__} records; raise RecordError(reason, detail) for a row that cannot be used"
    )
