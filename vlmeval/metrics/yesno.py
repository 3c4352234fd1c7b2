"""Yes/no questions: "No" as the positive class, as AMBER scores them, and "yes", as POPE does.

AMBER: https://github.com/junyangwang0410/AMBER at 534babf, ``inference.py``; paper https://arxiv.org/abs/2311.07397.
POPE:  https://github.com/AoiDragon/POPE at f3ec604, ``evaluate.py``; paper https://arxiv.org/abs/2305.10355.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["as_written", "by_sentence", "by_word", "counts", "official", "polled", "script"]

_WORD = re.compile(r"\w+")


def as_written(text: str | None) -> str | None:
    """The official rule: exactly ``Yes`` or ``No``, nothing else is an answer."""
    return text if text in ("Yes", "No") else None


def by_word(text: str | None) -> str | None:
    """The exclusive word rule: the text holds the word yes or the word no, in any case, and not both.

    "No." is No, "yes and no" is neither, "nothing" and "not sure" are neither.
    """
    words = set(_WORD.findall((text or "").lower()))
    if ("yes" in words) == ("no" in words):
        return None
    return "Yes" if "yes" in words else "No"


def by_sentence(text: str | None) -> str | None:
    """POPE's rule: No where ``No``, ``no`` or ``not`` is a word of the first sentence, Yes for everything else.

    "I cannot tell" and an empty answer are Yes, "NO" and "no!" are as well. Words are parted by blanks only, after
    commas were taken out. Deviation: a null, at which the script fails, is neither.
    """
    if text is None:
        return None
    words = text.split(".")[0].replace(",", "").split(" ")
    return "No" if {"No", "no", "not"} & set(words) else "Yes"


def counts(answer: str | None, truth: str) -> dict[str, float]:
    """Counters of one answered question.

    Args:
        answer: ``Yes``, ``No`` or None for an answer that was neither.
        truth: ``yes`` or ``no``.
    """
    said_no, is_no = answer == "No", truth == "no"
    return {
        "asked": 1,
        "right": float((answer or "").lower() == truth),
        "said_no": float(said_no),
        "said_yes": float(answer == "Yes"),
        "unread": float(answer is None),
        "is_no": float(is_no),
        "caught": float(said_no and is_no),
    }


def official(sums: Mapping[str, float], start: Mapping[str, float], epsilon: float) -> dict[str, Any]:
    """Accuracy, precision, recall and F1 to the digit the official script prints, in percent.

    Accuracy, precision and recall are rounded first; F1 is computed from the rounded values.

    Args:
        sums: summed counters of ``counts``.
        start: initial values (``correct``, ``ans_no``, ``no``) of the three denominators, from AMBER's ``metrics.txt``.
        epsilon: what the script adds to the denominator of F1: 0.001 for existence, 0.0001 elsewhere.
    """
    accuracy = round(sums["right"] / (start["correct"] + sums["asked"]) * 100, 1)
    precision = round(sums["caught"] / (start["ans_no"] + sums["said_no"]) * 100, 1)
    recall = round(sums["caught"] / (start["no"] + sums["is_no"]) * 100, 1)
    p, r = precision / 100, recall / 100
    return {
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "f1": round(2 * p * r / (p + r + epsilon) * 100, 1),
    }


def polled(answer: str | None, truth: str) -> dict[str, float]:
    """Counters of one answered question of POPE, where "yes" is the positive class.

    Args:
        answer: ``Yes``, ``No`` or None for an answer that was neither.
        truth: ``yes`` or ``no``.
    """
    said_yes, is_yes = answer == "Yes", truth == "yes"
    return {
        "asked": 1,
        "right": float((answer or "").lower() == truth),
        "said_yes": float(said_yes),
        "unread": float(answer is None),
        "is_yes": float(is_yes),
        "caught": float(said_yes and is_yes),
    }


def script(sums: Mapping[str, float]) -> dict[str, float]:
    """What POPE's script prints for summed counters of ``polled``: fractions, unrounded; 0 where it divides by zero."""
    said, true, asked = sums["said_yes"], sums["is_yes"], sums["asked"]
    precision = sums["caught"] / said if said else 0.0
    recall = sums["caught"] / true if true else 0.0
    both = precision + recall
    return {
        "accuracy": sums["right"] / asked if asked else 0.0,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "yes_ratio": said / asked if asked else 0.0,
    }
