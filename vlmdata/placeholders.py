"""How trainers pair image places with images, as rules that a row can be checked by without the trainer.

TRL: ``prepare_multimodal_messages`` in trl/data_utils.py, version 1.16. A part of type ``image`` is a place when it
has no key ``image`` at all; turns of ``tool`` are passed over; places and images must be as many.
LLaMA-Factory: ``_validate_messages`` in src/llamafactory/data/mm_plugin.py at ff6d4d12e. Messages are strings there;
every ``<image>`` in them is a place, written on purpose or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlmdata.errors import ConfigError, choices
from vlmdata.marks import MARK
from vlmdata.records import ROLES

__all__ = ["RULES", "llamafactory_fault", "parse_rules", "trl_fault"]

Turns = Sequence[Mapping[str, Any]]


def trl_fault(messages: Turns, images: int) -> str | None:
    """What TRL would raise for these messages with so many images; None when it takes them.

    Args:
        messages: ``{role, content}``, content a text or a list of parts.
        images: how many images the row has.
    """
    places, first = 0, True
    for message in messages:
        role, content = message["role"], message.get("content")
        if role not in ROLES:
            return f"TRL knows no role {role!r}"
        if isinstance(content, str):
            if role == "user" and first:
                places, first = places + images, False
        elif content and role != "tool":
            places += sum(part["type"] == "image" and "image" not in part for part in content)
    return None if places == images else f"TRL counts {places} image places for {images} images"


def llamafactory_fault(messages: Turns, images: int) -> str | None:
    """What LLaMA-Factory would raise for these messages as strings with marks; None when it takes them.

    Args:
        messages: ``{role, content}``, content a text or a list of parts.
        images: how many images the row has.
    """
    marks = literal = 0
    for message in messages:
        content = message.get("content") or ()
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        marks += sum(part["type"] == "image" for part in parts)
        literal += sum((part.get("text") or "").count(MARK) for part in parts if part["type"] == "text")
    if marks + literal == images:
        return None
    why = f", {literal} of them literal in a text" if literal else ""
    return f"LLaMA-Factory counts {marks + literal} {MARK} marks{why} for {images} images"


RULES: dict[str, Callable[[Turns, int], str | None]] = {"trl": trl_fault, "llamafactory": llamafactory_fault}


def parse_rules(value: str) -> tuple[str, ...]:
    """Names of rules, as ``trl,llamafactory`` or ``none``.

    Raises:
        ConfigError: there is no such rule.
    """
    names = tuple(name.strip() for name in value.split(",")) if value != "none" else ()
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise ConfigError(f"no placeholder rule named {unknown[0]!r}; valid: {choices(RULES)}, or none")
    return names
