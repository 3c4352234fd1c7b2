"""What was asked and answered, written to a file: Markdown for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError
from vlmeval import store
from vlmeval.generate import Reply, Sampling

__all__ = ["check", "write"]

Said = Sequence[tuple[str, Sequence[Sequence[Reply]]]]


def check(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is asked.

    Raises:
        ConfigError: neither Markdown nor JSON, or a folder.
        MissingError: its folder is not there.
    """
    if out.suffix not in (".md", ".json") or out.is_dir():
        raise ConfigError(f"--out {out}: expected a file that ends in .md or .json")
    if not out.parent.is_dir():
        raise MissingError(f"--out {out}: there is no folder {out.parent}")


def write(
    out: Path, models: Sequence[tuple[str, Mapping[str, Any]]], images: Sequence[str], sampling: Sampling, said: Said
) -> None:
    """Write the record, whole or not at all.

    Args:
        out: ends in .md or .json.
        models: names and what each model is.
        images: their files as they were given.
        sampling: how tokens were chosen.
        said: for each turn the prompt and the answers of each model.
    """
    if out.suffix == ".json":
        turns = [
            {
                "prompt": prompt,
                "answers": {
                    name: [dataclasses.asdict(reply) for reply in own]
                    for (name, _), own in zip(models, replies, strict=True)
                },
            }
            for prompt, replies in said
        ]
        described = {name: dict(about) for name, about in models}
        how = dataclasses.asdict(sampling)
        store.write_json(out, {"models": described, "images": list(images), "sampling": how, "turns": turns})
        return
    lines = ["# Answers", ""]
    for name, about in models:
        adapter = f", adapter {about['adapter']}" if about.get("adapter") else ""
        lines.append(f"- **{_cell(name)}**: {_cell(str(about['model']))}{_cell(adapter)}")
    lines += [f"- Images: {_cell(', '.join(images) or 'none')}", f"- Decoding: {_how(sampling)}", ""]
    for prompt, replies in said:
        lines += [f"## {_cell(prompt) or 'No prompt'}", "", f"| {' | '.join(_cell(name) for name, _ in models)} |"]
        lines.append("|" + " --- |" * len(models))
        for row in zip(*replies, strict=True):
            lines.append(f"| {' | '.join(_cell(reply.text) for reply in row)} |")
        figures = (f"{reply.tokens} tokens, {reply.seconds:.2f} s" for reply in (own[0] for own in replies))
        lines += [f"| {' | '.join(figures)} |", ""]
    store.write(out, "\n".join(lines))


def _how(sampling: Sampling) -> str:
    chosen = dataclasses.asdict(sampling)
    if not sampling.temperature:
        chosen = {key: chosen[key] for key in ("max_new_tokens", "repetition_penalty")}
        return "greedy, " + json.dumps(chosen).strip("{}").replace('"', "")
    return json.dumps(chosen).strip("{}").replace('"', "")


def _cell(text: str) -> str:
    """A text inside a Markdown table, as it is."""
    for sign in ("&", "<"):
        text = text.replace(sign, {"&": "&amp;", "<": "&lt;"}[sign])
    return "".join(f"\\{sign}" if sign in "\\|`*_[]" else sign for sign in text).replace("\n", "<br>")
