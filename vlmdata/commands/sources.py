"""``vlmdata sources``."""

from __future__ import annotations

import click

__all__ = ["sources"]


@click.command()
@click.argument("name", required=False)
@click.option("--configs", is_flag=True, help="List the sub-datasets of NAME, one a line.")
def sources(name: str | None, configs: bool) -> None:
    """List the sources, or show what is known of one.

    NAME is a source of the list, or a Python file of your own.

    \b
    Examples:
      vlmdata sources
      vlmdata sources the_cauldron
      vlmdata sources --configs the_cauldron
      vlmdata sources ./my_source.py
    """  # noqa: D301
    from vlmdata.errors import ConfigError
    from vlmdata.listing import configurations, describe, overview

    if configs and name is None:
        raise ConfigError("--configs needs the NAME of a source: vlmdata sources --configs the_cauldron")
    if name is None:
        click.echo(overview())
    else:
        click.echo(configurations(name) if configs else describe(name))
