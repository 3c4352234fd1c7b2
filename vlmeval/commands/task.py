"""The command of an evaluation task: what all of them take, and its own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlmeval import task as tasks

__all__ = ["task_command"]


def task_command(name: str) -> click.Command:
    """A task's command: what every task takes, and the task's own options."""
    task = tasks.load(name)

    def run(**options: Any) -> None:
        from vlmeval.report import terminal
        from vlmeval.run import evaluate

        report = evaluate(name, **options)
        click.echo(terminal(report), nl=False)
        if report["headline"]:
            click.echo(f"vlmeval: {report['headline']}", err=True)
        if options["out"]:
            click.echo(f"Report: {options['out'] / 'report.html'}")

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
    text = f"{task.summary}\n\nAsks a model (--model, --adapter) or scores a file of answers (--responses)."
    return click.Command(name, callback=run, params=[*_shared(), *own], help=text, short_help=task.summary)


def _shared() -> list[click.Parameter]:
    folder, file = click.Path(path_type=Path), click.Path(path_type=Path, dir_okay=False)
    return [
        click.Option(["--data"], type=folder, required=True, help="The task's data folder."),
        click.Option(["--out"], type=folder, help="Evaluation folder to write; optional with --responses."),
        click.Option(["--responses"], type=file, help='Score this file of {"id": ..., "response": ...}; ask no model.'),
        click.Option(["--model"], help="Base model: a folder or a hub id; left out, the adapter's own."),
        click.Option(["--adapter"], type=folder, help="A run folder of vlmtrain, or any PEFT adapter."),
        click.Option(["--images"], type=folder, help="Image folder.  [default: images in the data folder]"),
        click.Option(["--limit"], type=int, help="Ask only N items, drawn evenly; the result is partial."),
        click.Option(["--batch-size"], type=int, default=8, show_default=True, help="Prompts per call."),
        click.Option(["--max-new-tokens"], type=int, default=256, show_default=True, help="Longest text, in tokens."),
        click.Option(
            ["--max-answer-tokens"], type=int, default=16, show_default=True, help="Longest short answer, in tokens."
        ),
        click.Option(["--prompt-suffix"], default="", help="Added to every prompt after a line break."),
        click.Option(
            ["--dtype"],
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="Type of the weights.",
        ),
        click.Option(
            ["--quantize"],
            type=click.Choice(["none", "8bit", "4bit"]),
            default="none",
            show_default=True,
            help="Load the base in fewer bits.",
        ),
        click.Option(["--device"], help="cpu, cuda, cuda:1 ...; left out, the accelerator where there is one."),
        click.Option(["--max-image-tokens"], type=int, help="Most tokens one image may take."),
        click.Option(["--trust-remote-code"], is_flag=True, help="Run code that comes with a hub model."),
        click.Option(["--resume"], is_flag=True, help="Go on with an interrupted evaluation; ask nothing twice."),
        click.Option(["--overwrite"], is_flag=True, help="Replace an evaluation in --out."),
    ]
