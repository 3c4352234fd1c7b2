"""Short answers to questions about pictures: VQA accuracy, relaxed accuracy, word F1.

VQA: https://visualqa.org/evaluation.html and https://github.com/GT-Vision-Lab/VQA, ``vqaEval.py``.
Relaxed: Methani et al. (PlotQA), https://arxiv.org/abs/1909.00997, and ChartQA, https://arxiv.org/abs/2203.10244, as
``relaxed_correctness`` of https://github.com/google-research/pix2struct has it.
Word F1: Rajpurkar et al. (SQuAD), https://arxiv.org/abs/1606.05250, on words as the VQA evaluation has them.

Deviation from ``vqaEval.py``: its table of contractions puts apostrophes in ("dont" is "don't"); here they are taken
out of both sides, which also makes "its" and "it's" one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["normalized", "relaxed", "vqa_accuracy", "word_f1"]

_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_WORDS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
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
    return " ".join(_WORDS.get(word, word) for word in plain.split() if word not in _ARTICLES)


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


def relaxed(answer: str | None, reference: str, tolerance: float = 0.05) -> bool:
    """Whether an answer is right: a number within 5 % of the true one, or else the same text, whatever the case."""
    said, truth = (answer or "").strip(), reference.strip()
    number, true_number = _number(said), _number(truth)
    if number is not None and true_number:
        return abs(number - true_number) / abs(true_number) <= tolerance
    return said.lower() == truth.lower()


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
