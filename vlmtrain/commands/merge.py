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
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model.")
def merge(run: Path, **options: Any) -> None:
    """Merge the adapter RUN into its base: a plain model folder.

    \b
    Example:
      vlmtrain merge runs/plates --out models/plates --dtype bfloat16
    """  # noqa: D301
    from vlmtrain.merge import merge as run_merge

    click.echo(f"{run_merge(run, **options)}: merged model, loads without peft")
