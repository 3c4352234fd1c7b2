"""Reading text off pictures, as plain text or as JSON fields.

Data: shards of ``vlmdata convert``, kind messages; the last answer of a row is the truth, the turns before it are asked

Where the truth is a JSON object, the answer's object is cut out of it (``vlmeval.metrics.json_answer``) and compared
field by field; characters and words are those of the fields then, in the truth's order, so that braces and the order of
keys do not count. Else the whole texts are compared. Case counts everywhere but in ANLS.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError
from vlmeval.conversations import asked
from vlmeval.metrics import edits, fields
from vlmeval.shardset import open_set
from vlmeval.task import Benchmark, Item, Metric, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"
_SHOWN = 8


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a dataset of transcriptions."""
    found = open_set(data)
    questions = asked(found, _ALL, "text")
    if not questions.items:
        raise DataError(f"no row of {data} holds an answer to compare with")
    structured = sum(_object(item.target[0]) is not None for item in questions.items)
    protocol = {"json_truths": structured}
    return Benchmark(questions.items, frozenset(), found.data, protocol, _score, _summary, questions.notes)


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None


def _score(item: Item, response: Response) -> Score:
    truth = item.target[0]
    wanted = _object(truth)
    counts = dict.fromkeys(("fields", "fields_right", "fields_extra", "json_asked", "json_read"), 0.0)
    if wanted is None:
        said, true = response.text or "", truth
        right, detail = edits.collapsed(said) == edits.collapsed(true), {}
    else:
        more, read = fields.compared(response.text, wanted)
        counts |= more
        right = more["fields_right"] == more["fields"] and not more["fields_extra"]
        detail = {"fields": {name: [value, read[name]] for name, value in fields.flat(wanted).items()}}
        said, true = (" ".join(text) for text in ([v or "" for v in read.values()], fields.flat(wanted).values()))
    counts |= edits.errors(said, true)
    counts |= {"asked": 1.0, "right": float(right), "anls": edits.anls(said, [true])}
    return Score(item, response.text, counts, right, edits.collapsed(response.text) or None, detail)


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    """How often each field is right."""
    right: Counter[str] = Counter()
    asked_for: Counter[str] = Counter()
    for score in scores:
        for name, (true, said) in score.detail.get("fields", {}).items():
            asked_for[name] += 1
            right[name] += true == said
    notes = []
    if asked_for:
        shown = [f"{name} {100 * right[name] / n:.1f} % of {n}" for name, n in asked_for.most_common(_SHOWN)]
        more = f"; {len(asked_for) - _SHOWN} more in report.json" if len(asked_for) > _SHOWN else ""
        notes.append(f"Fields right: {', '.join(shown)}{more}.")
    asked = sum(score.counts["json_asked"] for score in scores)
    unread = asked - sum(score.counts["json_read"] for score in scores)
    if unread:
        notes.append(f"{unread:.0f} of {asked:.0f} answers hold no JSON object; all of their fields count as wrong.")
    table = {name: {"right": right[name], "n": n} for name, n in asked_for.items()}
    return {"fields": table, "notes": notes} if table else {"notes": notes}


def _share(name: str, label: str, part: str, whole: str, better: Any = "high", **more: Any) -> Metric:
    def value(sums: Sums) -> Any:
        return 100 * ratio(sums[part], sums[whole])

    return Metric(name, label, (_ALL,), value, whole, better, **more)


TASK = Task(
    name="ocr",
    summary="OCR: text read off pictures, whole or as JSON fields.",
    open=_open,
    groups={_ALL: "Texts"},
    metrics=(
        _share("exact", "Exact", "right", "asked", proportion=("right", "asked")),
        _share("fields", "Fields", "fields_right", "fields", proportion=("fields_right", "fields")),
        _share("anls", "ANLS", "anls", "asked"),
        _share("cer", "CER", "char_errors", "chars", "low"),
        _share("wer", "WER", "word_errors", "words", "low"),
        _share("json", "JSON", "json_read", "json_asked", proportion=("json_read", "json_asked"), column="rates"),
    ),
    headline=((_ALL, "exact"), (_ALL, "fields"), (_ALL, "anls"), (_ALL, "cer")),
    judge=lambda items: _score,
)
