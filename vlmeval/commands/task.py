"""The command of an evaluation task: what all of them take, and its own options."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from vlmdata.errors import ConfigError, VlmError
from vlmeval import ranks, store
from vlmeval import task as tasks
from vlmeval.commands.limits import Limits, limit_options
from vlmeval.commands.pairs import pairs
from vlmeval.opening import ANSWERS, KEYS, keys_help
from vlmeval.task import Task

__all__ = ["Sections", "section", "task_command"]

_FOLDER = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)
_HEADING = "vlmeval_heading"
_ASKED, _WHO, _HOW, _WRITTEN = "What is asked", "Who answers", "How it runs", "What is written"


class Sections(click.Command):
    """A command whose help shows its options under headings; see :func:`section`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        headed: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            shown = parameter.get_help_record(ctx)
            if shown is not None:
                headed.setdefault(getattr(parameter, _HEADING, "Other"), []).append(shown)
        for heading, rows in headed.items():
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=24)


def section(heading: str, *options: click.Option) -> list[click.Parameter]:
    """Options that the help shows under one heading."""
    for option in options:
        setattr(option, _HEADING, heading)
    return list(options)


def task_command(name: str) -> click.Command:
    """A task's command: what every task takes, and the task's own options."""
    task = tasks.load(name)

    def run(**options: Any) -> None:
        _run(task, name, options)

    own = [
        click.Option(
            [f"--{option.name}"],
            type=click.Choice(option.choices) if option.choices else str,
            default=option.default,
            show_default=option.default is not None,
            help=option.help,
        )
        for option in task.options
    ]
    text = (
        f"{task.summary}\n\nAsks a model (--model, --adapter, --endpoint) or scores a file of answers (--responses). "
        "Several --adapter, or one with --with-base, are evaluated with their base in one load, each in a folder of "
        "its own below --out, and compared."
    )
    params = [*section(_ASKED, *_asked(task), *own), *_shared(task)]
    return Sections(name, callback=run, params=params, help=text, short_help=task.summary)


def _run(task: Task, name: str, options: dict[str, Any]) -> None:
    """Evaluate, print, and end with status 1 where a limit is not kept."""
    adapters = options.pop("adapter")
    with_base = options.pop("with_base")
    limits = Limits.taken(options)
    several = with_base or len(adapters) > 1
    limits.check(task, several=several, replace=options["overwrite"] or options["resume"])
    options["sets"] = _sets(options)
    options["command"] = _command()
    try:
        if several:
            _several(task, name, adapters, options, limits)
            return
        from vlmeval.run import evaluate

        report = evaluate(name, adapter=adapters[0] if adapters else None, **options)
    except KeyboardInterrupt:
        _interrupted(options)
    except VlmError as error:
        # One of several processes speaks for all that have this error.
        if ranks.speaks(str(error)):
            raise
        sys.exit(2)
    if not ranks.is_first():
        return
    from vlmeval.report import terminal

    click.echo(terminal(report), nl=False)
    if report["headline"]:
        click.echo(f"vlmeval: {report['headline']}", err=True)
    if options["out"]:
        click.echo(f"Report: {options['out'] / 'report.html'}")
    limits.end({"": report}, task)


def _sets(options: dict[str, Any]) -> dict[str, str]:
    """Take ``--set`` and the flags that stand for its keys out of the options, as one.

    Raises:
        ConfigError: a text is not ``KEY=VALUE``, or a key is given twice.
    """
    found = pairs(options.pop("set"))
    for name, key in KEYS.items():
        value = options.pop(name, None) if key.flag else None
        if value is None:
            continue
        if name in found:
            raise ConfigError(
                f"{key.flag} {value} and --set {name}={found[name]} are the same option: give one of them"
            )
        found[name] = value
    return found


def _several(task: Task, name: str, adapters: Sequence[str], options: dict[str, Any], limits: Limits) -> None:
    """Evaluate the adapters and their base; compare them."""
    from vlmeval.several import PAGE, evaluate_several

    reports = evaluate_several(name, adapters=adapters, **options)
    if not ranks.is_first():
        return
    from vlmeval.compare import compare
    from vlmeval.compare_report import terminal, write

    out = options["out"]
    comparison = compare([out / folder for folder in reports], names=list(reports))
    write(comparison, {"html": out / PAGE, "markdown": None, "json": None}, None)
    click.echo(terminal(comparison), nl=False)
    click.echo(f"Reports: {', '.join(str(out / folder / 'report.html') for folder in reports)}")
    click.echo(f"Comparison: {out / PAGE}")
    base = next(iter(reports))
    limits.end({folder: report for folder, report in reports.items() if folder != base}, task)


