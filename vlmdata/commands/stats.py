"""``vlmdata stats``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["stats"]


@click.command()
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the exact numbers to this file; - is stdout."
)
@click.option("--overwrite", is_flag=True, help="Replace the file of --json if it is there.")
def stats(shards: tuple[Path, ...], json_file: Path | None, overwrite: bool) -> None:
    """Show what converted datasets hold: turns, lengths, images, labels.

    One pass that reads no image. Several folders are counted together. Quantiles are exact; the JSON holds them with
    the histograms' edges and counts.

    \b
    Examples:
      vlmdata stats shards/plates
      vlmdata stats shards/a shards/b --json stats.json
      vlmdata stats shards/plates --json - | jq .distributions.answer_words
    """  # noqa: D301
    import json

    from vlmdata.atomic import write_json
    from vlmdata.progress import Progress
    from vlmdata.report_file import check_file
    from vlmdata.shards import open_shards
    from vlmdata.stats import collect
    from vlmdata.stats_view import terminal

    piped = json_file == Path("-")
    if json_file is not None and not piped:
        check_file(json_file, "--json", overwrite=overwrite)
    datasets = [open_shards(path) for path in shards]
    with Progress("stats", sum(map(len, datasets))) as bar:
        found = collect(datasets, bar.advance)
    if piped:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return
    click.echo(terminal(found), nl=False)
    if json_file is not None:
        write_json(json_file, found.to_json())
        click.echo(f"numbers in {json_file}")
