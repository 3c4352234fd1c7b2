"""What a source is, and how sources are found: by the file names in ``vlmdata/sources``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmdata.errors import MissingError, choices
from vlmdata.records import Record

__all__ = ["Options", "Row", "Source", "fitting", "load", "names"]

Row = Mapping[str, Any]


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
    """

    config: str | None = None
    image_position: Literal["first", "last"] = "first"
    turns: Literal["keep", "split"] = "keep"
    prompt: str | None = None
    label_names: tuple[str, ...] = ()


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
        splits_turns: ``turns="split"`` makes sense: the question/answer pairs of a row do not build on each other.
        prompt: the stated default of the user's text; None where the raw data brings its own.
        label_names: class names where the publisher fixes them.
    """

    kind: Literal["messages", "preference"]
    columns: tuple[frozenset[str], ...]
    convert: Callable[[Row, str, Options], list[Record]]
    url: str
    licence: str
    summary: str
    hub_id: str | None = None
    configs: tuple[str, ...] = field(default=(), repr=False)
    splits_turns: bool = False
    prompt: str | None = None
    label_names: tuple[str, ...] = field(default=(), repr=False)


def names() -> list[str]:
    """All source names, sorted; nothing is imported."""
    import vlmdata.sources as package

    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(name: str) -> Source:
    """The source of that name.

    Raises:
        MissingError: there is no such source.
    """
    if name not in names():
        raise MissingError(f"no source named {name!r}; valid: {choices(names())}")
    source: Source = importlib.import_module(f"vlmdata.sources.{name}").SOURCE
    return source


def fitting(columns: frozenset[str]) -> list[str]:
    """The names of the sources that can read rows with these columns."""
    return [name for name in names() if any(needed <= columns for needed in load(name).columns)]
