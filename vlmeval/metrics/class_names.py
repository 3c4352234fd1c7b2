"""Which class an answer names: a classifier's ranking, one name a line, or a sentence that holds one name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["ClassNames"]

_WORD = re.compile(r"\w+", re.UNICODE)


class ClassNames:
    """The classes of a dataset, found in answers.

    Names are compared word by word, in lower case, without accents, with ``_`` and punctuation as blanks:
    ``creme_brulee`` is found in "It's a Crème brûlée." A name inside a longer one that is there too does not count:
    "chocolate cake" is not "cake". An answer that names several classes names none, as in the exclusive word rule of
    yes/no answers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names in index order."""
        self.names = tuple(names)
        self._exact = {name: index for index, name in enumerate(names)}
        self._words: dict[tuple[str, ...], int] = {}
        for index, name in enumerate(names):
            if words := _words(name):
                self._words.setdefault(words, index)
        self._longest = max((len(words) for words in self._words), default=0)

    def ranking(self, answer: str | None) -> list[int]:
        """Class indices, the likeliest first, where every line of the answer is the name of a class; else none.

        One line is no ranking: it is an answer, see :meth:`said`.
        """
        lines = [line for line in (answer or "").splitlines() if line.strip()]
        found = [self._exact.get(line, self._words.get(_words(line))) for line in lines]
        ranked = [index for index in found if index is not None]
        return ranked if len(lines) > 1 and len(ranked) == len(lines) == len(set(ranked)) else []

    def said(self, answer: str | None) -> int | None:
        """The class an answer names: the first of a ranking, else the only one in the text; None where there is none.

        Args:
            answer: what was said.
        """
        ranked = self.ranking(answer)
        if ranked:
            return ranked[0]
        words = _words(answer or "")
        whole = self._exact.get(answer or "", self._words.get(words))
        if whole is not None:
            return whole
        found: list[tuple[int, int, int]] = []
        for start in range(len(words)):
            for stop in range(min(len(words), start + self._longest), start, -1):
                index = self._words.get(words[start:stop])
                if index is not None:
                    found.append((start, stop, index))
        classes = {index for start, stop, index in found if not _inside(start, stop, found)}
        return classes.pop() if len(classes) == 1 else None


def _inside(start: int, stop: int, found: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a longer name covers these words."""
    return any(a <= start and stop <= b and b - a > stop - start for a, b, _ in found)


def _words(text: str) -> tuple[str, ...]:
    plain = (mark for mark in unicodedata.normalize("NFKD", text) if not unicodedata.combining(mark))
    return tuple(_WORD.findall("".join(plain).replace("_", " ").casefold()))
