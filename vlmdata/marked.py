r"""Contents as one string with marks for the images, and back without loss.

Several tools take a turn as one string in which ``<image>`` stands for the next image. Two things get lost on that
way, and are kept here:

- A text that holds a mark itself would be read as an image. Escaped, a zero-width joiner (U+200D) stands behind the
  first character of such a mark: ``<\u200dimage>``. What already looks like an escaped mark gets one more joiner, so
  unescaping, which takes one away, gives every text back.
- Where one text part ends and the next begins, and empty parts. A layout says it: ``-1`` for an image, else the
  number of characters of a text part, before escaping. It is only needed where reading the string gives other parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from vlmdata.marks import MARK

__all__ = ["IMAGE_PLACE", "JOINER", "escape", "find_mark", "join", "layout", "split", "text_runs", "unescape"]

JOINER = "\u200d"
IMAGE_PLACE = -1

Part = Mapping[str, Any]


def find_mark(value: str, marks: Sequence[str]) -> str | None:
    """The first of the marks that a text holds, if it holds one."""
    return next((mark for mark in marks if mark in value), None)


def escape(value: str, marks: Sequence[str]) -> str:
    """A text without the marks; ``unescape`` gives it back."""
    return _pattern(tuple(marks)).sub(lambda found: found[0][0] + JOINER + found[0][1:], value)


def unescape(value: str, marks: Sequence[str]) -> str:
    """The text that ``escape`` was given."""
    return _pattern(tuple(marks)).sub(lambda found: found[0].replace(JOINER, "", 1), value)


def join(content: Iterable[Part], escaped: Sequence[str] = ()) -> str:
    """The parts of a turn as one string.

    Args:
        content: parts ``{type, text}``.
        escaped: marks to escape in texts; the seam of two text parts counts as text.
    """
    return MARK.join(escape(run, escaped) if escaped else run for run in text_runs(content))


def text_runs(content: Iterable[Part]) -> list[str]:
    """The texts of a turn before, between and behind its images; one more than there are images."""
    runs = [""]
    for part in content:
        if part["type"] == "image":
            runs.append("")
        else:
            runs[-1] += part["text"]
    return runs


def layout(content: Sequence[Part]) -> list[int] | None:
    """The parts that a string cannot tell; None where ``split`` finds them without."""
    lengths = [IMAGE_PLACE if part["type"] == "image" else len(part["text"]) for part in content]
    plain = 0 not in lengths and all(IMAGE_PLACE in pair for pair in zip(lengths, lengths[1:], strict=False))
    return None if plain else lengths


def split(value: str, escaped: Sequence[str] = (), lengths: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """The parts that ``join`` was given.

    Args:
        value: the string.
        escaped: the marks that were escaped.
        lengths: what ``layout`` said.
    """
    runs = [unescape(run, escaped) if escaped else run for run in value.split(MARK)]
    if lengths is None:
        lengths = []
        for index, run in enumerate(runs):
            lengths += ([IMAGE_PLACE] if index else []) + ([len(run)] if run else [])
    parts: list[dict[str, Any]] = []
    place, at = 0, 0
    for length in lengths:
        if length == IMAGE_PLACE:
            parts.append({"type": "image", "text": None})
            place, at = place + 1, 0
        else:
            parts.append({"type": "text", "text": runs[place][at : at + length]})
            at += length
    return parts


@lru_cache
def _pattern(marks: tuple[str, ...]) -> re.Pattern[str]:
    """The marks, with any number of joiners behind their first character."""
    return re.compile("|".join(f"{re.escape(mark[0])}{JOINER}*{re.escape(mark[1:])}" for mark in marks))
