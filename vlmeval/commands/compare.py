"""``vlmeval compare``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["compare"]


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN [RUN]...")
@click.option("--name", "names", multiple=True, help="Name of a run, once for each in order.  [default: folder names]")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page here.")
@click.option("--markdown", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write Markdown here.")
@click.option("--json", "json_", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures and flips.")
@click.option("--images", type=click.Path(path_type=Path), help="Image folder for --html.  [default: as recorded]")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def compare(
    runs: tuple[Path, ...],
    names: tuple[str, ...],
    html: Path | None,
    markdown: Path | None,
    json_: Path | None,
    images: Path | None,
    overwrite: bool,
) -> None:
    """Compare evaluation folders: figures with intervals, paired tests, answers that flipped."""
    from vlmeval.compare import compare as compared
    from vlmeval.compare_report import check, terminal, write

    files = {"html": html, "markdown": markdown, "json": json_}
    check(files, images, overwrite=overwrite)
    comparison = compared(runs, names=names)
    write(comparison, files, images)
    click.echo(terminal(comparison), nl=False)
    for path in files.values():
        if path is not None:
            click.echo(f"Wrote {path}")
