"""``vlmdata sources``."""

from __future__ import annotations

import click

__all__ = ["sources"]


@click.command()
@click.argument("name", required=False)
def sources(name: str | None) -> None:
    """List the sources, or show what is known of one.

    \b
    Examples:
      vlmdata sources
      vlmdata sources the_cauldron
    """  # noqa: D301
    from vlmdata.listing import describe, overview

    click.echo(overview() if name is None else describe(name))
