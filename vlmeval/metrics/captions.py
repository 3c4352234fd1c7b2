"""BLEU, ROUGE-L and CIDEr-D of captions, as summed counters.

Papers: BLEU, https://aclanthology.org/P02-1040; ROUGE, https://aclanthology.org/W04-1013; CIDEr,
https://arxiv.org/abs/1411.5726. The formulas are those of https://github.com/tylin/coco-caption:

    BLEU-4   corpus level: exp of the mean log of clipped n-gram precisions, n = 1 to 4, times exp(1 - r/c) where the
             captions' length c is below the closest references' length r; 0 where an n has no match
    ROUGE-L  (1 + 1.2^2) P R / (R + 1.2^2 P) of the longest common subsequence, P and R each for the reference it is
             best for; mean over captions
    CIDEr-D  10 times the mean over references and n of the cosine of tf-idf vectors, clipped to the reference, times
             exp(-(difference of lengths)^2 / 72); document frequencies from the references of the set

Deviations: words are runs of letters, digits and inner apostrophes in lower case, where coco-caption calls Stanford's
PTB tokenizer, a Java program ("don't" is one word here, two there). METEOR and SPICE need Java and are not offered.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Frequencies", "bleu", "bleu_counts", "rouge_l", "words"]

ORDER = 4
_WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\w+)*")
_BETA = 1.2
_SIGMA = 6.0

Gram = tuple[str, ...]


def words(text: str | None) -> list[str]:
    """A text as words in lower case, without punctuation."""
    return _WORD.findall((text or "").lower())


def bleu_counts(caption: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Counters of one caption: n-grams and those found in a reference, lengths of caption and closest reference."""
    counts: dict[str, float] = {"length": float(len(caption))}
    counts["reference_length"] = float(min((abs(len(r) - len(caption)), len(r)) for r in references)[1])
    for n in range(1, ORDER + 1):
        said = _grams(caption, n)
        most: Counter[Gram] = Counter()
        for reference in references:
            most |= _grams(reference, n)
        counts[f"grams{n}"] = float(sum(said.values()))
        counts[f"matches{n}"] = float(sum((said & most).values()))
    return counts


def bleu(sums: Mapping[str, Any]) -> Any:
    """BLEU-4 in [0, 1] of summed counters, which are numbers or arrays ``[R]``; nan without captions."""
    import numpy as np

    matches = np.stack([np.asarray(sums[f"matches{n}"], dtype=np.float64) for n in range(1, ORDER + 1)])
    grams = np.stack([np.asarray(sums[f"grams{n}"], dtype=np.float64) for n in range(1, ORDER + 1)])
    length, reference = (np.asarray(sums[name], dtype=np.float64) for name in ("length", "reference_length"))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matches / grams).mean(axis=0))
        brevity = np.minimum(1.0, np.exp(1 - reference / length))
    value = np.where((matches > 0).all(axis=0), precision * brevity, 0.0)
    value = np.where(reference > 0, value, np.nan)
    return value if value.ndim else float(value)


def rouge_l(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption, in [0, 1]."""
    common = [_common(caption, reference) for reference in references]
    precision = max(shared / len(caption) if caption else 0.0 for shared in common)
    recall = max(s / len(r) if r else 0.0 for s, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


class Frequencies:
    """In how many pictures' references each n-gram stands; with them, CIDEr-D."""

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """Count.

        Args:
            references: for each picture its references, each a list of words.
        """
        self.pictures = len(references)
        self._seen: Counter[Gram] = Counter()
        for some in references:
            self._seen.update({gram for one in some for n in range(1, ORDER + 1) for gram in _grams(one, n)})

    def cider(self, caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """CIDEr-D of one caption, in [0, 10]; 0 where the set has one picture, as every n-gram is in all then."""
        total = 0.0
        for reference in references:
            # Lengths are counted in pairs of words there.
            apart = max(0, len(caption) - 1) - max(0, len(reference) - 1)
            penalty = math.exp(-(apart**2) / (2 * _SIGMA**2))
            for n in range(1, ORDER + 1):
                said, truth = self._weights(caption, n), self._weights(reference, n)
                norms = math.hypot(*said.values()) * math.hypot(*truth.values())
                if norms:
                    shared = ((weight, truth[gram]) for gram, weight in said.items() if gram in truth)
                    product = sum(min(weight, true) * true for weight, true in shared)
                    total += penalty * product / norms
        return 10 * total / (ORDER * len(references))

    def _weights(self, text: Sequence[str], n: int) -> dict[Gram, float]:
        most = math.log(max(1, self.pictures))
        return {
            gram: count * (most - math.log(max(1, self._seen[gram]))) for gram, count in _grams(text, n).items()
        }


def _grams(text: Sequence[str], n: int) -> Counter[Gram]:
    return Counter(tuple(text[start : start + n]) for start in range(len(text) - n + 1))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
