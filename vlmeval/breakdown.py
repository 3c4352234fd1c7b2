"""Objects one by one: how often each is asked about and missed, and how often captions invent it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vlmeval.task import Score

__all__ = ["invented", "objects", "tables"]

_MOST = 30


def objects(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Every object that is asked about or that captions name, the worst first.

    Returns:
        Rows of ``object``; ``n`` questions that name it (facet ``object``), ``right`` ones and ``accuracy`` in percent
        (None without questions); ``named`` captions with it, and ``hallucinated`` ones among them, in which it is not
        there. The worst have the most wrong answers, then the most captions that invent them.
    """
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    named: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for score in scores:
        name = score.item.facets.get("object")
        if name is not None:
            asked[name] += 1
            right[name] += bool(score.correct)
        if score.item.kind == "text":
            named.update(set(_named(score)))
            wrong.update(set(_invented(score)))
    rows = [
        {
            "object": name,
            "n": asked[name],
            "right": right[name],
            "accuracy": 100 * right[name] / asked[name] if asked[name] else None,
            "named": named[name],
            "hallucinated": wrong[name],
        }
        for name in asked.keys() | named.keys()
    ]
    return sorted(rows, key=lambda row: (row["right"] - row["n"], -row["hallucinated"], -row["n"], row["object"]))


def _named(score: Score) -> Sequence[str]:
    """Objects of a caption: by their class, where a task tells classes and words apart."""
    found: Sequence[str] = score.detail.get("objects", score.detail.get("nouns", ()))
    return found


def _invented(score: Score) -> Sequence[str]:
    found: Sequence[str] = score.detail.get("invented", score.detail.get("hallucinated", ()))
    return found


def invented(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The 30 words that captions invent most: ``word``, ``times``, ``captions`` that do, one of their ids."""
    times: Counter[str] = Counter()
    captions: dict[str, list[int | str]] = defaultdict(list)
    for score in scores:
        if score.item.kind == "text":
            words = _invented(score)
            times.update(words)
            for word in dict.fromkeys(words):
                captions[word].append(score.item.id)
    return [
        {"word": word, "times": count, "captions": len(captions[word]), "id": captions[word][0]}
        for word, count in sorted(times.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST]
    ]


def tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``objects`` and ``invented`` of a report as tables to be shown; columns in which nothing stands are left out."""
    found = []
    rows = report.get("objects", [])
    if rows:
        asked, named = any(row["n"] for row in rows), any(row["named"] for row in rows)
        columns = [
            "Object",
            *(["Questions", "Accuracy"] if asked else []),
            *(["Captions", "Invented"] if named else []),
        ]
        found.append(
            {"title": "Objects, the worst first", "columns": columns, "rows": [_cells(r, asked, named) for r in rows]}
        )
    if report.get("invented"):
        body = [[row["word"], row["times"], row["captions"]] for row in report["invented"]]
        found.append({"title": "Most invented words", "columns": ["Word", "Times", "Captions"], "rows": body})
    return found


def _cells(row: Mapping[str, Any], asked: bool, named: bool) -> list[Any]:
    accuracy = "–" if row["accuracy"] is None else f"{row['accuracy']:.1f}"
    cells = [row["object"], *([row["n"], accuracy] if asked else [])]
    return [*cells, *([row["named"], row["hallucinated"]] if named else [])]
