r"""The number a sentence comes to: "Therefore the final answer is $\frac{3}{4}\pi$ cm." is 2.356.

Answers to geometry come with units, degree signs, LaTeX and the reasoning before them, and so do the truths of
GeomVerse (https://arxiv.org/abs/2312.12241, in the_cauldron). Where the number is looked for, in this order: in the
last ``\boxed{}``; in what follows the last "answer is", "answer:" or "answer ="; in the whole text. There it is what
stands after the last ``=``, or else the first number ("answer is"), the last one (whole text).

A number is: digits with thousands' commas, a point, an exponent (``1.2e3``, ``1.2 \times 10^3``); a fraction (``3/4``,
``1 1/2``, ``\frac{3}{4}``); a root (``2\sqrt{3}``, ``√3``); a multiple of pi; products of these, and sums inside
brackets, behind ``=`` and in a box; or, in a text without digits, one of the words zero to twenty. Units, ``%`` and
degree signs are not looked at. Digits in a word ("x2") are none.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["percent", "read_number"]

_LONGEST = 8_000
_DEPTH = 20
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_NUMBER = r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?|(?<![\w.])\.\d+"
_TOKEN = re.compile(
    rf"(?P<number>(?:{_NUMBER})(?:[eE][-+]?\d+(?!\w))?)"
    r"|(?P<frac>\\[dt]?frac(?![a-z]))|(?P<sqrt>\\sqrt(?![a-z])|√|(?<![a-z])sqrt(?=\())|(?P<pi>\\pi(?![a-z])|π|\bpi\b)"
    r"|(?P<times>\\times(?![a-z])|\\cdot(?![a-z])|[*×·])|(?P<mark>[-+/^={}()])|(?P<blank>\s+)|(?P<other>\\?[^\W\d]+|.)",
    re.DOTALL,
)
_SILENT = re.compile(r"\\(?:left|right)(?![a-z])|\\[,;!: ]|\\[()\[\]]|[$~]|\^\s*\{?\s*\\circ\s*\}?|\\circ|°")
_PI_AFTER_DIGIT = re.compile(r"(?<=\d)(?=pi\b)")
_ANSWER = re.compile(r"answer\s*(?:is|:|=)", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)


class _Token(NamedTuple):
    kind: str
    text: str


class _UnreadableError(Exception):
    """What was begun as a number is none."""


def percent(text: str | None) -> bool:
    """Whether a text speaks of percent."""
    return "%" in (text or "")


@functools.lru_cache(maxsize=4096)
def read_number(text: str | None) -> float | None:
    """The number a text comes to; None where there is none, or it is none that can be reckoned.

    Of a text of more than 8,000 characters the end is read.
    """
    given = (text or "")[-_LONGEST:].replace("\N{MINUS SIGN}", "-")
    boxed = _boxed(given)
    after = list(_ANSWER.finditer(given))
    if boxed is not None:
        found = _numbers(boxed, sums=True)
        return found[-1] if found else None
    if after:
        sentence = _SENTENCE.split(given[after[-1].end() :].strip(), maxsplit=1)[0]
        if found := _numbers(sentence.rpartition("=")[2], sums="=" in sentence):
            return found[0]
    before, equals, last = given.rpartition("=")
    if equals and (found := _numbers(last, sums=True)):
        return found[0] if not _SENTENCE.search(last.strip().rstrip(".!?")) else _numbers(last)[-1]
    found = _numbers(before if equals else last)
    return found[-1] if found else None


def _boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{}``."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for place in range(begin - 1, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return text[begin:place]
    return text[begin:]


def _numbers(text: str, *, sums: bool = False) -> list[float]:
    """All numbers of a text, in order."""
    plain = _PI_AFTER_DIGIT.sub(" ", _SILENT.sub(" ", text))
    tokens = [_Token(str(match.lastgroup), match.group()) for match in _TOKEN.finditer(plain)]
    found = list(_Reader(tokens).all(sums))
    if not found and (words := _WORD.findall(text)):
        found = [float(_WORDS.index(word.lower())) for word in words]
    return found


class _Reader:
    """Reads numbers from tokens, by descent."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = [token for token in tokens if token.kind != "blank"]
        # A number right behind a letter's or digit's minus is the end of a range or name, not negative.
        self._signed = _signs(tokens)
        self._place = 0

    def all(self, sums: bool) -> Iterator[float]:
        while self._place < len(self._tokens):
            start = self._place
            try:
                value = self._sum(0) if sums else self._product(0)
            except _UnreadableError:
                self._place = start + 1
                continue
            except (ArithmeticError, ValueError):
                # 1/0 and the root of -1 are no numbers, and neither are their parts.
                continue
            if math.isfinite(value):
                yield value

    def _next(self) -> _Token:
        return self._tokens[self._place] if self._place < len(self._tokens) else _Token("end", "")

    def _take(self, *texts: str) -> bool:
        token = self._next()
        if token.text in texts and token.kind in ("mark", "times"):
            self._place += 1
            return True
        return False

    def _sum(self, depth: int) -> float:
        value = self._product(depth)
        while self._next().text in ("+", "-") and self._next().kind == "mark":
            before = self._place
            minus = self._next().text == "-"
            self._place += 1
            try:
                more = self._product(depth)
            except _UnreadableError:
                self._place = before
                break
            value = value - more if minus else value + more
        return value

    def _product(self, depth: int) -> float:
        value = self._power(depth)
        while True:
            before, token = self._place, self._next()
            divided = token == _Token("mark", "/")
            if divided or token.kind == "times":
                self._place += 1
            elif token.kind not in ("pi", "sqrt", "frac"):
                return value
            try:
                more = self._power(depth)
            except _UnreadableError:
                self._place = before
                return value
            value = value / more if divided else value * more

    def _power(self, depth: int) -> float:
        value = self._atom(depth)
        powers = [value]
        before = self._place
        while self._take("^"):
            try:
                powers.append(self._group(depth))
            except _UnreadableError:
                self._place = before
                break
            before = self._place
        value = powers.pop()
        while powers:
            value = math.pow(powers.pop(), value)
        return value

    def _atom(self, depth: int) -> float:
        token, place = self._next(), self._place
        if token.text in ("-", "+") and place in self._signed:
            self._place += 1
            value = self._atom(depth + 1 if depth < _DEPTH else _too_deep())
            return -value if token.text == "-" else value
        if token.kind == "number":
            self._place += 1
            return self._mixed(float(token.text.replace(",", "")), depth)
        if token.kind in ("pi", "sqrt", "frac"):
            self._place += 1
            if token.kind == "pi":
                return math.pi
            first = self._group(depth)
            return math.sqrt(first) if token.kind == "sqrt" else first / self._group(depth)
        if token.text in ("(", "{"):
            return self._group(depth)
        raise _UnreadableError

    def _mixed(self, whole: float, depth: int) -> float:
        r"""``1 1/2`` and ``1\frac{1}{2}`` are one and a half."""
        before = self._place
        if not whole.is_integer():
            return whole
        if self._next().kind == "frac":
            self._place += 1
            top, bottom = self._group(depth), self._group(depth)
            if top.is_integer() and bottom.is_integer() and 0 < top < bottom:
                return whole + top / bottom
        elif [token.kind for token in self._tokens[before : before + 3]] == ["number", "mark", "number"]:
            top, bottom = (float(self._tokens[before + place].text.replace(",", "")) for place in (0, 2))
            if self._tokens[before + 1].text == "/" and 0 < top < bottom:
                self._place += 3
                return whole + top / bottom
        self._place = before
        return whole

    def _group(self, depth: int) -> float:
        """What stands in brackets, or a bare number."""
        if depth > _DEPTH:
            _too_deep()
        if self._take("(", "{"):
            value = self._sum(depth + 1)
            if not self._take(")", "}"):
                raise _UnreadableError
            return value
        token = self._next()
        if token.kind == "number" or self._place in self._signed:
            minus = self._take("-")
            if self._next().kind == "number":
                self._place += 1
                value = float(self._tokens[self._place - 1].text.replace(",", ""))
                return -value if minus else value
        raise _UnreadableError


def _signs(tokens: Sequence[_Token]) -> set[int]:
    """Places (blanks not counted) of signs that belong to the number behind them."""
    found, place = set(), 0
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else _Token("blank", "")
        if token.text in ("-", "+") and (before.kind in ("blank", "times") or before.text in ("(", "{", "=", "/", "^")):
            if index + 1 < len(tokens) and tokens[index + 1].kind != "blank":
                found.add(place)
        place += token.kind != "blank"
    return found


def _too_deep() -> int:
    raise _UnreadableError
