"""What ``vlmdata sources`` shows."""

from __future__ import annotations

import textwrap

from vlmdata.errors import ConfigError, choices
from vlmdata.source import Source, documentation, load, names

__all__ = ["configurations", "describe", "overview"]


def overview() -> str:
    """All sources, a few lines each, within 80 columns."""
    lines = []
    for name in names():
        source = load(name)
        lines += [f"{name:<14}{_kinds(source):<24}{source.licence}", *_indented(source.summary)]
        elsewhere = "local files only" if source.locate else "local files, or a hub dataset of this form"
        lines += _indented(source.hub_id or elsewhere)
    lines.append("\nvlmdata sources NAME shows the raw row, the record it becomes and what is rejected.")
    lines.append("vlmdata convert ./NAME.py RAW reads a source of your own.")
    return "\n".join(lines)


def describe(name: str) -> str:
    """One source: its docstring and what the options can be.

    Raises:
        MissingError: there is no such source.
        DataError: a file of the user's that is no source.
    """
    source = load(name)
    lines = [documentation(name), ""]
    wanted = "columns: " + ", or ".join(choices(columns) for columns in source.alternatives)
    lines += textwrap.wrap(wanted, 78, subsequent_indent="  ")
    if source.optional:
        lines += textwrap.wrap(f"optional: {choices(source.optional)}", 78, subsequent_indent="  ")
    if source.prompt is not None:
        lines.append(f"prompt: {source.prompt!r} unless --prompt is given")
    if source.configs:
        lines += textwrap.wrap(f"--config: {choices(source.configs)}", 78)
    return "\n".join(lines)


def configurations(name: str) -> str:
    """The configurations of a source, one a line, with what is known of their size.

    Raises:
        MissingError: there is no such source.
        ConfigError: it has no configurations.
    """
    source = load(name)
    if source.locate is not None:
        raise ConfigError(f"the configurations of {name} are the entries of your list; a wrong --config lists them")
    if not source.configs:
        having = choices(other for other in names() if load(other).configs)
        raise ConfigError(f"{name} has no configurations; sources that have some: {having}")
    width = max(map(len, source.configs)) + 2
    told = source.config_rows
    return "\n".join(
        f"{config:<{width}}{told[config]:>8} rows" if config in told else config for config in sorted(source.configs)
    )


def _kinds(source: Source) -> str:
    if source.preference_columns and source.kind == "messages":
        return "messages or preference"
    return source.kind


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 78, initial_indent=" " * 14, subsequent_indent=" " * 14)
