"""What ``vlmeval generate`` prints: answers on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vlmdata.errors import ConfigError
from vlmeval.generate import Reply, Sampling, chat
from vlmeval.models.local import Local

__all__ = ["run"]

_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "seed")


def run(
    *,
    model: str | None,
    adapter: Path | None,
    images: tuple[Path, ...],
    prompts: tuple[str, ...],
    interactive: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer, and end with status 1 where JSON was wanted and none was given.

    Raises:
        VlmError: the model cannot be loaded, an image is missing, a number cannot be.
    """
    sampling = Sampling(**{name: options.pop(name) for name in _SAMPLING})
    if interactive and as_json:
        raise ConfigError("--chat and --json exclude each other")
    local = Local(
        model, adapter, images=None, batch_size=1, max_new_tokens={"text": sampling.max_new_tokens}, **options
    )
    asked: Any = _asked(prompts) if interactive else list(prompts)
    live = sys.stdout.isatty() and not as_json
    found = True
    for reply in chat(local, images, asked, sampling, stream=_show if live else None):
        if as_json:
            found = found and reply.json is not None
            click.echo(json.dumps(reply.json, ensure_ascii=False) if reply.json is not None else reply.text)
        else:
            click.echo("" if live else reply.text)
        click.echo(_figures(reply), err=True)
    if not found:
        click.echo("vlmeval: no JSON object in an answer", err=True)
        sys.exit(1)


def _asked(prompts: tuple[str, ...]) -> Iterator[str]:
    """The prompts given, then what is typed; an empty line or the end of input ends it."""
    yield from prompts
    while True:
        try:
            line = click.prompt("", prompt_suffix="> ", default="", show_default=False, err=True)
        except click.Abort:
            return
        if not line.strip():
            return
        yield line


def _show(piece: str) -> None:
    """A piece of an answer, without characters that would steer the terminal."""
    marked = "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in piece)
    click.echo(marked, nl=False)


def _figures(reply: Reply) -> str:
    pace = f", {reply.tokens / reply.seconds:.0f} tokens/s" if reply.seconds > 0 else ""
    return f"{reply.tokens} tokens in {reply.seconds:.2f} s{pace}"
