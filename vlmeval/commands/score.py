"""``vlmeval score``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlmeval.commands.limits import Limits, limit_options

__all__ = ["score"]

_FOLDER = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Score evaluations again, without a model.")
@click.argument("runs", nargs=-1, required=True, type=_FOLDER, metavar="RUN...")
@click.option("--data", type=_FOLDER, help="Score with these data, though they changed.  [default: as recorded]")
@click.option("--images", type=_FOLDER, help="Image folder for the reports.  [default: as recorded]")
@click.option("--task", type=_FILE, help="File of your own task.  [default: as recorded]")
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help="Another value of an option of the task.")
def score(
    runs: tuple[Path, ...],
    data: Path | None,
    images: Path | None,
    task: Path | None,
    sets: tuple[str, ...],
    **options: Any,
) -> None:
    """Score evaluation folders again from their answers: no model, no GPU.

    An interrupted run is scored as far as it got. A folder that holds several evaluations stands for all of them.

    \b
    Examples:
      vlmeval score evals/dpo --fail-under f1=0.85 --junit scores.xml
      vlmeval score evals/dpo --set read-answers=none
    """  # noqa: D301
    from vlmeval import rescore
    from vlmeval.commands.pairs import pairs
    from vlmeval.report import terminal
    from vlmeval.task import recorded

    limits = Limits.taken(options)
    settings = pairs(sets)
    found = rescore.folders(runs)
    tasks = [rescore.task_of(run, task) for run in found]
    for one in tasks:
        limits.check(one, several=len(found) > 1, replace=True)
    reports = {}
    for run in found:
        report = reports[str(run)] = rescore.score(run, data=data, images=images, task=task, settings=settings)
        click.echo(terminal(report), nl=False)
        if report["headline"]:
            click.echo(f"vlmeval: {run}: {report['headline']}", err=True)
        click.echo(f"Report: {run / 'report.html'}")
    limits.end(reports if len(reports) > 1 else {"": report}, recorded(report, task))


score.params += limit_options()
