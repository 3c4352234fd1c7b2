"""``vlmdata convert``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from vlmdata.command import PLACE

__all__ = ["convert"]


@click.command()
@click.argument("source", required=False)
@click.argument("raw", nargs=-1)
@click.option("--out", required=True, type=PLACE, help="Folder to write.")
@click.option("--config", metavar="NAME", help="Sub-dataset, for sources that have several.")
@click.option("--split", metavar="NAME", help="Part of the raw data.  [default: train, where files are named by split]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub; the commit is recorded.")
@click.option("--licence", metavar="TEXT", help="Licence of your data.  [default: what the source says]")
@click.option("--columns", metavar="F=C,...", help="Which column holds which field: image=file,answer=label.")
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
@click.option("--max-rejects", metavar="N|P%", help="End when more rows are rejected than this; 0: at the first.")
@click.option(
    "--verify-images",
    type=click.Choice(["header", "full"]),
    default="header",
    show_default=True,
    help="Find cut images by their structure, or decode every one.",
)
@click.option("--from-rejects", type=PLACE, help="Convert the rejects of this dataset again.")
@click.option("--shard-size", default="100MB", show_default=True, help="Input bytes for one shard.")
@click.option("--workers", type=int, metavar="N", help="Processes; they do not change the result.  [default: all CPUs]")
@click.option("--engine", metavar="NAME", help="serial, process or ray.  [default: what fits the workers]")
@click.option("--ray-address", metavar="ADDRESS", help="Of a running Ray cluster.  [default: one is started here]")
@click.option("--rank", type=int, metavar="I", help="Make only every N-th shard, N from --world; then finalize.")
@click.option("--world", type=int, metavar="N", help="How many ranks there are.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted conversion.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset in the output folder.")
@click.pass_context
def convert(
    context: click.Context,
    /,
    source: str | None,
    raw: tuple[str, ...],
    out: Path,
    from_rejects: Path | None,
    rank: int | None,
    world: int | None,
    workers: int | None,
    **options: Any,
) -> None:
    """Convert RAW of a SOURCE into shards.

    SOURCE is one of vlmdata sources, or a Python file of your own. RAW is Parquet, Arrow, JSON, JSON Lines or CSV
    files, a folder of them, a folder of pictures, or a hub dataset (owner/name). Without RAW the source's own hub
    dataset is streamed. A row that cannot be used goes to rejects.jsonl with the reason.

    \b
    Examples:
      vlmdata convert ocr_json plates.json --image-root photos --out shards/plates
      vlmdata convert the_cauldron --config geomverse --limit 3000 --scale 0.5 --out shards/geo
      vlmdata convert --from-rejects shards/plates --image-root mended --out shards/more
      vlmdata convert rlaif_v raw/ --out shards/x --rank $SLURM_ARRAY_TASK_ID --world 16
    """  # noqa: D301
    from vlmdata.convert import convert as run
    from vlmdata.convert import convert_rank, convert_rejects
    from vlmdata.memory import share_arenas
    from vlmdata.summary import summary_lines

    share_arenas()
    _check_call(source, from_rejects, rank, world)
    options |= {"workers": _cpus(workers), "progress": True}
    try:
        if from_rejects is not None:
            done = convert_rejects(from_rejects, out, **_given(context, options))
        elif rank is not None and world is not None:
            part = convert_rank(str(source), raw, out, rank, world, **options)
            click.echo(f"rank {rank} of {world}: {part.shards} of {part.of} shards, {part.read:,} rows read")
            click.echo(f"when every rank has ended: vlmdata finalize {out}")
            return
        else:
            done = run(str(source), raw, out, **options)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command with --resume goes on", err=True)
        sys.exit(130)
    click.echo("\n".join(summary_lines(done)))


def _check_call(source: str | None, from_rejects: Path | None, rank: int | None, world: int | None) -> None:
    """Refuse calls that do not say what is to be converted."""
    from vlmdata.errors import ConfigError

    if (source is None) == (from_rejects is None):
        raise ConfigError("give a SOURCE (see vlmdata sources), or --from-rejects with a converted dataset")
    if (rank is None) != (world is None):
        raise ConfigError("--rank and --world go together: --rank 0 --world 4")
    if from_rejects is not None and rank is not None:
        raise ConfigError("--from-rejects is no work for ranks; leave out --rank and --world")


def _given(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were asked for, and those that only say how to run."""
    default = click.core.ParameterSource.DEFAULT
    return {name: value for name, value in options.items() if context.get_parameter_source(name) is not default}


def _cpus(workers: int | None) -> int:
    """All processors this process may use; a number that was asked for is left for the conversion to judge."""
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
