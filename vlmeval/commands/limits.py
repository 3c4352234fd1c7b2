"""Limits of figures and files for other programs: what the commands that make reports share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlmdata.errors import ConfigError, OutputExistsError
from vlmeval.task import Task

if TYPE_CHECKING:
    from vlmeval.gates import Limit

__all__ = ["Limits", "limit_options"]

_FILE = click.Path(path_type=Path, dir_okay=False)


def limit_options() -> list[click.Option]:
    """``--fail-under``, ``--fail-over``, ``--junit``, ``--csv``."""
    said = "status 1 where the figure is"
    return [
        click.Option(
            ["--fail-under"], multiple=True, metavar="NAME=VALUE", help=f"f1=0.9, existence.f1=85: {said} less."
        ),
        click.Option(
            ["--fail-over"],
            multiple=True,
            metavar="NAME=VALUE",
            help=f"hal=30: {said} more. Both repeat; up to 1 is a fraction.",
        ),
        click.Option(["--junit"], type=_FILE, help="Write limits and headline figures as JUnit XML here."),
        click.Option(["--csv"], type=_FILE, help="Write all figures as CSV here."),
    ]


@dataclass(frozen=True, slots=True)
class Limits:
    """What these options were given."""

    under: list[Limit]
    over: list[Limit]
    junit: Path | None
    csv: Path | None

    @staticmethod
    def taken(options: dict[str, Any]) -> Limits:
        """Take the options out of all that were given.

        Raises:
            ConfigError: a limit is not understood.
        """
        from vlmeval.gates import parse

        under, over = parse(options.pop("fail_under")), parse(options.pop("fail_over"))
        return Limits(under, over, options.pop("junit"), options.pop("csv"))

    def check(self, task: Task, *, several: bool, replace: bool) -> None:
        """Refuse limits on what the task does not have and files that cannot be, before anything is asked.

        Raises:
            ConfigError: an unknown figure, or a file of several evaluations, or a folder that is not there.
            OutputExistsError: a file is there, and may not be replaced.
        """
        from vlmeval.gates import check

        check(task, [*self.under, *self.over])
        for flag, path in (("--junit", self.junit), ("--csv", self.csv)):
            if path is None:
                continue
            if several:
                raise ConfigError(f"{flag} {path} is a file of one evaluation: make it with vlmeval score RUN {flag}")
            if not path.absolute().parent.is_dir():
                raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")
            if path.exists() and not replace:
                raise OutputExistsError(f"{flag} {path} exists: give another, or replace it with --overwrite")

    def end(self, reports: Mapping[str, Mapping[str, Any]], task: Task) -> None:
        """Write the files; say which limits are not kept, and end with status 1 if any is not.

        Args:
            reports: name to report; the name stands before a failure where there is one.
            task: whose reports they are.
        """
        from vlmeval import exports, gates, store

        for report in reports.values():
            for path, write in ((self.junit, exports.junit), (self.csv, exports.csv)):
                if path is not None:
                    more = (self.under, self.over) if path is self.junit else ()
                    with store.writing(path):
                        store.write(path, write(report, *more, task=task))
                    click.echo(f"Wrote {path}")
        found = [
            f"{name}: {failure.reason}" if name else failure.reason
            for name, report in reports.items()
            for failure in gates.failed(report, self.under, self.over, task=task)
        ]
        for line in found:
            click.echo(f"vlmeval: limit not kept: {line}", err=True)
        if found:
            sys.exit(1)
