"""The command line of vlmtrain."""

from __future__ import annotations

import click

from vlmdata import __version__
from vlmdata.command import ErrorGroup
from vlmtrain.commands.classify import classify
from vlmtrain.commands.dpo import dpo
from vlmtrain.commands.keys import keys
from vlmtrain.commands.kto import kto
from vlmtrain.commands.launch import launch
from vlmtrain.commands.merge import merge
from vlmtrain.commands.plan import plan
from vlmtrain.commands.push import push
from vlmtrain.commands.recipes import recipes
from vlmtrain.commands.sft import sft

__all__ = ["main"]

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group("vlmtrain", cls=ErrorGroup, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="vlmtrain")
def main() -> None:
    """Fine-tune vision-language models and image classifiers."""


_COMMANDS = (recipes, keys, plan, sft, dpo, kto, classify, merge, push, launch)

for command in _COMMANDS:
    main.add_command(command)
