"""Items as conversations, and the names of several models' folders. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmeval.task import Item

__all__ = ["folder_names", "turns_of"]


def turns_of(item: Item, suffix: str = "") -> list[Mapping[str, Any]]:
    """What a model is told, in shard form: the item's own turns, or its images and its prompt.

    Args:
        item: what is asked.
        suffix: added to the last turn after a line break.
    """
    if item.turns:
        last = item.turns[-1]
        more = [{"type": "text", "text": f"\n{suffix}"}] if suffix else []
        return [*item.turns[:-1], {**last, "content": [*last["content"], *more]}]
    text = f"{item.prompt}\n{suffix}" if suffix else item.prompt
    pictures: list[dict[str, Any]] = [{"type": "image", "text": None} for _ in item.images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def folder_names(adapters: Sequence[str | Path], taken: Sequence[str] = ()) -> list[str]:
    """A name for each adapter that no other has: the end of its path, as much of it as is needed.

    Args:
        adapters: folders or hub ids.
        taken: names that are somebody else's.

    Raises:
        ConfigError: an adapter is given twice.
    """
    paths = [Path(adapter).expanduser() for adapter in adapters]
    parts = [(path.resolve() if path.exists() else path).parts for path in paths]
    for place, own in enumerate(parts):
        if own in parts[:place]:
            raise ConfigError(f"--adapter {adapters[place]} is given twice")
    depths = [1] * len(parts)
    while True:
        names = ["-".join(part.strip("/\\") for part in own[-depth:]) for own, depth in zip(parts, depths, strict=True)]
        unclear = [place for place, name in enumerate(names) if names.count(name) > 1 or name in taken]
        if not unclear:
            return names
        if all(depths[place] >= len(parts[place]) for place in unclear):
            return [f"{name}-{place}" for place, name in enumerate(names, 1)]
        for place in unclear:
            depths[place] += 1
