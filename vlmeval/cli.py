"""The command line of vlmeval: one command for every evaluation task, and those that are none."""

from __future__ import annotations

import click

from vlmdata import __version__
from vlmdata.command import ErrorGroup
from vlmeval import task as tasks
from vlmeval.commands.compare import compare
from vlmeval.commands.fetch import fetch
from vlmeval.commands.generate import generate
from vlmeval.commands.noise import noise
from vlmeval.commands.score import score
from vlmeval.commands.synonyms import build_synonyms
from vlmeval.commands.task import task_command
from vlmeval.task_file import is_file

__all__ = ["main"]


class _Commands(ErrorGroup):
    """The commands of a plain group, one for every task found, and a user's own task by the path of its file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments for the record of a run."""
        ctx.meta["vlmeval.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *tasks.names()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in tasks.names() or is_file(cmd_name):
            return task_command(cmd_name)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vlmeval")
def main() -> None:
    """Score vision-language models and compare the scores.

    A task of your own is the path of its Python file: vlmeval ./mytask.py --help
    """


_COMMANDS = (build_synonyms, compare, fetch, generate, noise, score)

for command in _COMMANDS:
    main.add_command(command)
