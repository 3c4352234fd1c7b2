"""Reading text off pictures, as plain text or as JSON fields.

Data: shards of ``vlmdata convert``, kind messages; the last answer of a row is the truth, the turns before it are asked
    (``--turns each``: every answer)

Where the truth is a JSON object, the answer's object is cut out of it by its outermost braces
(``vlmeval.metrics.json_answer``) and compared field by field; characters and words are those of the fields then, in the
truth's order, so that braces and the order of keys do not count. Else the whole texts are compared. Case counts
everywhere but in ANLS. A reading is a field, or a whole text without fields; ``alike`` says how many would be right if
no character had been taken for one that looks like it (``vlmeval.metrics.lookalikes``).

``confused_characters`` counts substitutions along the shortest way of edits, in readings of which less than half is
wrong: in others letters meet by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmeval.charts import Chart, Matrix
from vlmeval.conversations import TURNS, asked
from vlmeval.metrics import edits, fields, lookalikes
from vlmeval.shardset import SPLIT, open_set
from vlmeval.task import Benchmark, Item, Metric, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"
_SHOWN = 8
_MATRIX = 24
_LISTED = 60
_LONGEST = 60


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a dataset of transcriptions."""
    found = open_set(data, settings.get("split"))
    turns = settings.get("turns") or "last"
    questions = asked(found, _ALL, "text", each=turns == "each")
    structured = sum(fields.json_object(item.target[0]) is not None for item in questions.items)
    protocol = {**found.protocol, "turns": turns, "json_truths": structured}
    return Benchmark(
        questions.items, frozenset(), found.data, protocol, _score, _summary, questions.notes, folder=found.folder
    )


def _score(item: Item, response: Response) -> Score:
    truth = item.target[0]
    wanted = fields.json_object(truth)
    counts = dict.fromkeys(("fields", "fields_said", "fields_right", "fields_extra"), 0.0)
    counts |= dict.fromkeys(("json_asked", "json_read", "json_only"), 0.0)
    detail: dict[str, Any] = {}
    if wanted is None:
        said, true = edits.collapsed(response.text), edits.collapsed(truth)
        right, readings = said == true, [(said, true)]
    else:
        more, read, extra = fields.compared(response.text, wanted)
        counts |= more
        right = more["fields_right"] == more["fields"] and not extra
        flat = fields.flat(wanted)
        detail = {"fields": {name: [value, read[name]] for name, value in flat.items()}}
        detail |= {"extra": extra} if extra else {}
        readings = [(read[name] or "", value) for name, value in flat.items()]
        said, true = (" ".join(side) for side in zip(*readings, strict=True))
    counts |= edits.errors(said, true)
    counts |= {"asked": 1.0, "right": float(right), "anls": edits.anls(said, [true]), "readings": float(len(readings))}
    counts["alike"] = float(sum(lookalikes.forgiven(*reading) for reading in readings))
    return Score(item, response.text, counts, right, edits.collapsed(response.text) or None, detail)


def _readings(score: Score) -> Iterator[tuple[str, str]]:
    """(said, true) of every field, or of the whole text."""
    found = score.detail.get("fields")
    if found is None:
        yield edits.collapsed(score.response), edits.collapsed(score.item.target[0])
        return
    for true, said in found.values():
        yield said or "", true


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    table, notes = _by_field(scores)
    sums = Counter[str]()
    for score in scores:
        sums.update({name: int(score.counts[name]) for name in ("json_asked", "json_read", "chars_replaced")})
        sums.update({name: int(score.counts[name]) for name in ("chars_left_out", "chars_added")})
    if unread := sums["json_asked"] - sums["json_read"]:
        notes.append(f"{unread} of {sums['json_asked']} answers hold no JSON object; all of their fields are missed.")
    confused, apart = _confused(scores)
    if sums["chars_replaced"] + sums["chars_left_out"] + sums["chars_added"]:
        notes.append(
            f"Characters: {sums['chars_replaced']:,} taken for others, {sums['chars_left_out']:,} left out, "
            f"{sums['chars_added']:,} added."
        )
    if confused:
        worst = [f"{_named(one['said'])} for {_named(one['true'])} ({one['n']})" for one in confused[:_SHOWN]]
        notes.append(f"Most often misread, said for true: {', '.join(worst)}.")
        alike = sum(one["n"] for one in confused if one["look_alike"])
        notes.append(f"{alike} of {sum(one['n'] for one in confused)} misread characters look like the true ones.")
    if apart:
        notes.append(f"{apart} readings are wrong by half or more; their characters are not compared one by one.")
    tables = []
    if table:
        head = ["", "n", "right", "said", "precision", "recall", "F1"]
        rows = [[_short(name), row["n"], row["right"], row["said"], *_shares(row)] for name, row in table.items()]
        tables.append({"title": "Fields", "columns": head, "rows": rows})
    if confused:
        rows = [
            [_named(one["true"]), _named(one["said"]), one["n"], "yes" if one["look_alike"] else ""]
            for one in confused[:_LISTED]
        ]
        tables.append({"title": "Misread characters", "columns": ["true", "said", "n", "look alike"], "rows": rows})
    found: dict[str, Any] = {"confused_characters": confused, "tables": tables, "notes": notes}
    return {"fields": table, **found} if table else found


