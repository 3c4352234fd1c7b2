"""``vlmdata finalize``."""

from __future__ import annotations

from pathlib import Path

import click

from vlmdata.command import PLACE

__all__ = ["finalize"]


@click.command()
@click.argument("out", type=PLACE)
def finalize(out: Path) -> None:
    """Finish a dataset whose shards were made by several ranks.

    Checks that every shard is there as it was written, then writes rejects.jsonl, the card and the manifest.

    \b
    Example:
      vlmdata finalize shards/x
    """  # noqa: D301
    from vlmdata.convert import Conversion
    from vlmdata.finish import finalize as finish
    from vlmdata.summary import summary_lines

    click.echo("\n".join(summary_lines(Conversion(out, finish(out)))))
