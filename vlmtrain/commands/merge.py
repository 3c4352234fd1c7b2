"""``vlmtrain merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["merge"]

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_FOLDER)
@click.option("--out", required=True, type=_FOLDER, help="Model folder to write.")
@click.option("--model", help="Base, where the adapter does not name it.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--shard-size", default="5GB", show_default=True, help="Most bytes of one file of weights.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Upload the model there.")
@click.option("--hub-private", is_flag=True, help="A repository that is made is private.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model.")
def merge(run: Path, **options: Any) -> None:
    """Merge the adapter RUN into its base: a plain model folder.

    \b
    Examples:
      vlmtrain merge runs/plates --out models/plates --dtype bfloat16
      vllm serve models/plates
    """  # noqa: D301
    from vlmtrain.merge import merge as run_merge

    click.echo(f"{run_merge(run, **options)}: merged model, loads without peft")
