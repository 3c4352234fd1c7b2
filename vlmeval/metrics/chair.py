"""CHAIR, Cover, Hal and Cog of captions, with AMBER's bookkeeping.

Source: https://github.com/junyangwang0410/AMBER at 534babf, ``inference.py``; paper https://arxiv.org/abs/2311.07397.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

__all__ = ["Lexicon", "Synonyms", "captioned", "exact", "official"]

Synonyms = Callable[[str, str], bool]


def exact(one: str, other: str) -> bool:
    """The plainest synonym rule: a word is a synonym of itself."""
    return one == other


@dataclass(frozen=True, slots=True)
class Lexicon:
    """AMBER's word lists.

    Attributes:
        association: word to the words that count as it (``relation.json``).
        safe: words that are never hallucinated and never covered (``safe_words.txt``).
        synonyms: whether two words mean the same; the official script asks spaCy for a similarity above 0.8.
        vocabulary: every word that can be counted at all.
    """

    association: Mapping[str, Sequence[str]]
    safe: frozenset[str]
    synonyms: Synonyms = exact
    vocabulary: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """The vocabulary is every key and every associated word."""
        object.__setattr__(self, "vocabulary", frozenset(self.association).union(*self.association.values()))


def _slots(words: Sequence[str], association: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """Words with the slot they fill: all associated words first, then the words themselves."""
    associated = [(other, slot) for slot, word in enumerate(words) for other in association[word]]
    return [*associated, *((word, slot) for slot, word in enumerate(words))]


def _first(slots: Iterable[tuple[str, int]], match: Callable[[str], bool]) -> int | None:
    """The slot of the first matching word: a later, closer match gets no credit, as in the official script."""
    return next((slot for word, slot in slots if match(word)), None)


def captioned(
    nouns: Iterable[str], truth: Sequence[str], hallu: Sequence[str], lexicon: Lexicon
) -> tuple[dict[str, float], dict[str, Any]]:
    """Counters of one caption, and the words behind them.

    Per vocabulary noun: a safe word is skipped; a word of the truth (or associated) covers its first slot; else a
    listed hallucination marks its first slot, then the first synonym among the hallucinations is marked as well,
    and a synonym in the truth saves the noun from being counted as hallucinated, but not from that mark.

    Args:
        nouns: nouns of the caption in order, repeats included; those outside the vocabulary are ignored.
        truth: words that are in the image.
        hallu: words that models like to invent for it.
        lexicon: the word lists.
    """
    counted = [noun for noun in nouns if noun in lexicon.vocabulary]
    present, invented = _slots(truth, lexicon.association), _slots(hallu, lexicon.association)
    covered: set[int] = set()
    cognition: set[int] = set()
    wrong: list[str] = []
    for noun in counted:
        if noun in lexicon.safe:
            continue
        slot = _first(present, noun.__eq__)
        if slot is not None:
            covered.add(slot)
            continue
        alike = partial(lexicon.synonyms, noun)
        marks = (_first(invented, noun.__eq__), _first(invented, alike))
        cognition.update(mark for mark in marks if mark is not None)
        slot = _first(present, alike)
        if slot is not None:
            covered.add(slot)
        else:
            wrong.append(noun)
    sums = {
        "nouns": float(len(counted)),
        "hallucinated": float(len(wrong)),
        "truth_slots": float(len(truth)),
        "covered": float(len(covered)),
        "hallu_slots": float(len(hallu)),
        "cognition": float(len(cognition)),
        "captions": 1.0,
        "clean": float(not wrong),
        "dirty": float(bool(wrong)),
    }
    detail = {
        "nouns": counted,
        "hallucinated": wrong,
        "missed": [word for slot, word in enumerate(truth) if slot not in covered],
    }
    return sums, detail


def official(sums: Mapping[str, float], start: Mapping[str, float]) -> dict[str, Any]:
    """CHAIR, Cover, Hal and Cog to the digit the official script prints, in percent.

    Args:
        sums: summed counters of ``captioned``.
        start: initial values of the four denominators, from AMBER's ``metrics.txt``: ``chair``, ``safe_cover``,
            ``hallu_cover``, ``non_hallu``.
    """
    return {
        "chair": round(sums["hallucinated"] / (start["chair"] + sums["nouns"]) * 100, 1),
        "cover": round(sums["covered"] / (start["safe_cover"] + sums["truth_slots"]) * 100, 1),
        "hal": round(100 - sums["clean"] / (start["non_hallu"] + sums["captions"]) * 100, 1),
        "cog": round(sums["cognition"] / (start["hallu_cover"] + sums["hallu_slots"]) * 100, 1),
    }
