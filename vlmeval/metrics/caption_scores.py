"""BLEU, ROUGE-L and CIDEr-D of captions, and how much they repeat themselves, as summed counters.

Papers: BLEU, https://aclanthology.org/P02-1040; ROUGE, https://aclanthology.org/W04-1013; CIDEr,
https://arxiv.org/abs/1411.5726; repetition, https://arxiv.org/abs/1908.04319. The formulas are those of
https://github.com/tylin/coco-caption:

    BLEU-N   corpus level: exp of the mean log of clipped n-gram precisions, n = 1 to N, times exp(1 - r/c) where the
             captions' length c is below the closest references' length r; 0 where an n has no match. n-grams are
             counted by ``sacrebleu``.
    ROUGE-L  (1 + 1.2^2) P R / (R + 1.2^2 P) of the longest common subsequence, P and R each for the reference it is
             best for; mean over captions
    CIDEr-D  10 times the mean over references and n of the cosine of tf-idf vectors, clipped to the reference, times
             exp(-(difference of lengths)^2 / 72); document frequencies from the references of the set
    repeats  1 - different 4-grams / 4-grams, each caption for itself, summed over the captions before dividing (the
             paper's seq-rep-4 is the mean of the captions' own)
    loops    a phrase of up to 20 words stands three times or more in a row, six words or more in all

Deviations: words are runs of letters, digits and inner apostrophes in lower case, where coco-caption calls Stanford's
PTB tokenizer, a Java program ("don't" is one word here, two there). METEOR and SPICE need Java and are not offered.
No library has coco-caption's ROUGE-L (``rouge-score`` takes the best reference whole, with beta 1) or CIDEr-D without
Java.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Frequencies", "bleu", "bleu_counts", "loops", "repetition_counts", "rouge_l", "words"]

ORDER = 4
_WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\w+)*")
_BETA = 1.2
_SIGMA = 6.0
_PHRASE = 20

Gram = tuple[str, ...]


def words(text: str | None) -> list[str]:
    """A text as words in lower case, without punctuation."""
    return _WORD.findall((text or "").lower())


def bleu_counts(caption: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Counters of one caption: n-grams and those found in a reference, lengths of caption and closest reference."""
    found = _sacrebleu().sentence_score(" ".join(caption), [" ".join(reference) for reference in references])
    counts: dict[str, float] = {"length": float(found.sys_len), "reference_length": float(found.ref_len)}
    for n in range(1, ORDER + 1):
        counts[f"grams{n}"] = float(found.totals[n - 1])
        counts[f"matches{n}"] = float(found.counts[n - 1])
    return counts


def bleu(sums: Mapping[str, Any], order: int = ORDER) -> Any:
    """BLEU in [0, 1] of summed counters, which are numbers or arrays ``[R]``; nan without references.

    Numbers go through sacrebleu; arrays, of which it knows nothing, through the same formula.

    Args:
        sums: of :func:`bleu_counts`.
        order: the longest n-grams, 1 to 4.
    """
    matches, grams = ([sums[f"{kind}{n}"] for n in range(1, order + 1)] for kind in ("matches", "grams"))
    if hasattr(sums["length"], "shape"):
        return _bleus(matches, grams, sums["length"], sums["reference_length"])
    if not sums["reference_length"]:
        return math.nan
    whole = [[int(count) for count in counts] for counts in (matches, grams)]
    lengths = [int(sums[name]) for name in ("length", "reference_length")]
    found = _sacrebleu().compute_bleu(*whole, *lengths, smooth_method="none", max_ngram_order=order)
    return min(1.0, found.score / 100)


def _bleus(matches: Sequence[Any], grams: Sequence[Any], length: Any, reference: Any) -> Any:
    import numpy as np

    hits, all_grams = np.stack(matches).astype(np.float64), np.stack(grams).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(hits / all_grams).mean(axis=0))
        brevity = np.minimum(1.0, np.exp(1 - reference / length))
    value = np.where((hits > 0).all(axis=0), precision * brevity, 0.0)
    return np.where(reference > 0, value, np.nan)


@functools.cache
def _sacrebleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # The effective order changes a sentence's score, which is not read, and no counts; without it every call warns.
    return BLEU(tokenize="none", smooth_method="none", force=True, effective_order=True, max_ngram_order=ORDER)


def rouge_l(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption, in [0, 1]."""
    from rapidfuzz.distance import LCSseq

    common = [LCSseq.similarity(caption, reference) for reference in references]
    precision = max(shared / len(caption) if caption else 0.0 for shared in common)
    recall = max(s / len(r) if r else 0.0 for s, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def repetition_counts(caption: Sequence[str]) -> dict[str, float]:
    """Counters of one caption: ``different4`` of its 4-grams (``grams4`` are all), ``loops`` 1 where it loops."""
    return {"different4": float(len(_grams(caption, ORDER))), "loops": float(loops(caption))}


def loops(caption: Sequence[str]) -> bool:
    """Whether a phrase stands three times or more in a row, six words or more in all."""
    for size in range(1, min(_PHRASE, len(caption) // 3) + 1):
        needed, run = max(3 * size, 6) - size, 0
        for word, later in zip(caption, caption[size:], strict=False):
            run = run + 1 if word == later else 0
            if run >= needed:
                return True
    return False


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
        said = {n: self._weights(caption, n) for n in range(1, ORDER + 1)}
        for reference in references:
            # Lengths are counted in pairs of words there.
            apart = max(0, len(caption) - 1) - max(0, len(reference) - 1)
            penalty = math.exp(-(apart**2) / (2 * _SIGMA**2))
            for n in range(1, ORDER + 1):
                truth = self._weights(reference, n)
                norms = math.hypot(*said[n].values()) * math.hypot(*truth.values())
                if norms:
                    shared = ((weight, truth[gram]) for gram, weight in said[n].items() if gram in truth)
                    product = sum(min(weight, true) * true for weight, true in shared)
                    total += penalty * product / norms
        return 10 * total / (ORDER * len(references))

    def _weights(self, text: Sequence[str], n: int) -> dict[Gram, float]:
        most = math.log(max(1, self.pictures))
        return {gram: count * (most - math.log(max(1, self._seen[gram]))) for gram, count in _grams(text, n).items()}


def _grams(text: Sequence[str], n: int) -> Counter[Gram]:
    return Counter(tuple(text[start : start + n]) for start in range(len(text) - n + 1))
