"""What tasks of yes/no questions share: the words asked for, their probabilities, answers that were neither.

Only the summary of probabilities needs numpy and scikit-learn; both are imported when there are some.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmeval.charts import Chart, Curve, Matrix
from vlmeval.task import Response, Score

__all__ = ["CHOICES", "calibration", "charts", "detail", "object_of", "table", "unread"]

CHOICES = ("Yes", "No")
"""The words whose first-token probabilities are read, the one for yes first."""

_OBJECT = re.compile(r"^Is there an? (?P<object>.+?) in (?:this|the) (?:image|picture|photo)\?", re.IGNORECASE)
_LISTED = 50
_SHOWN = 200
_IDS = 500
_FIGURES = {
    "auroc": "AUROC",
    "ece": "ECE",
    "ece_mass": "ECE, equal mass",
    "brier": "Brier",
    "margin": "Margin",
    "accuracy": "Accuracy",
    "mass": "Yes+no mass",
}
_LITTLE = 0.5


def object_of(prompt: str) -> str | None:
    """The object of "Is there a dog in this image?"; None for another question."""
    match = _OBJECT.match(prompt.strip())
    return match["object"] if match else None


def detail(response: Response) -> dict[str, Any]:
    """What a score keeps of the probabilities of yes and no: both, and the likelier word; empty without usable ones."""
    found = response.detail.get("probabilities")
    if not isinstance(found, Mapping):
        return {}
    masses = [found.get(word) for word in CHOICES]
    if not all(isinstance(mass, int | float) and math.isfinite(mass) and mass >= 0 for mass in masses):
        return {}
    yes, no = (float(mass) for mass in masses if mass is not None)
    if not yes + no:
        return {}
    likelier = CHOICES[0] if yes > no else CHOICES[1] if no > yes else None
    return {"probabilities": dict(zip(CHOICES, (yes, no), strict=True)), "likelier": likelier}


def unread(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The first 50 answers that were neither yes nor no, long ones cut."""
    found = []
    for score in scores:
        if score.answer is None and score.item.kind == "answer":
            text = score.response
            cut = text if text is None or len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
            found.append({"id": score.item.id, "response": cut})
            if len(found) == _LISTED:
                break
    return found


def calibration(scores: Sequence[Score], groups: Sequence[str]) -> dict[str, Any]:
    """What the probabilities of yes and no tell, for ``report.json``; empty where no answer has any.

    Args:
        scores: of questions.
        groups: of the report, the widest first.

    Returns:
        ``calibration``: ``n`` questions with and ``without`` probabilities, ``groups`` (see
        :func:`vlmeval.metrics.calibration.figures`), ``curve`` of all, ``disagreement`` between the answer that was
        read and the likelier word: ``n``, ``table`` [answer][likelier word] and ``ids`` (the first 500); and
        ``notes``.
    """
    with_some = [score for score in scores if "probabilities" in score.detail]
    if not with_some:
        return {}
    from vlmeval.metrics.calibration import Rated, curve, figures

    rated = [
        Rated(
            score.item.cluster,
            score.item.groups,
            score.detail["probabilities"]["Yes"],
            score.detail["probabilities"]["No"],
            score.item.target == "yes",
        )
        for score in with_some
    ]
    found = figures(rated, groups)
    without = len(scores) - len(with_some)
    result = {
        "n": len(rated),
        "without": without,
        "groups": found,
        "curve": curve(rated),
        "disagreement": _disagreement(with_some),
    }
    return {"calibration": result, "notes": _remarks(result, sum(one.yes + one.no for one in rated) / len(rated))}


def _disagreement(scores: Sequence[Score]) -> dict[str, Any]:
    names = (*CHOICES, "neither")
    cells = {answer: dict.fromkeys(names, 0) for answer in names}
    apart = []
    for score in scores:
        answer, likelier = score.answer or "neither", score.detail["likelier"] or "neither"
        cells[answer][likelier] += 1
        if answer != likelier:
            apart.append(score.item.id)
    return {"n": len(apart), "of": len(scores), "table": cells, "ids": apart[:_IDS]}


def _remarks(result: Mapping[str, Any], mass: float) -> list[str]:
    notes = []
    apart, of = result["disagreement"]["n"], result["disagreement"]["of"]
    if apart:
        notes.append(f"The answer and the likelier of yes and no differ for {apart} of {of} questions.")
    if mass < _LITTLE:
        notes.append(
            f"Yes and no together have only {100 * mass:.0f} % of the first token's probability: this model begins its "
            "answers otherwise, and what is read from the rest says little."
        )
    if result["without"]:
        notes.append(f"{result['without']} answers have no probabilities of yes and no; calibration is without them.")
    return notes


def table(result: Mapping[str, Any], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """The figures of ``calibration`` as a table of the report, intervals in brackets."""
    rows = []
    for group, found in result.get("calibration", {}).get("groups", {}).items():
        cells = [_cell(found[name]) for name in _FIGURES]
        rows.append([titles[group], *cells, found["n"]])
    columns = ["Group", *_FIGURES.values(), "n"]
    return [{"title": "Probabilities of yes and no", "columns": columns, "rows": rows}] if rows else []


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    span = figure["interval"]
    return f"{figure['value']:.3f}" + (f" ({span[0]:.3f}–{span[1]:.3f})" if span else "")


def charts(report: Mapping[str, Any]) -> list[Chart]:
    """Calibration curve, and answers against likelier words where they differ."""
    found = report.get("calibration")
    if not found:
        return []
    points = [(bin["predicted"], bin["observed"], bin["n"]) for bin in found["curve"]]
    drawn: list[Chart] = [Curve("Calibration", "P(yes)", "share of questions whose truth is yes", points, True)]
    disagreement = found["disagreement"]
    if disagreement["n"]:
        names = list(disagreement["table"])
        cells = [[disagreement["table"][row][column] for column in names] for row in names]
        drawn.append(Matrix("Answers and likelier words", "answer", "likelier word", names, names, cells))
    return drawn
