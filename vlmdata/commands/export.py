"""``vlmdata export``."""

from __future__ import annotations

from pathlib import Path

import click

from vlmdata.target import names

__all__ = ["export"]


@click.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, metavar="TOOL", help=f"One of {', '.join(names())}.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--literal-mark",
    type=click.Choice(["refuse", "escape"]),
    help="A text that holds a mark like <image> itself: skip the row, or put U+200D into the mark. For llamafactory, "
    "swift, llava.  [default: refuse]",
)
@click.option(
    "--form",
    type=click.Choice(["messages", "prompt-completion"]),
    help="Columns for trl: all turns, or the last one apart, so that the loss is on it only.  [default: messages]",
)
@click.option("--overwrite", is_flag=True, help="Replace an export in the output folder.")
def export(shards: Path, target: str, out: Path, literal_mark: str | None, form: str | None, overwrite: bool) -> None:
    """Write SHARDS as a training tool reads them.

    Nothing is lost: images are copied as they are, and what the tool has no field for goes along in an extra one. A
    row that the tool cannot hold is skipped, with the reason in skipped.jsonl. OUT brings the tool's own config and a
    README that says how to train.

    \b
    Examples:
      vlmdata export shards/plates --to llamafactory --out plates-lf
      vlmdata export shards/geo --to trl --form prompt-completion --out geo-trl
    """  # noqa: D301
    from vlmdata.export import export as run
    from vlmdata.export import export_lines

    done = run(shards, target, out, literal_mark=literal_mark, form=form, overwrite=overwrite, progress=True)
    click.echo("\n".join(export_lines(done)))
