"""What ``vlmeval generate`` prints: answers on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vlmdata.errors import ConfigError, OutputExistsError
from vlmeval import generate_record
from vlmeval.generate import Conversation, Reply, Sampling, asked
from vlmeval.generate_view import Columns, Lines, Objects, Plain, View
from vlmeval.models.local import several

__all__ = ["run"]

_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "sample")
_WIDE = 100


def run(
    *,
    model: str | None,
    adapter: tuple[Path, ...],
    with_base: bool,
    images: tuple[Path, ...],
    prompts: tuple[str, ...],
    interactive: bool,
    as_json: bool,
    out: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Answer, and end with status 1 where JSON was wanted and none was given.

    Raises:
        VlmError: the model cannot be loaded, an image is missing, a number cannot be.
    """
    sampling = Sampling(**{name: options.pop(name) for name in _SAMPLING})
    if interactive and as_json:
        raise ConfigError("--chat and --json exclude each other")
    if with_base and not adapter:
        raise ConfigError("--with-base puts the base beside its adapters: give --adapter")
    if out is not None:
        generate_record.check(out)
        if out.exists() and not overwrite:
            raise OutputExistsError(f"{out} is there already: --overwrite replaces it")
    turns = asked(images, _typed(prompts) if interactive else list(prompts))
    limits = {"text": sampling.max_new_tokens}
    common = {"images": None, "batch_size": 1, "max_new_tokens": limits, **options}
    found = several(model, adapter, with_base or not adapter, **common)
    names = [name for name, _ in found]
    conversations = [Conversation(local, images, sampling) for _, local in found]
    view, said, complete = _view(names, sampling.sample, as_json), [], True
    for prompt in turns:
        replies: list[list[Reply]] = []
        with view.turn():
            for place, conversation in enumerate(conversations):
                replies.append(conversation.ask(prompt, view.stream(place)))
                view.show(place, replies[-1])
        for name, own in zip(names, replies, strict=True):
            for reply in own:
                click.echo(_figures(name if len(names) > 1 else "", reply), err=True)
                complete = complete and reply.json is not None
        said.append((prompt, replies))
    if out is not None:
        models = [(name, local.describe()) for name, local in found]
        generate_record.write(out, models, [str(image) for image in images], sampling, said)
        click.echo(f"Record: {out}", err=True)
    if as_json and not complete:
        click.echo("vlmeval: no JSON object in an answer", err=True)
        sys.exit(1)


def _view(names: list[str], sample: int, as_json: bool) -> View:
    """How answers are shown here: in columns where there is room for them."""
    if as_json:
        return Objects(names, sample)
    live = sys.stdout.isatty()
    if len(names) * sample == 1:
        return Plain(live)
    if live and len(names) > 1 and _width() >= _WIDE:
        return Columns(names, sample)
    return Lines(names, sample, live)


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _typed(prompts: tuple[str, ...]) -> Iterator[str]:
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


def _figures(name: str, reply: Reply) -> str:
    pace = f", {reply.tokens / reply.seconds:.0f} tokens/s" if reply.seconds > 0 else ""
    return f"{name + ': ' if name else ''}{reply.tokens} tokens in {reply.seconds:.2f} s{pace}"