def _short(name: str) -> str:
    """A field's path as it can be read; an answer may nest as deep as it likes."""
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"


def _named(character: str) -> str:
    """A character as it can be seen."""
    return "blank" if character == " " else character


def _by_field(scores: Sequence[Score]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """How often each field is asked for, said and right; places in lists are one field."""
    asked_for, said, right = Counter[str](), Counter[str](), Counter[str]()
    for score in scores:
        for path, (true, read) in score.detail.get("fields", {}).items():
            name = fields.family(path)
            asked_for[name] += 1
            said[name] += read is not None
            right[name] += true == read
        said.update(fields.family(path) for path in score.detail.get("extra", {}))
    if not asked_for:
        return {}, []
    table = {
        name: {
            "right": right[name],
            "n": asked_for[name],
            "said": said[name],
            "precision": right[name] / said[name] if said[name] else None,
            "recall": right[name] / asked_for[name] if asked_for[name] else None,
            "f1": 2 * right[name] / (asked_for[name] + said[name]),
        }
        for name in [*asked_for, *sorted(said.keys() - asked_for.keys())]
        if asked_for[name] + said[name]
    }
    shown = [f"{_short(name)} {100 * right[name] / n:.1f} % of {n}" for name, n in asked_for.most_common(_SHOWN)]
    more = f"; {len(asked_for) - _SHOWN} more in report.json" if len(asked_for) > _SHOWN else ""
    notes = [f"Fields right: {', '.join(shown)}{more}."]
    if strange := sorted(said.keys() - asked_for.keys(), key=lambda name: (-said[name], name)):
        listed = ", ".join(f"{_short(name)} ({said[name]})" for name in strange[:_SHOWN])
        notes.append(f"Fields that no truth has: {listed}{' ...' if len(strange) > _SHOWN else ''}.")
    return table, notes


def _shares(row: Mapping[str, Any]) -> list[float | None]:
    return [None if row[key] is None else round(100 * row[key], 1) for key in ("precision", "recall", "f1")]


def _confused(scores: Sequence[Score]) -> tuple[list[dict[str, Any]], int]:
    """Which characters were taken for which, most often first; and how many readings were too wrong to tell."""
    found: Counter[tuple[str, str]] = Counter()
    apart = 0
    for said, true in (reading for score in scores for reading in _readings(score)):
        if not said or not true or said == true:
            continue
        if 2 * edits.distance(said, true) >= max(len(said), len(true)):
            apart += 1
        else:
            found.update(edits.substitutions(said, true))
    listed = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return [
        {"true": true, "said": said, "n": n, "look_alike": lookalikes.alike(said, true)} for (true, said), n in listed
    ], apart


def _charts(report: Mapping[str, Any]) -> list[Chart]:
    """The characters that are most often misread, by what they were taken for."""
    pairs = {(one["true"], one["said"]): one["n"] for one in report.get("confused_characters", ())}
    if not pairs:
        return []
    rows, columns = Counter[str](), Counter[str]()
    for (true, _), n in pairs.items():
        rows[true] += n
    shown = [true for true, _ in rows.most_common(_MATRIX)]
    for (true, said), n in pairs.items():
        columns[said] += n if true in shown else 0
    said_as = [said for said, n in columns.most_common(_MATRIX) if n]
    cells = [[pairs.get((true, said), 0) for said in said_as] for true in shown]
    whole = len(rows) <= _MATRIX and len(columns) <= _MATRIX
    title = "Misread characters" + ("" if whole else ": the most frequent")
    return [Matrix(title, "true", "said", [*map(_named, shown)], [*map(_named, said_as)], cells)]


def _share(name: str, label: str, part: str, whole: str, better: Any = "high", **more: Any) -> Metric:
    def value(sums: Sums) -> Any:
        return 100 * ratio(sums[part], sums[whole])

    return Metric(name, label, (_ALL,), value, whole, better, **more)


def _field_f1(sums: Sums) -> Any:
    return 200 * ratio(sums["fields_right"], sums["fields"] + sums["fields_said"])


TASK = Task(
    name="ocr",
    summary="OCR: text read off pictures, whole or as JSON fields.",
    open=_open,
    groups={_ALL: "Texts"},
    metrics=(
        _share("exact", "Exact", "right", "asked", proportion=("right", "asked")),
        _share("fields", "Fields", "fields_right", "fields", proportion=("fields_right", "fields")),
        Metric("field_f1", "F1", (_ALL,), _field_f1, "fields"),
        _share("anls", "ANLS", "anls", "asked"),
        _share("cer", "CER", "char_errors", "chars", "low"),
        _share("wer", "WER", "word_errors", "words", "low"),
        _share("alike", "Alike", "alike", "readings", proportion=("alike", "readings"), column="rates"),
        _share("json", "JSON", "json_read", "json_asked", proportion=("json_read", "json_asked"), column="rates"),
        _share("json_only", "bare", "json_only", "json_asked", proportion=("json_only", "json_asked"), column="rates"),
    ),
    headline=((_ALL, "exact"), (_ALL, "fields"), (_ALL, "anls"), (_ALL, "cer")),
    options=(SPLIT, TURNS),
    charts=_charts,
    judge=lambda items: _score,
)
