"""``vlmdata validate``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["validate"]


@click.command()
@click.argument("shards", type=click.Path(path_type=Path))
def validate(shards: Path) -> None:
    """Check a converted dataset: every hash, every row, every image.

    Status 1 when something is wrong, with the ids of the rows.

    \b
    Example:
      vlmdata validate shards/plates
    """  # noqa: D301
    from vlmdata.progress import Progress
    from vlmdata.shards import open_shards
    from vlmdata.validate import validate as check

    found = 0
    with Progress("validate", _rows_of(shards)) as bar:
        for problem in check(shards, report=bar.advance):
            found += 1
            click.echo(str(problem))
    if found:
        click.echo(f"{shards}: {found} problems", err=True)
        sys.exit(1)
    dataset = open_shards(shards)
    files = len(dataset.files)
    click.echo(f"{shards}: {len(dataset):,} {dataset.kind} records in {files} files, no problem found")


def _rows_of(shards: Path) -> int:
    from vlmdata.manifest import Manifest

    return Manifest.read(shards).records
