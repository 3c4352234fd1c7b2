"""What the three command lines share: one door for errors."""

from __future__ import annotations

import errno
import sys
from typing import Any, NoReturn

import click

from vlmdata.errors import VlmError
from vlmdata.terminal import harmless

__all__ = ["ErrorGroup", "PLACE", "PlaceType"]


class ErrorGroup(click.Group):
    """A group that prints a user's mistake as one line and ends with status 2.

    Anything that is not a ``VlmError`` is a bug and keeps its traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn a ``VlmError``, or a name too long for the system, into one line on stderr."""
        try:
            return super().invoke(ctx)
        except VlmError as error:
            _end(ctx, str(error))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            _end(ctx, f"{str(error.filename)[:60]} ... is longer than a file's name can be; give a shorter one")


def _end(ctx: click.Context, text: str) -> NoReturn:
    click.echo(f"{ctx.info_name}: {harmless(text)}", err=True)
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
