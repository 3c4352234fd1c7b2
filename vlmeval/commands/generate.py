"""``vlmeval generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["generate"]


@click.command(short_help="Ask models about pictures, side by side.")
@click.option("--model", help="Base model: a folder or a hub id; left out, the adapter's own.")
@click.option(
    "--adapter", multiple=True, type=click.Path(path_type=Path), help="A run folder or PEFT adapter; may be repeated."
)
@click.option("--with-base", is_flag=True, help="The base without adapters answers, too.")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="Picture; may be repeated.")
@click.option("--prompt", "prompts", multiple=True, help="What to ask; again for the next turn. None: a caption.")
@click.option("--chat", "interactive", is_flag=True, help="Go on asking from the keyboard; an empty line ends it.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON object in the answer only; status 1 if none.")
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Share of probability that is drawn from.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Tokens that are drawn from; 0 is all.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Least share of the likeliest token's.")
@click.option("--repetition-penalty", type=float, help="Above 1, against repeating; left out, the model's own.")
@click.option("--sample", type=int, default=1, show_default=True, help="Answers to each prompt, each drawn anew.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--quantize", default="none", show_default=True, help="Base in fewer bits: none, 8bit, 4bit.")
@click.option("--device", help="cpu, cuda, cuda:1 ...; left out, the accelerator where there is one.")
@click.option("--max-image-tokens", type=int, help="Most tokens one image may take.")
@click.option("--out", type=click.Path(path_type=Path), help="Write what was asked and answered: FILE.md or FILE.json.")
@click.option("--overwrite", is_flag=True, help="Replace the file of --out.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a hub model.")
def generate(**options: Any) -> None:
    """Ask models about pictures; earlier turns are context of the later ones.

    Several adapters and their base answer side by side, in columns where the terminal has room for them. They share
    one base in memory where they can.

    \b
    Examples:
      vlmeval generate --adapter runs/dpo --with-base --image street.jpg
      vlmeval generate --adapter runs/football --image player.jpg
      vlmeval generate --adapter runs/plates --image plate.jpg --json \\
        --prompt "Extract serial, engine number and model as JSON."
      vlmeval generate --model llava-hf/llava-1.5-7b-hf --image cat.jpg --chat
    """  # noqa: D301
    from vlmeval.generate_command import run

    run(**options)
