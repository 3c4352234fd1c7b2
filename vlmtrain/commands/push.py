"""``vlmtrain push``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["push"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="A repository that is made is private.")
def push(folder: Path, repo: str, private: bool) -> None:
    """Upload a finished run or a merged model to the Hugging Face hub.

    \b
    Example:
      vlmtrain push runs/plates my-org/plates-lora --private
    """  # noqa: D301
    from vlmtrain.hub import check_access, check_folder
    from vlmtrain.hub import push as upload

    check_folder(folder)
    check_access(repo)
    click.echo(upload(folder, repo, private=private))
