"""The embedded noun engine: a closed table from surface forms to the words of a vocabulary.

AMBER only ever counts nouns of one fixed vocabulary, so finding them needs no tagger and no download: every
vocabulary word has few surface forms ("leaves", "men", "buses"), and a caption is looked up token by token. Forms of
AMBER's own 418 words are written out and reviewed in ``amber_forms.tsv``; words of any other vocabulary get theirs by
rule.

Deviations from the official engine (nltk's tagger and WordNet lemmatizer):
    - there is no tagging: a vocabulary word counts whatever it is in the sentence. Guards in the table keep out the
      common traps (the modal "can", the verb after "to", the adjective "hot"); an adjective "light" or "orange" counts.
    - plural words of the vocabulary ("sunglasses", "chopsticks", "leaves" for AMBER's "leave") are found; WordNet
      turns them into singulars that are not in the vocabulary, so that the official script never counts them.
As in the official script, case counts ("Sky" is not "sky") and hyphenated words are one token.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Forms", "build", "plurals", "reviewed_words"]

_TOKEN = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")

_IRREGULAR = {
    "person": ("people", "persons"),
    "child": ("children",),
    "woman": ("women",),
    "man": ("men",),
    "mouse": ("mice",),
    "louse": ("lice",),
    "goose": ("geese",),
    "foot": ("feet",),
    "tooth": ("teeth",),
    "ox": ("oxen",),
    "die": ("dice",),
    "knife": ("knives",),
    "wife": ("wives",),
    "leaf": ("leaves",),
    "loaf": ("loaves",),
    "shelf": ("shelves",),
    "half": ("halves",),
    "calf": ("calves",),
    "thief": ("thieves",),
    "wolf": ("wolves",),
    "hoof": ("hooves", "hoofs"),
    "scarf": ("scarves", "scarfs"),
    "wharf": ("wharves", "wharfs"),
    "cactus": ("cacti", "cactuses"),
    "bus": ("buses", "busses"),
}
_COMPOUND = ("person", "child", "woman", "man", "mouse", "goose", "foot", "tooth", "knife", "leaf", "shelf", "wolf")
_NOT_COMPOUND = ("human", "roman", "german", "ottoman", "shaman", "caiman", "talisman")
_OES = ("potato", "tomato", "hero", "echo", "torpedo", "mango", "volcano", "buffalo", "mosquito", "domino", "tornado")
_INVARIANT = ("sheep", "deer", "fish", "moose", "bison", "aircraft", "series", "species", "shrimp", "salmon", "people")
_SINGULAR_S = ("ss", "us", "is", "as", "os")

_DETERMINERS = frozenset(
    "a an the this that one another each every either neither no any some its his her their my your our"
    " two three four five six several many few".split()
)
_DESCRIPTORS = frozenset(
    "red green blue yellow white black gray grey silver brown orange pink purple golden metal metallic plastic large"
    " small big little tall empty full old new tin aluminum aluminium steel trash garbage rubbish recycling waste"
    " litter soda beer cola coke soup food paint spray watering oil gas milk coffee tuna open closed".split()
)
_BEFORE_VERB = frozenset(
    "to will would can could may might must shall should cannot not i you we they who he she it also".split()
)


@dataclass(frozen=True, slots=True)
class Forms:
    """Surface forms of one vocabulary.

    Attributes:
        words: surface form to vocabulary word.
        guards: surface form to ``noun`` (counts only after a determiner or a describing word), ``last`` (the same, and
            no other word may follow directly) or ``verb`` (does not count after "to", a modal or a pronoun).
    """

    words: dict[str, str]
    guards: dict[str, str]

    def __call__(self, text: str) -> list[str]:
        """The vocabulary words of a caption in order, repeats included."""
        found, before = [], ""
        for match in _TOKEN.finditer(text):
            token = match.group()
            word = self.words.get(token)
            if word is not None and self._counts(token, before, text[match.end() : match.end() + 2]):
                found.append(word)
            before = token.lower()
        return found

    def _counts(self, token: str, before: str, after: str) -> bool:
        guard = self.guards.get(token, "")
        if guard in ("noun", "last"):
            described = before in _DETERMINERS or before in _DESCRIPTORS
            return described and not (guard == "last" and after.strip().isalpha())
        return guard != "verb" or before not in _BEFORE_VERB


def plurals(word: str) -> tuple[str, ...]:
    """The other surface forms of an English noun, by rule; for a word that is a plural, its singular."""
    for base in (word, *(b for b in _COMPOUND if word.endswith(b) and not word.endswith(_NOT_COMPOUND))):
        if base in _IRREGULAR:
            return tuple(word[: len(word) - len(base)] + form for form in _IRREGULAR[base])
    if word in _INVARIANT or word.endswith(("fish", "sheep")):
        return (word + "es",) if word.endswith("fish") else ()
    if word.endswith("s") and not word.endswith(_SINGULAR_S):
        return (word[:-1],) if len(word) > 4 else ()
    if word.endswith(("s", "x", "z", "ch", "sh")) or word in _OES:
        return (word + "es",)
    if word.endswith("y") and word[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        return (word[:-1] + "ies",)
    return (word + "s",)


def _reviewed() -> dict[str, tuple[tuple[str, ...], str]]:
    """Word to its other forms and its guard, from the packaged table."""
    text = files("vlmeval.metrics").joinpath("amber_forms.tsv").read_text(encoding="utf-8")
    rows = csv.reader((line for line in text.splitlines() if not line.startswith("#")), delimiter="\t")
    return {word: (tuple(forms.split()), guard) for word, forms, guard in rows}


def reviewed_words() -> frozenset[str]:
    """AMBER's own 418 words."""
    return frozenset(_reviewed())


def build(vocabulary: Iterable[str]) -> Forms:
    """The table of a vocabulary: reviewed forms where there are any, by rule otherwise.

    A vocabulary word always stands for itself, also where it is another word's plural ("people").
    """
    table, own = _reviewed(), sorted(set(vocabulary))
    words: dict[str, str] = {}
    guards: dict[str, str] = {}
    for word in own:
        forms, guard = table[word] if word in table else (plurals(word), "")
        for form in forms:
            words.setdefault(form, word)
        if guard:
            guards[word] = guard
    words.update((word, word) for word in own)
    return Forms(words, guards)
