"""``vlmdata filter``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["filter_command"]


@click.command("filter")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--licence", "licences", multiple=True, metavar="GLOB", help="Keep these licences: 'cc-by-*'; repeatable."
)
@click.option("--no-non-commercial", is_flag=True, help="Drop licences that forbid commercial use.")
@click.option("--label", "labels", multiple=True, metavar="NAME", help="Keep these classes; repeatable.")
@click.option("--min-side", type=int, metavar="PIXELS", help="Shortest side of every image, at least.")
@click.option("--max-side", type=int, metavar="PIXELS", help="Longest side of every image, at most.")
@click.option("--min-pixels", type=int, metavar="N", help="Pixels of every image, at least.")
@click.option("--max-pixels", type=int, metavar="N", help="Pixels of every image, at most.")
@click.option("--max-aspect", type=float, metavar="X", help="Long side / short side of every image, at most.")
@click.option("--min-turns", type=int, metavar="N", help="Answers in the conversation, at least.")
@click.option("--max-turns", type=int, metavar="N", help="Answers in the conversation, at most.")
@click.option("--min-answer-chars", type=int, metavar="N", help="Characters of the answers, at least.")
@click.option("--max-answer-chars", type=int, metavar="N", help="Characters of the answers, at most.")
@click.option("--where", metavar="EXPRESSION", help="Keep rows for which it holds; its words are above.")
@click.option("--shard-size", default="100MB", show_default=True, help="Bytes of one shard.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset in the output folder.")
def filter_command(shards: Path, out: Path, shard_size: str, overwrite: bool, **options: Any) -> None:
    """Keep the rows of SHARDS that fulfil every condition.

    A dropped row stands in rejects.jsonl with the first condition it fails. No image is opened.

    \b
    An EXPRESSION has numbers, 'texts', + - * / // %, comparisons, and, or,
    not, in, and of a row:
      id source licence dataset config file label
      images width height min_side max_side pixels min_pixels max_pixels aspect
      turns question answer rejected text question_chars answer_chars
      len(x) lower(x) contains(x, 'part') startswith(x, 'part')
      endswith(x, 'part') matches(x, 'regex') meta('key')

    \b
    Examples:
      vlmdata filter shards/geo --out shards/small --max-side 1024 --max-turns 4
      vlmdata filter shards/geo --out shards/brief \\
        --where "answer_chars < 200 and not contains(lower(question), 'why')"
    """  # noqa: D301
    from vlmdata.derive import derived_lines
    from vlmdata.filter import Conditions, filter_rows

    conditions = Conditions(**options)
    done = filter_rows(shards, out, conditions, shard_size=shard_size, overwrite=overwrite, progress=True)
    click.echo("\n".join(derived_lines(done)))
