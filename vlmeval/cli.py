"""The command line of vlmeval: one command for every evaluation task, and those that are none."""

from __future__ import annotations

import click

from vlmdata import __version__
from vlmdata.command import ErrorGroup
from vlmeval import task as tasks
from vlmeval.commands.compare import compare
from vlmeval.commands.generate import generate
from vlmeval.commands.task import task_command

__all__ = ["main"]


class _Commands(ErrorGroup):
    """The commands of a plain group, and one for every task found."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *tasks.names()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in tasks.names():
            return task_command(cmd_name)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vlmeval")
def main() -> None:
    """Score vision-language models and compare the scores."""


_COMMANDS = (compare, generate)

for command in _COMMANDS:
    main.add_command(command)
