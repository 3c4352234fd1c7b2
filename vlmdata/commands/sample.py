"""``vlmdata sample``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["sample"]


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--seed", default=0, show_default=True, help="The same seed draws the same world.")
@click.option("--rows", default=600, show_default=True, help="Rows of the larger sources.")
@click.option("--test-scenes", default=120, show_default=True, help="Pictures of the AMBER-style test set.")
@click.option("--overwrite", is_flag=True, help="Replace an existing folder.")
def sample(out: Path, seed: int, rows: int, test_scenes: int, overwrite: bool) -> None:
    """Draw a small world and write it as raw files of the published sources.

    The files have the exact raw form of each source; an AMBER-style test set of other scenes comes with them.

    \b
    Example:
      vlmdata sample --out raw --rows 600
    """  # noqa: D301
    from vlmdata.sample.write import write_sample

    world = write_sample(out, seed=seed, rows=rows, test_scenes=test_scenes, overwrite=overwrite)
    for what, path, count in world.summary:
        click.echo(f"{what:<14}{count:>7,}  {out / path}")
