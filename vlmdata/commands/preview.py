"""``vlmdata preview``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["preview"]


@click.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The HTML file to write.")
@click.option("--rows", default=200, show_default=True, help="Rows to show, spread over the whole dataset.")
@click.option("--seed", default=0, show_default=True, help="Which rows are chosen.")
@click.option("--thumbnail", default=320, show_default=True, help="Longest side of the pictures, in pixels.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
def preview(shards: Path, out: Path, rows: int, seed: int, thumbnail: int, overwrite: bool) -> None:
    """Write a page to look through a converted dataset in a browser.

    One HTML file that needs no network: pictures with their conversations, better and worse answers with the words
    that differ, rejected rows, plots, and where the data comes from. With search, filters and keys (? lists them).

    \b
    Examples:
      vlmdata preview shards/plates --out plates.html
      vlmdata preview shards/rlaif --out rlaif.html --rows 500 --seed 1
    """  # noqa: D301
    from vlmdata.preview import preview as write
    from vlmdata.progress import Progress
    from vlmdata.shards import open_shards

    dataset = open_shards(shards)
    with Progress("preview", len(dataset)) as bar:
        done = write(dataset, out, count=rows, seed=seed, side=thumbnail, overwrite=overwrite, report=bar.advance)
    rejected = f" and {done.rejects:,} rejected ones" if done.rejects else ""
    size = f"{done.bytes / 1e6:.1f} MB"
    click.echo(f"{out}: {done.rows:,} of {done.records:,} rows{rejected}, {size}; open it in a browser")
