"""Short answers to questions about pictures: VQA accuracy, relaxed accuracy, word F1.

VQA: https://visualqa.org/evaluation.html and https://github.com/GT-Vision-Lab/VQA, ``vqaEval.py``.
Relaxed: Methani et al. (PlotQA), https://arxiv.org/abs/1909.00997, and ChartQA, https://arxiv.org/abs/2203.10244, as
``relaxed_correctness`` of https://github.com/google-research/pix2struct has it.
Word F1: Rajpurkar et al. (SQuAD), https://arxiv.org/abs/1606.05250, on words as the VQA evaluation has them.

Deviations from ``vqaEval.py``: its table of contractions puts apostrophes in ("dont" is "don't"); here they are taken
out of both sides, which also makes "its" and "it's" one. An answer of nothing but articles or marks keeps them: the
option "A" and the answer "?" are not the empty answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vlmeval.metrics.numbers import percent, read_number

__all__ = ["normalized", "relaxed", "vqa_accuracy", "word_f1"]

_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_WORDS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"(\d),(\d)")
_PERIOD = re.compile(r"\.(?!\d)")


def normalized(text: str | None) -> str:
    """An answer as the VQA evaluation compares it: no punctuation, articles or case, number words as digits."""
    given = " ".join((text or "").split()).replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    plain, joined = given, _COMMA.search(given) is not None
    for mark in _PUNCTUATION:
        # A mark beside a blank is dropped, one between words parts them; the script drops all marks of a text that
        # has a comma inside a number.
        alone = f" {mark}" in given or f"{mark} " in given
        plain = plain.replace(mark, "" if alone or joined else " ")
    plain = _PERIOD.sub("", plain).lower()
    words = plain.split()
    kept = [word for word in words if word not in _ARTICLES] or words
    return " ".join(_WORDS.get(word, word) for word in kept) or given.lower()


def vqa_accuracy(answer: str | None, references: Sequence[str]) -> float:
    """How many of the people who were asked agree, in [0, 1].

    With several references (ten in VQA), the mean over each of them left out of min(1, others that agree / 3); with a
    single one, whether it is the answer.
    """
    said = normalized(answer)
    agree = [normalized(reference) == said for reference in references]
    if len(agree) == 1:
        return float(agree[0])
    return sum(min(1.0, (sum(agree) - one) / 3) for one in agree) / len(agree) if agree else 0.0


def relaxed(answer: str | None, reference: str, tolerance: float = 0.05, *, read: bool = False) -> bool:
    """Whether an answer is right: a number near enough to the true one, or else the same text, whatever the case.

    Args:
        answer: what was said.
        reference: the truth.
        tolerance: how far a number may be off, as a part of the true one; with 0, only by what floating point loses.
        read: look for the numbers in sentences, with units, LaTeX and fractions (:func:`numbers.read_number`); where
            only one of the two speaks of percent, it may mean the number or its hundredth part. Else answer and truth
            must be numbers as a whole, ``%`` divides them by 100, and a truth of 0 is compared as a text, as pix2struct
            has it.
    """
    said, truth = (answer or "").strip(), reference.strip()
    number, true_number = (read_number(said), read_number(truth)) if read else (_number(said), _number(truth))
    if number is None or true_number is None or not (true_number or read):
        return said.lower() == truth.lower()
    parts = {1.0}
    if read and percent(said) != percent(truth):
        parts.add(0.01 if percent(said) else 100.0)
    allowed = max(tolerance, 1e-9) * abs(true_number)
    return any(abs(number * part - true_number) <= allowed for part in parts)


def word_f1(answer: str | None, reference: str) -> float:
    """Harmonic mean of the shares of words of the answer and of the reference that both have, in [0, 1]."""
    said, truth = (Counter(normalized(text).split()) for text in (answer, reference))
    shared = sum((said & truth).values())
    if not said or not truth:
        return float(said == truth)
    return 2 * shared / (sum(said.values()) + sum(truth.values()))


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
