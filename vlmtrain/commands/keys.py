"""``vlmtrain keys``."""

from __future__ import annotations

import click

from vlmtrain.keys import METHODS

__all__ = ["keys"]


@click.command()
@click.argument("method", type=click.Choice(METHODS))
def keys(method: str) -> None:
    """List every configuration key of METHOD: default, valid values, meaning.

    Flags, recipes and --set share these names; a flag has dashes where a key has underscores.

    \b
    Example:
      vlmtrain keys dpo
    """  # noqa: D301
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    from vlmtrain.config import resolve

    console = Console(highlight=False)
    for group in resolve(method, {}).groups():
        items = dataclasses.fields(group)
        if not items:
            continue
        console.print(f"[bold]{(type(group).__doc__ or '').splitlines()[0].rstrip('.')}[/bold]")
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        table.add_column(no_wrap=True, min_width=26)
        table.add_column(overflow="fold", min_width=10)
        table.add_column(overflow="fold")
        for item in items:
            among = item.metadata["among"]
            values = f" \\[{', '.join(among)}]" if among else ""
            table.add_row(item.name, _written(getattr(group, item.name)), _escaped(item.metadata["help"]) + values)
        console.print(table)
        console.print()


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _written(value: object) -> str:
    """A default as it would stand in a recipe."""
    if value is None or value == () or value == {}:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
