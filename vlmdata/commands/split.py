"""``vlmdata split``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["split"]


@click.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write; a part each in it.")
@click.option(
    "--parts",
    default="train=0.8,validation=0.1,test=0.1",
    show_default=True,
    metavar="NAME=SHARE,...",
    help="Shares that add up to 1, or numbers of rows; one may be 'rest'.",
)
@click.option(
    "--by",
    type=click.Choice(["group", "label"]),
    default="group",
    show_default=True,
    help="Deal groups out at random, or so within each class.",
)
@click.option(
    "--group-key",
    "group_keys",
    multiple=True,
    metavar="FIELD",
    help="Keep rows with the same value together too: source, licence, dataset, config, file, label or meta.KEY; "
    "repeatable.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random order.")
@click.option("--shard-size", default="100MB", show_default=True, help="Bytes of one shard.")
@click.option("--overwrite", is_flag=True, help="Replace a split in the output folder.")
def split(shards: Path, out: Path, **options: Any) -> None:
    """Split SHARDS into parts, no image in two of them.

    Rows that share an image, or are linked by rows that do, are one group and stay together. Each part is a dataset
    in OUT/NAME; split.json says how many rows, groups and labels each has. The same seed gives the same parts.

    \b
    Examples:
      vlmdata split shards/geo --out shards/geo-split
      vlmdata split shards/food --out shards/food-split --by label \\
        --parts train=rest,test=500
    """  # noqa: D301
    from vlmdata.split import split_lines, split_rows

    click.echo("\n".join(split_lines(split_rows(shards, out, progress=True, **options))))
