"""``vlmeval compare``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["compare"]

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Compare evaluations: paired tests, intervals, flips.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN [RUN]...")
@click.option("--name", "names", multiple=True, help="Name of a run, once for each in order.  [default: folder names]")
@click.option("--baseline", metavar="NAME", help="Run that the others are held against.  [default: the first]")
@click.option("--html", type=_FILE, help="Write one self-contained page here.")
@click.option("--markdown", "--out", type=_FILE, help="Write Markdown here.")
@click.option("--json", "json_", type=_FILE, help="Write all figures, tests, breakdowns and flips here.")
@click.option("--csv", "csv_", type=_FILE, help="Write all differences as a table here, a line for each.")
@click.option("--images", type=click.Path(path_type=Path), help="Image folder for --html.  [default: as recorded]")
@click.option("--task", type=_FILE, help="Python file of your own task.  [default: as recorded]")
@click.option(
    "--fail-if",
    type=click.Choice(["worse", "worse-holm"]),
    help="Status 1 where a headline figure is worse than the baseline's, beyond noise; worse-holm: also after Holm's"
    " correction for the number of figures.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def compare(
    runs: tuple[Path, ...],
    names: tuple[str, ...],
    baseline: str | None,
    html: Path | None,
    markdown: Path | None,
    json_: Path | None,
    csv_: Path | None,
    images: Path | None,
    task: Path | None,
    fail_if: str | None,
    overwrite: bool,
) -> None:
    """Compare evaluation folders: figures with intervals, paired tests, answers that flipped.

    Every difference has a 95 % interval over whole images, and is called noise where that holds zero; beside it
    stands the smallest difference such a comparison finds four times in five. Right and wrong answers are tested by
    exact McNemar, and over images.
    """
    import gc
    import sys

    from vlmeval.compare import compare as compared
    from vlmeval.compare_report import check, terminal, write
    from vlmeval.verdicts import worse

    # A comparison holds hundreds of thousands of rows and makes no cycles: the collector would only walk through them.
    gc.disable()
    files = {"html": html, "markdown": markdown, "json": json_, "csv": csv_}
    check(files, images, overwrite=overwrite)
    comparison = compared(runs, names=names, baseline=baseline, task=task)
    write(comparison, files, images)
    click.echo(terminal(comparison), nl=False)
    for path in files.values():
        if path is not None:
            click.echo(f"Wrote {path}")
    found = worse(comparison.pairs, comparison.runs[0].name, fail_if) if fail_if else []
    for line in found:
        click.echo(f"vlmeval: {line}", err=True)
    if found:
        sys.exit(1)
