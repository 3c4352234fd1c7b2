"""What ``vlmdata sources`` shows."""

from __future__ import annotations

import importlib
import textwrap

from vlmdata.errors import choices
from vlmdata.source import load, names

__all__ = ["describe", "overview"]


def overview() -> str:
    """All sources, a few lines each, within 80 columns."""
    lines = []
    for name in names():
        source = load(name)
        lines += [f"{name:<14}{source.kind:<12}{source.licence}", *_indented(source.summary)]
        lines += _indented(source.hub_id or "local files only")
    lines.append("\nvlmdata sources NAME shows the raw row, the record it becomes and what is rejected.")
    return "\n".join(lines)


def describe(name: str) -> str:
    """One source: its docstring and what the options can be.

    Raises:
        MissingError: there is no such source.
    """
    source = load(name)
    module = importlib.import_module(f"vlmdata.sources.{name}")
    lines = [(module.__doc__ or "").strip(), ""]
    lines.append("columns: " + ", or ".join(choices(columns) for columns in source.columns))
    if source.prompt is not None:
        lines.append(f"prompt: {source.prompt!r} unless --prompt is given")
    if source.configs:
        lines += textwrap.wrap(f"--config: {choices(source.configs)}", 78)
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 78, initial_indent=" " * 14, subsequent_indent=" " * 14)
