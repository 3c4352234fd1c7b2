"""``vlmeval``: one command per task, and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlmdata import __version__
from vlmdata.command import ErrorGroup
from vlmeval import task as tasks

__all__ = ["compare", "generate", "main"]


class _Commands(ErrorGroup):
    """The commands of a plain group, and one for every task found."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *tasks.names()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in tasks.names():
            return _task_command(cmd_name)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vlmeval")
def main() -> None:
    """Score vision-language models and compare the scores."""


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN [RUN]...")
@click.option("--name", "names", multiple=True, help="Name of a run, once for each in order.  [default: folder names]")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page here.")
@click.option("--markdown", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write Markdown here.")
@click.option("--json", "json_", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures and flips.")
@click.option("--images", type=click.Path(path_type=Path), help="Image folder for --html.  [default: as recorded]")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def compare(
    runs: tuple[Path, ...],
    names: tuple[str, ...],
    html: Path | None,
    markdown: Path | None,
    json_: Path | None,
    images: Path | None,
    overwrite: bool,
) -> None:
    """Compare evaluation folders: figures with intervals, paired tests, answers that flipped."""
    from vlmeval.compare import compare as compared
    from vlmeval.compare_report import check, terminal, write

    files = {"html": html, "markdown": markdown, "json": json_}
    check(files, images, overwrite=overwrite)
    comparison = compared(runs, names=names)
    write(comparison, files, images)
    click.echo(terminal(comparison), nl=False)
    for path in files.values():
        if path is not None:
            click.echo(f"Wrote {path}")


@main.command()
@click.option("--model", help="Base model: a folder or a hub id; left out, the adapter's own.")
@click.option("--adapter", type=click.Path(path_type=Path), help="A run folder of vlmtrain, or any PEFT adapter.")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="Picture; may be repeated.")
@click.option("--prompt", "prompts", multiple=True, help="What to ask; again for the next turn. None: a caption.")
@click.option("--chat", "interactive", is_flag=True, help="Go on asking from the keyboard; an empty line ends it.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON object in the answer only; status 1 if none.")
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Share of probability that is drawn from.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Tokens that are drawn from; 0 is all.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Least share of the likeliest token's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--quantize", default="none", show_default=True, help="Base in fewer bits: none, 8bit, 4bit.")
@click.option("--device", help="cpu, cuda, cuda:1 ...; left out, the accelerator where there is one.")
@click.option("--max-image-tokens", type=int, help="Most tokens one image may take.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a hub model.")
def generate(**options: Any) -> None:
    """Ask a model about pictures; earlier turns are context of the later ones.

    \b
    Examples:
      vlmeval generate --adapter runs/football --image player.jpg
      vlmeval generate --adapter runs/plates --image plate.jpg --json \\
        --prompt "Extract serial, engine number and model as JSON."
      vlmeval generate --model llava-hf/llava-1.5-7b-hf --image cat.jpg --chat
    """  # noqa: D301
    from vlmeval.generate_command import run

    run(**options)


def _task_command(name: str) -> click.Command:
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