def _interrupted(options: dict[str, Any]) -> NoReturn:
    """Say what is kept, and end as the shell expects of an interrupted command."""
    if ranks.is_first():
        out = options["out"]
        begun = out is not None and any(True for _ in [*out.glob(store.SETUP), *out.glob(f"*/{store.SETUP}")])
        kept = f"what was answered is in {out}: the same command with --resume goes on"
        click.echo(f"vlmeval: interrupted; {kept if begun else 'nothing was asked yet'}", err=True)
    sys.exit(130)


def _command() -> str | None:
    """The command line, without the credentials an address may hold."""
    arguments = click.get_current_context().find_root().meta.get("vlmeval.arguments")
    if arguments is None:
        return None
    return "vlmeval " + shlex.join(re.sub(r"(?<=://)[^/@\s]*@", "", argument) for argument in arguments)


def _asked(task: Task) -> list[click.Option]:
    optional = "  [default: the official data, fetched once]" if task.fetch is not None else ""
    options = [
        click.Option(["--data"], type=_FOLDER, required=task.fetch is None, help=f"The task's data folder.{optional}"),
        click.Option(["--responses"], type=_FILE, help='Ask no model, score {"id": ..., "response": ...} of this.'),
        click.Option(["--limit"], type=int, help="Ask only N items, drawn evenly; the result is partial."),
        click.Option(["--prompt-suffix"], default="", help="Added to every prompt after a line break."),
    ]
    if task.images:
        options[1:1] = [
            click.Option(["--images"], type=_FOLDER, help="Image folder.  [default: images in the data folder]")
        ]
        options.append(
            click.Option(
                ["--on-missing"],
                type=click.Choice(["fail", "skip"]),
                default="fail",
                show_default=True,
                help="Images missing or unreadable: refuse to begin, or do not ask what shows them.",
            )
        )
    return options


def _shared(task: Task) -> list[click.Parameter]:
    dtypes, bits = ["auto", "float32", "bfloat16", "float16"], ["none", "8bit", "4bit"]
    who = section(
        _WHO,
        click.Option(["--model"], help="Base model: a folder or a hub id; left out, the adapter's own."),
        click.Option(["--adapter"], multiple=True, type=_FOLDER, help="A run folder or PEFT adapter; may be repeated."),
        click.Option(["--with-base"], is_flag=True, help="Evaluate the base as well, in the same load."),
        click.Option(["--merged"], is_flag=True, help="Merge the adapter into its base before asking."),
        click.Option(["--endpoint"], metavar="URL", help="Ask --model at this OpenAI-compatible server."),
        click.Option(["--dtype"], type=click.Choice(dtypes), default="auto", show_default=True, help="Of the weights."),
        click.Option(
            ["--quantize"], type=click.Choice(bits), default="none", show_default=True, help="Base in fewer bits."
        ),
        click.Option(["--device"], help="cpu, cuda, cuda:1 ...; left out, the accelerator where there is one."),
        click.Option(["--trust-remote-code"], is_flag=True, help="Run code that comes with a hub model."),
    )
    read = click.Option(
        ["--answers"],
        type=click.Choice(ANSWERS),
        default="generate",
        show_default=True,
        help="In words; by the probabilities of the answers' first tokens; or words with these beside.",
    )
    how = section(
        _HOW,
        *([read] if task.choices else []),
        click.Option(["--batch-size"], type=int, default=8, show_default=True, help="Prompts per call."),
        click.Option(["--max-new-tokens"], type=int, default=256, show_default=True, help="Longest text, in tokens."),
        click.Option(
            ["--max-answer-tokens"], type=int, default=16, show_default=True, help="Longest short answer, in tokens."
        ),
        click.Option(["--max-image-tokens"], type=int, help="Most tokens one image may take."),
        click.Option(
            ["--verify-prefix"],
            metavar="N",
            help="Answer N questions again without sharing their images' prefix, and report every difference.",
        ),
        click.Option(["--set"], multiple=True, metavar="KEY=VALUE", help=f"May be repeated. {keys_help()}"),
    )
    written = section(
        _WRITTEN,
        click.Option(["--out"], type=_FOLDER, help="Evaluation folder to write; optional with --responses."),
        click.Option(["--resume"], is_flag=True, help="Go on with an interrupted evaluation; ask nothing twice."),
        click.Option(["--overwrite"], is_flag=True, help="Replace an evaluation in --out."),
        *limit_options(),
    )
    return [*who, *how, *written]
