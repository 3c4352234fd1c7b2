"""``vlmdata dedup``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

__all__ = ["dedup"]


@click.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--by",
    type=click.Choice(["bytes", "pixels", "perceptual"]),
    default="bytes",
    show_default=True,
    help="Compare images by encoded bytes, by decoded pixels, or by how they look (difference hash of 64 bits).",
)
@click.option(
    "--distance", type=int, metavar="BITS", help="For perceptual: bits that may differ, 0 to 16.  [default: 4]"
)
@click.option("--images-only", is_flag=True, help="Rows with the same images are duplicates, whatever their texts.")
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="EVAL",
    help="Evaluation set: a dataset or a folder of pictures; repeatable.",
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="With --against: every match as JSON.")
@click.option("--dry-run", is_flag=True, help="Report only, write no dataset.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that decode images.")
@click.option("--shard-size", default="100MB", show_default=True, help="Bytes of one shard.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset in the output folder, and the report.")
def dedup(
    shards: Path,
    out: Path | None,
    against: tuple[Path, ...],
    images_only: bool,
    report: Path | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Drop rows of SHARDS that an earlier row holds already.

    A row is a duplicate when its images and its texts equal those of an earlier row; the first one stays.

    With --against, rows are dropped instead that hold an image of an evaluation set. Without --out that is a report,
    with status 1 when there are such rows and 0 when there are none; with --out the status is 0.

    \b
    Examples:
      vlmdata dedup shards/geo --out shards/geo-once --by pixels
      vlmdata dedup shards/geo --against amber/image --by perceptual \\
        --report overlap.json
    """  # noqa: D301
    from vlmdata.contamination import contamination, contamination_lines
    from vlmdata.dedup import dedup as run
    from vlmdata.dedup import dedup_lines
    from vlmdata.derive import derived_lines
    from vlmdata.errors import ConfigError

    if dry_run:
        out = None
    elif out is None and not against:
        raise ConfigError("--out is missing; give the folder to write, or --dry-run for a report only")
    if not against:
        if report is not None:
            raise ConfigError("--report is for --against; the duplicates stand in the rejects.jsonl of --out")
        click.echo("\n".join(dedup_lines(run(shards, out, images_only=images_only, progress=True, **options))))
        return
    if images_only:
        raise ConfigError("--images-only is for duplicates; with --against texts are not compared")
    found = contamination(shards, against, out, report=report, progress=True, **options)
    click.echo("\n".join(contamination_lines(found)))
    if found.dataset is not None:
        click.echo("\n".join(derived_lines(found.dataset)))
    elif found.matches:
        sys.exit(1)
