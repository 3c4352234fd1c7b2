"""Which objects a caption names: every class by its name and synonyms, words that stand together taken together.

Names are looked up in lower case, the longest first, in singular and plural; a hyphen is a blank, so that "hot-dog" is
a hot dog and no dog. Nothing is tagged: as in the script of Rohrbach et al. 2018 (https://arxiv.org/abs/1809.02156,
https://github.com/LisaAnne/Hallucination, ``utils/chair.py`` at 585f2d9), "to train a dog" names a train.

Tables of names are text: a class a line, other names after it, commas between them, which is the form of that script's
``synonyms.txt``; lines with ``~`` say what words mean that stand together, see ``coco_objects.txt``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files

from vlmdata.errors import DataError
from vlmeval.metrics.nouns import plurals

__all__ = ["Names", "Objects", "packaged", "parse"]

_TOKEN = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_POSSESSIVE = re.compile(r"(?<=\w)['\N{RIGHT SINGLE QUOTATION MARK}]s?\b")
_SMALL = frozenset(
    "a an the and or nor but on in at of to by for from with without under over near behind beside between into onto"
    " is are was were has have had can that which who as while sits lies hangs stands".split()
)
_NONE = ""


@dataclass(frozen=True, slots=True)
class Names:
    """A table of names.

    Attributes:
        synonyms: class to its other names.
        phrases: words that stand together to their class; empty for none.
        before: (words, classes): directly before a name of one of the classes, such a word is no thing of its own.
        colours: names that count only where nothing but a small word follows.
    """

    synonyms: Mapping[str, Sequence[str]]
    phrases: Mapping[str, str] = field(default_factory=dict)
    before: Sequence[tuple[frozenset[str], frozenset[str]]] = ()
    colours: frozenset[str] = frozenset()


def parse(text: str, where: str) -> Names:
    """Read a table.

    Raises:
        DataError: a line is none, a class stands there twice, or no class does.
    """
    synonyms: dict[str, list[str]] = {}
    phrases: dict[str, str] = {}
    before: list[tuple[frozenset[str], frozenset[str]]] = []
    colours: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        plain = line.strip()
        if not plain or plain.startswith("#"):
            continue
        if plain.startswith("~"):
            rule = plain[1:].strip()
            if "=" in rule:
                phrase, _, name = rule.partition("=")
                phrases[_plain(phrase)] = _plain(name)
            elif "+" in rule:
                words, _, classes = rule.partition("+")
                before.append((frozenset(_listed(words)), frozenset(_listed(classes))))
            elif rule.endswith("-"):
                colours |= set(_listed(rule[:-1]))
            else:
                raise DataError(f"{where}, line {number}: expected '~ phrase = class' or the like, got {line!r:.60}")
            continue
        names = _listed(plain)
        if not names or names[0] in synonyms:
            raise DataError(
                f"{where}, line {number}: expected a class and its other names, each class once: {line!r:.60}"
            )
        synonyms[names[0]] = names[1:]
    if not synonyms:
        raise DataError(f"{where} names no classes; expected lines like: person, man, woman")
    return Names(synonyms, phrases, tuple(before), frozenset(colours))


@lru_cache(maxsize=1)
def packaged() -> Names:
    """The names of MSCOCO's 80 classes that are shipped."""
    text = files("vlmeval.metrics").joinpath("coco_objects.txt").read_text(encoding="utf-8")
    return parse(text, "coco_objects.txt")


class Objects:
    """Finds the objects of a set of classes in captions."""

    def __init__(self, classes: Iterable[str], names: Names | None = None) -> None:
        """Take the classes as the annotations call them.

        Args:
            classes: their names; a class that ``names`` does not have is found by its own name only.
            names: other names; the packaged ones when left out. Rules for words that stand together are always the
                packaged ones and the given ones.
        """
        table, own = names or packaged(), packaged()
        self.classes = tuple(dict.fromkeys(classes))
        called = {_plain(name): name for name in self.classes}
        self._forms: dict[str, str] = {}
        listed = [(key, [key]) for key in called]
        listed += [(key, list(table.synonyms.get(key, ()))) for key in called]
        for key, others in listed:
            for other in others:
                for form in _forms(other):
                    self._forms.setdefault(form, called[key])
        for phrase, key in {**own.phrases, **table.phrases}.items():
            # A phrase that is a class here, or stands for one that is not, means what the annotations mean.
            if phrase not in called and (key == _NONE or key in called):
                for form in _forms(phrase):
                    self._forms[form] = called.get(key, _NONE)
        self._before = [
            (words, {called[key] for key in keys if key in called}) for words, keys in (*own.before, *table.before)
        ]
        self._colours = own.colours | table.colours
        # How many words the longest form has that begins with this one; few words begin any.
        self._reach: dict[str, int] = {}
        for form in self._forms:
            first, *more = form.split(" ")
            self._reach[first] = max(self._reach.get(first, 1), 1 + len(more))

    def __call__(self, caption: str) -> list[tuple[str, str]]:
        """The objects of a caption in order, repeats included: (class, the words that name it)."""
        text = _POSSESSIVE.sub("", caption)
        marks = [
            (match.group().lower().replace("-", " "), match.start(), match.end()) for match in _TOKEN.finditer(text)
        ]
        found: list[tuple[str, str, int, int]] = []
        place = 0
        while place < len(marks):
            length, name = self._at(text, marks, place)
            words = " ".join(mark[0] for mark in marks[place : place + length])
            if name and not self._colour(text, marks, place, words):
                found.append((name, words, marks[place][1], marks[place + length - 1][2]))
            place += length
        return [
            (name, words) for index, (name, words, *_) in enumerate(found) if not self._qualifies(text, found, index)
        ]

    def _at(self, text: str, marks: Sequence[tuple[str, int, int]], place: int) -> tuple[int, str]:
        """How many tokens the longest name here has, and its class; one token of no class where there is none."""
        reach = self._reach.get(marks[place][0].partition(" ")[0], 0)
        if not reach:
            return 1, _NONE
        stop = place + 1
        while stop < len(marks) and stop - place < reach and text[marks[stop - 1][2] : marks[stop][1]].isspace():
            stop += 1
        for end in range(stop, place, -1):
            form = " ".join(mark[0] for mark in marks[place:end])
            if form in self._forms:
                return end - place, self._forms[form]
        return 1, _NONE

    def _colour(self, text: str, marks: Sequence[tuple[str, int, int]], place: int, words: str) -> bool:
        if words not in self._colours or place + 1 == len(marks):
            return False
        after, start, _ = marks[place + 1]
        return text[marks[place][2] : start].isspace() and after not in _SMALL

    def _qualifies(self, text: str, found: Sequence[tuple[str, str, int, int]], index: int) -> bool:
        """Whether a name only says what kind of thing the next one is: the baby of a baby elephant."""
        if index + 1 == len(found):
            return False
        (_, words, _, end), (name, _, start, _) = found[index : index + 2]
        together = text[end:start].isspace()
        return together and any(words in those and name in classes for those, classes in self._before)


def _forms(name: str) -> list[str]:
    """A name and its plural, or its singular where it is a plural."""
    head, _, last = name.rpartition(" ")
    return [name, *(f"{head} {form}".strip() for form in plurals(last))]


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())


def _listed(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := _plain(part))]
