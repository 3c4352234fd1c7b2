"""``vlmdata mix``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["mix"]


@click.command()
@click.argument("shards", nargs=-1, required=True, metavar="SHARDS=WEIGHT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--rows", type=int, metavar="N", help="Write exactly N rows.  [default: until --stop]")
@click.option(
    "--stop",
    type=click.Choice(["first", "all"]),
    default="first",
    show_default=True,
    help="End when a dataset has no more rows, or begin it again until each was read to its end.",
)
@click.option("--max-epochs", type=int, metavar="N", help="With --stop all: read no dataset more than N times.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--shard-size", default="100MB", show_default=True, help="Bytes of one shard.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset in the output folder.")
def mix(shards: tuple[str, ...], out: Path, **options: Any) -> None:
    """Mix datasets of one kind, rows interleaved at random by weight.

    Each dataset is read in its order; a weight left out is 1. An id that two datasets have becomes DATASET/ID, and
    a row's second time #2. Every row keeps its licence.

    \b
    Examples:
      vlmdata mix shards/geo=0.7 shards/plates=0.3 --out shards/both
      vlmdata mix shards/geo shards/small --out shards/even --stop all --rows 20000
    """  # noqa: D301
    from vlmdata.derive import derived_lines
    from vlmdata.mix import mix_rows, parse_weighted

    click.echo("\n".join(derived_lines(mix_rows(parse_weighted(shards), out, progress=True, **options))))
