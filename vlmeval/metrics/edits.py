"""Edit distance, and what is read from it: ANLS, character and word errors, which character was taken for which.

ANLS: Biten et al., Scene Text Visual Question Answering, https://arxiv.org/abs/1905.13648; texts are lower-cased and
white space is collapsed before, as the evaluation of DocVQA does (https://rrc.cvc.uab.es/?ch=17). Distances are
``rapidfuzz``'s, character and word errors and the edits behind them ``jiwer``'s: edits over the length of the
reference, summed over all texts before dividing. Deviation from jiwer's default: all white space is collapsed, not
blanks only, so that a line break is a blank.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

__all__ = ["anls", "collapsed", "distance", "errors", "substitutions"]


def distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions between two texts or lists of words."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(first, second)


def collapsed(text: str | None) -> str:
    """Without white space at the ends, and with one blank for each run of it inside."""
    return " ".join((text or "").split())


def anls(answer: str | None, references: Sequence[str], threshold: float = 0.5) -> float:
    """Average Normalized Levenshtein Similarity of one answer, in [0, 1].

    1 - distance / longer length, for the reference it is best for; 0 where the distance reaches ``threshold``.
    """
    from rapidfuzz.distance import Levenshtein

    best = 0.0
    said = collapsed(answer).lower()
    for reference in references:
        apart = Levenshtein.normalized_distance(said, collapsed(reference).lower())
        best = max(best, 1 - apart if apart < threshold else 0.0)
    return best


def errors(answer: str | None, reference: str) -> dict[str, float]:
    """Counters of one text, white space collapsed.

    Returns:
        ``char_errors`` and ``word_errors``, the edits; ``chars`` and ``words``, the lengths of the reference; and the
        character edits by kind: ``chars_replaced``, ``chars_left_out``, ``chars_added``.
    """
    import jiwer

    said, truth = collapsed(answer), collapsed(reference)
    chars, words = jiwer.process_characters(truth, said), jiwer.process_words(truth, said)
    return {
        "char_errors": float(chars.substitutions + chars.deletions + chars.insertions),
        "chars": float(len(truth)),
        "word_errors": float(words.substitutions + words.deletions + words.insertions),
        "words": float(len(truth.split())),
        "chars_replaced": float(chars.substitutions),
        "chars_left_out": float(chars.deletions),
        "chars_added": float(chars.insertions),
    }


def substitutions(answer: str, reference: str) -> list[tuple[str, str]]:
    """Characters taken for others, along the shortest way of edits: (true, said) pairs, in order.

    Of several shortest ways it is the one jiwer takes.
    """
    import jiwer

    output = jiwer.process_characters(reference, answer)
    true, said = output.references[0], output.hypotheses[0]
    return [
        pair
        for chunk in output.alignments[0]
        if chunk.type == "substitute"
        for pair in zip(
            true[chunk.ref_start_idx : chunk.ref_end_idx], said[chunk.hyp_start_idx : chunk.hyp_end_idx], strict=True
        )
    ]
