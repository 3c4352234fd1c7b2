"""What the three command lines share: one door for errors."""

from __future__ import annotations

import sys
from typing import Any

import click

from vlmdata.errors import VlmError

__all__ = ["ErrorGroup"]


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
