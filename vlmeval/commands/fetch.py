"""``vlmeval fetch``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["fetch"]


@click.command(short_help="Fetch the official files of amber or pope.")
@click.argument("name", metavar="amber|pope")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: in the cache folder]")
@click.option("--mirror", metavar="URL", help="Fetch from here; it serves OWNER/REPOSITORY/REVISION/PATH.")
def fetch(name: str, out: Path | None, mirror: str | None) -> None:
    """Fetch a benchmark's official files: a pinned revision, every file checked by its sha256.

    What is there already is not fetched again; an interrupted download goes on. The cache folder is ~/.cache/vlmeval
    or what VLMEVAL_CACHE names; VLMEVAL_MIRROR stands for --mirror. Images are not fetched: where they are to be had
    is said at the end.
    """
    from vlmeval import official

    wanted = official.source(name)
    folder = official.fetch(name, out, mirror)
    size = sum(file.bytes for file in wanted.files) / 1e6
    click.echo(f"{folder}: {len(wanted.files)} files, {size:.1f} MB, {wanted.licence}")
    click.echo(f"from https://github.com/{wanted.repository} at {wanted.revision[:7]}, checksums right")
    click.echo(official.images(name, folder))
