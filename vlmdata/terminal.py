"""Texts of the data as they may stand on a terminal."""

from __future__ import annotations

__all__ = ["harmless"]


def harmless(text: str) -> str:
    """On one line, without characters that would steer the terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))
