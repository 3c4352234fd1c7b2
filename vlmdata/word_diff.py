"""Which words of two texts differ."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

__all__ = ["word_diff"]

Piece = tuple[str, bool]

_TOKEN = re.compile(r"\s+|\w+|[^\w\s]")
_LONGEST = 2000


def word_diff(left: str, right: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces of (text, differs); the pieces joined are the text.

    Spaces between two differing words are marked with them. Texts of more than 2,000 words are compared only at
    their common beginning and end, as the comparison takes the square of the length.
    """
    a, b = _TOKEN.findall(left), _TOKEN.findall(right)
    if max(len(a), len(b)) > 2 * _LONGEST:
        return _ends(a, b)
    same_a, same_b = [False] * len(a), [False] * len(b)
    for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        for index in range(block.size):
            same_a[block.a + index] = same_b[block.b + index] = True
    return _pieces(a, same_a), _pieces(b, same_b)


def _pieces(tokens: list[str], same: list[bool]) -> list[Piece]:
    """Neighbours of one kind joined; a lone space takes the side of what surrounds it."""
    for index in range(1, len(tokens) - 1):
        if tokens[index].isspace() and not same[index - 1] and not same[index + 1]:
            same[index] = False
    for index, token in enumerate(tokens):
        beside = same[max(index - 1, 0) : index] + same[index + 1 : index + 2]
        if token.isspace() and not same[index] and any(beside):
            same[index] = True
    pieces: list[Piece] = []
    for token, equal in zip(tokens, same, strict=True):
        if pieces and pieces[-1][1] != equal:
            pieces[-1] = (pieces[-1][0] + token, not equal)
        else:
            pieces.append((token, not equal))
    return pieces


def _ends(a: list[str], b: list[str]) -> tuple[list[Piece], list[Piece]]:
    shortest = min(len(a), len(b))
    head = next((index for index in range(shortest) if a[index] != b[index]), shortest)
    rest = shortest - head
    tail = next((index for index in range(rest) if a[-1 - index] != b[-1 - index]), rest)

    def cut(tokens: list[str]) -> list[Piece]:
        stop = len(tokens) - tail
        parts = [("".join(tokens[:head]), False), ("".join(tokens[head:stop]), True), ("".join(tokens[stop:]), False)]
        return [piece for piece in parts if piece[0]]

    return cut(a), cut(b)
