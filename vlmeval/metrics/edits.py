"""Edit distance, and what is read from it: ANLS, character and word errors.

ANLS: Biten et al., Scene Text Visual Question Answering, https://arxiv.org/abs/1905.13648; texts are lower-cased and
white space is collapsed before, as the evaluation of DocVQA does (https://rrc.cvc.uab.es/?ch=17). Character and word
errors are counted as in ``jiwer``: edits over the length of the reference, summed over all texts before dividing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

__all__ = ["anls", "collapsed", "distance", "errors"]


def distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions between two texts or lists of words.

    One row of the table is one numpy operation: a page of 2,000 characters takes milliseconds.
    """
    import numpy as np

    if not first or not second:
        return len(first) or len(second)
    codes: dict[Hashable, int] = {}
    a, b = (np.asarray([codes.setdefault(one, len(codes)) for one in side]) for side in (first, second))
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for index, code in enumerate(a, 1):
        above = row[1:] + 1
        diagonal = row[:-1] + (b != code)
        row = np.concatenate(([index], np.minimum(above, diagonal)))
        # An insertion costs one for each place moved to the right.
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])


def collapsed(text: str | None) -> str:
    """Without white space at the ends, and with one blank for each run of it inside."""
    return " ".join((text or "").split())


def anls(answer: str | None, references: Sequence[str], threshold: float = 0.5) -> float:
    """Average Normalized Levenshtein Similarity of one answer, in [0, 1].

    1 - distance / longer length, for the reference it is best for; 0 where the distance reaches ``threshold``.
    """
    best = 0.0
    said = collapsed(answer).lower()
    for reference in references:
        truth = collapsed(reference).lower()
        longer = max(len(said), len(truth))
        apart = distance(said, truth) / longer if longer else 0.0
        best = max(best, 1 - apart if apart < threshold else 0.0)
    return best


def errors(answer: str | None, reference: str) -> dict[str, float]:
    """Counters of one text: edits and length of the reference, in characters and in words, white space collapsed."""
    said, truth = collapsed(answer), collapsed(reference)
    return {
        "char_errors": float(distance(said, truth)),
        "chars": float(len(truth)),
        "word_errors": float(distance(said.split(), truth.split())),
        "words": float(len(truth.split())),
    }
