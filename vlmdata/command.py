"""What the three command lines share: one door for errors."""

from __future__ import annotations

import sys
from typing import Any

import click

from vlmdata.errors import VlmError

__all__ = ["ErrorGroup", "PLACE", "PlaceType"]


class ErrorGroup(click.Group):
    """A group that prints a user's mistake as one line and ends with status 2.

    Anything that is not a ``VlmError`` is a bug and keeps its traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn a ``VlmError`` into one line on stderr."""
        try:
            return super().invoke(ctx)
        except VlmError as error:
            line = " ".join(str(error).split())
            click.echo(f"{ctx.info_name}: {line}", err=True)
            sys.exit(2)


class PlaceType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A local path, or the address of an object store."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The place the text names."""
        if not isinstance(value, str):
            return value
        from vlmdata.places import place

        return place(value)


PLACE = PlaceType()
