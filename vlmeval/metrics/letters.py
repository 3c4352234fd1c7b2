"""Multiple choice: the options in a question, and the letter an answer chooses.

An answer is read by the first of these rules that finds a letter of an option:

1. it is a letter and nothing else ("B", "(b)", "B.");
2. what follows its last "answer is", "answer:", "option" or "choice" is a letter ("The correct answer is (B) a cat");
3. it starts with a letter and a mark ("B. a cat");
4. one letter stands in it ("I would say B"); several tell nothing;
5. it names the text of one option, as classes are read (``vlmeval.metrics.class_names``).

An "A" is a letter before a mark, the end, "or" and "and", an article elsewhere; so is "I". The rules are those of
VLMEvalKit's ``can_infer`` (https://github.com/open-compass/VLMEvalKit at e8e78f05) in spirit; deviations: no model is
asked where they find nothing, and a letter that is a word of a sentence does not count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vlmeval.metrics.class_names import ClassNames

__all__ = ["chosen", "options"]

_LETTERS = "ABCDEFGHIJ"
_LINE = re.compile(r"^[ \t]*\(?([A-J])[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_INLINE = re.compile(r"(?<!\w)\(?([A-J])[.):][ \t]*(\S.*?)(?=[\s,;]*(?<!\w)\(?[A-J][.):]\s|\n|$)")
_WHOLE = re.compile(r"\W*([A-Ja-j])\W*")
# "A" and "I" are words too.
_MARKED = r"(?:\(([A-Ja-j])\)|\b([A-J])(?=[.):,;*}]|\s*$)|\b([B-HJ]|A(?=\s+(?:or|and)\s))\b)"
_PHRASE = re.compile(
    rf"(?i:answer|option|choice)\s*(?i:is|:|=)?\s*(?i:option\s*)?[*\s\"'$]*(?:{_MARKED}|([a-j])(?=\W*$))"
)
_START = re.compile(r"\s*\(?([A-J])[.):]")
_MARK = re.compile(_MARKED)


def options(question: str) -> dict[str, str]:
    """The options of a question, letter to text: ``A. a cat`` on lines of their own, or ``(A) a cat (B) a dog``.

    They start with A and leave none out; else, or where there are fewer than two, the question has no options.
    """
    for pattern in (_LINE, _INLINE):
        found: dict[str, str] = {}
        for match in pattern.finditer(question):
            letter, text = match.groups()
            if letter == "A":
                found = {}
            if letter == _LETTERS[len(found) : len(found) + 1]:
                found[letter] = text.strip(" ,;")
        if len(found) > 1:
            return found
    return {}


def chosen(answer: str | None, among: Mapping[str, str]) -> str | None:
    """The letter an answer chooses; None where it chooses none, or several."""
    text = " ".join((answer or "").split())
    if (match := _WHOLE.fullmatch(text)) and match[1].upper() in among:
        return match[1].upper()
    phrases = [_letter(match) for match in _PHRASE.finditer(text)]
    if phrases and phrases[-1] in among:
        return phrases[-1]
    if (match := _START.match(text)) and match[1] in among:
        return match[1]
    marked = {_letter(match) for match in _MARK.finditer(text)} & among.keys()
    if marked:
        return marked.pop() if len(marked) == 1 else None
    named = ClassNames(list(among.values())).said(text)
    return None if named is None else list(among)[named]


def _letter(match: re.Match[str]) -> str:
    return next(letter for letter in match.groups() if letter).upper()
