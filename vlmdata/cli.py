"""The command line of vlmdata."""

from __future__ import annotations

import click

from vlmdata import __version__
from vlmdata.command import ErrorGroup
from vlmdata.commands.convert import convert
from vlmdata.commands.dedup import dedup
from vlmdata.commands.export import export
from vlmdata.commands.filter import filter_command
from vlmdata.commands.finalize import finalize
from vlmdata.commands.mix import mix
from vlmdata.commands.preview import preview
from vlmdata.commands.sample import sample
from vlmdata.commands.sources import sources
from vlmdata.commands.split import split
from vlmdata.commands.stats import stats
from vlmdata.commands.validate import validate

__all__ = ["main"]

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group("vlmdata", cls=ErrorGroup, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="vlmdata")
def main() -> None:
    """Convert raw image-text data into checked shards for training."""


_COMMANDS = (sources, convert, finalize, validate, stats, preview, split, dedup, filter_command, mix, export, sample)

for command in _COMMANDS:
    main.add_command(command)
