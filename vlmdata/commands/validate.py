"""``vlmdata validate``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vlmdata.command import PLACE

__all__ = ["validate"]


@click.command()
@click.argument("shards", type=PLACE)
@click.option("--sample", type=int, metavar="N", help="Decode the images of N rows, evenly spread.  [default: all]")
@click.option(
    "--rules",
    default="trl,llamafactory",
    show_default=True,
    metavar="NAMES",
    help="Placeholder rules every row must pass: trl, llamafactory, or none.",
)
@click.option("--workers", default=2, show_default=True, help="Threads that decode.")
def validate(shards: Path, sample: int | None, rules: str, workers: int) -> None:
    """Check a converted dataset: every hash, every row, every image.

    Status 1 when something is wrong, with the ids of the rows.

    \b
    Examples:
      vlmdata validate shards/plates
      vlmdata validate shards/big --sample 1000
    """  # noqa: D301
    from vlmdata.placeholders import parse_rules
    from vlmdata.progress import Progress
    from vlmdata.shards import open_shards
    from vlmdata.validate import validate as check

    found = 0
    wanted = parse_rules(rules)
    with Progress("validate", _rows_of(shards)) as bar:
        for problem in check(shards, sample=sample, rules=wanted, workers=workers, report=bar.advance):
            found += 1
            click.echo(str(problem))
    if found:
        click.echo(f"{shards}: {found} problems", err=True)
        sys.exit(1)
    dataset = open_shards(shards)
    files = len(dataset.files)
    decoded = "every image decoded" if sample is None else f"images of {min(sample, len(dataset)):,} rows decoded"
    click.echo(f"{shards}: {len(dataset):,} {dataset.kind} records in {files} files, {decoded}, no problem found")


def _rows_of(shards: Path) -> int:
    from vlmdata.manifest import Manifest

    return Manifest.read(shards).records
