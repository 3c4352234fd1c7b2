"""``vlmdata convert``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

__all__ = ["convert"]


@click.command()
@click.argument("source")
@click.argument("raw", nargs=-1)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--config", metavar="NAME", help="Sub-dataset, for sources that have several.")
@click.option("--split", metavar="NAME", help="Part of the raw data.  [default: train, where files are named by split]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub; the commit is recorded.")
@click.option("--licence", metavar="TEXT", help="Licence of your data.  [default: what the source says]")
@click.option("--limit", type=int, metavar="N", help="Read N rows, kept or not.")
@click.option("--shuffle-seed", type=int, metavar="N", help="Choose the rows at random over all files; shuffle them.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Factor for both sides of every image.")
@click.option("--max-side", type=int, metavar="PIXELS", help="Largest side of a stored image.")
@click.option("--image-root", type=click.Path(), help="Folder image paths start from.  [default: the JSON file's]")
@click.option(
    "--image-position",
    type=click.Choice(["first", "last"]),
    default="first",
    show_default=True,
    help="Images before or after the text of their turn; <image> marks stay where they are.",
)
@click.option(
    "--turns",
    type=click.Choice(["keep", "split"]),
    default="keep",
    show_default=True,
    help="All question/answer pairs of a row as one conversation, or each as a record.",
)
@click.option("--prompt", help="User's text where the raw data has none; '' for none.  [default: the source's]")
@click.option(
    "--on-error",
    type=click.Choice(["quarantine", "fail"]),
    default="quarantine",
    show_default=True,
    help="A bad row goes to rejects.jsonl, or ends the conversion.",
)
@click.option("--shard-size", default="100MB", show_default=True, help="Input bytes for one shard.")
@click.option("--workers", type=int, metavar="N", help="Processes; they do not change the result.  [default: all CPUs]")
@click.option("--resume", is_flag=True, help="Go on with an interrupted conversion.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset in the output folder.")
def convert(source: str, raw: tuple[str, ...], out: Path, workers: int | None, **options: Any) -> None:
    """Convert RAW of a SOURCE into shards.

    RAW is Parquet, Arrow, JSON or JSON Lines files, a folder of them, a folder of pictures, or a hub dataset
    (owner/name). Without RAW the source's own hub dataset is streamed. A row that cannot be used goes to
    rejects.jsonl with the reason.

    \b
    Examples:
      vlmdata convert ocr_json plates.json --image-root photos --out shards/plates
      vlmdata convert the_cauldron --config geomverse --limit 3000 --scale 0.5 --out shards/geo
    """  # noqa: D301
    from vlmdata.convert import convert as run
    from vlmdata.summary import summary_lines

    try:
        done = run(source, raw, out, workers=_cpus(workers), progress=True, **options)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command with --resume goes on", err=True)
        sys.exit(130)
    click.echo("\n".join(summary_lines(done)))


def _cpus(workers: int | None) -> int:
    """All processors this process may use; a number that was asked for is left for the conversion to judge."""
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
