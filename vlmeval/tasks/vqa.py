"""Questions about pictures with short answers.

Data: shards of ``vlmdata convert``, kind messages; the last answer of a row is the truth, the turns before it are
    asked (``--turns each``: every answer); further right answers (VQA has ten) stand as a list of texts under
    ``answers`` in the row's meta

``exact`` compares texts as they are but for white space; VQA accuracy, relaxed accuracy (numbers within
``--tolerance``, the best of the right answers), ANLS and word F1 are described in ``vlmeval.metrics.short_answers`` and
``vlmeval.metrics.edits``. ``--read-numbers yes`` finds the numbers in sentences, with units, LaTeX and fractions
(``vlmeval.metrics.numbers``), for truths such as GeomVerse's; ``--read-letters yes`` takes the letter an answer chooses
for the answer, where the question has options A, B, C (``vlmeval.metrics.letters``). An answer is limited to
``--max-answer-tokens`` where all right answers are short, to ``--max-new-tokens`` where one is longer than twelve words
or numbers are read from sentences.

Questions whose right answers are all yes or all no, and questions with options whose letters are read, have
probabilities of their answers with ``--answers logits|both``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmeval.conversations import GROUP_BY, TURNS, asked
from vlmeval.metrics import edits, letters, numbers, short_answers
from vlmeval.metrics.sums import total
from vlmeval.shardset import SPLIT, open_set
from vlmeval.task import Benchmark, Item, Metric, Option, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"
_NO_YES = ("no", "yes")
_SHORT = 12
_TOLERANCE = 0.05
_LISTED = 50
_TOLD = 8


@dataclass(frozen=True, slots=True)
class _Rules:
    """How answers are read."""

    tolerance: float = _TOLERANCE
    numbers: bool = False
    letters: bool = False


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a dataset of questions and answers."""
    rules = _rules(settings)
    found = open_set(data, settings.get("split"))
    turns, by = settings.get("turns") or "last", settings.get("group_by")
    questions = asked(found, _ALL, "answer", each=turns == "each", by=by)
    longest = max(len(text.split()) for item in questions.items for text in item.target)
    kind: Any = "text" if rules.numbers or longest > _SHORT else "answer"
    items = tuple(replace(item, kind=kind, choices=_choices(item, rules)) for item in questions.items)
    lettered = sum(bool(letters.options(item.prompt)) for item in items) if rules.letters else 0
    if rules.letters and not lettered:
        raise ConfigError(
            f"--read-letters yes: no question of {found.folder} has options, expected lines such as 'A. a cat'"
        )
    protocol = {
        **found.protocol,
        "turns": turns,
        "right_answers": max(len(item.target) for item in items),
        "tolerance": rules.tolerance,
        "read_numbers": _NO_YES[rules.numbers],
        "read_letters": f"of {lettered} questions" if rules.letters else "no",
        **({"group_by": by} if by else {}),
    }

    def score(item: Item, response: Response) -> Score:
        return _score(item, response, rules)

    def summarize(scores: Sequence[Score]) -> dict[str, Any]:
        return _summary(scores, rules, by)

    return Benchmark(items, frozenset(), found.data, protocol, score, summarize, questions.notes, folder=found.folder)


def _rules(settings: Mapping[str, Any]) -> _Rules:
    given = settings.get("tolerance")
    try:
        tolerance = _TOLERANCE if given is None else float(given)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < 1:
        raise ConfigError(f"--tolerance is {given!r}, expected a part of the true number from 0 to below 1, like 0.05")
    return _Rules(tolerance, settings.get("read_numbers") == "yes", settings.get("read_letters") == "yes")


def _choices(item: Item, rules: _Rules) -> tuple[str, ...]:
    """The words whose probabilities can decide: yes and no, or the letters of the options."""
    if {short_answers.normalized(text) for text in item.target} in ({"yes"}, {"no"}):
        return ("Yes", "No")
    return tuple(letters.options(item.prompt)) if rules.letters else ()


def _score(item: Item, response: Response, rules: _Rules) -> Score:
    said, right_answers = response.text, list(item.target)
    detail: dict[str, Any] = {name: response.detail[name] for name in ("probabilities",) if name in response.detail}
    options = letters.options(item.prompt) if rules.letters else {}
    counts = {"lettered": 0.0, "letter_read": 0.0, "numbered": 0.0, "number_read": 0.0}
    if options and all(true := [letters.chosen(text, options) for text in item.target]):
        said = letters.chosen(response.text, options) or ""
        right_answers = [letter for letter in true if letter]
        counts |= {"lettered": 1.0, "letter_read": float(bool(said))}
    elif rules.numbers:
        number, truths = numbers.read_number(said), [numbers.read_number(text) for text in item.target]
        if any(truth is not None for truth in truths):
            counts |= {"numbered": 1.0, "number_read": float(number is not None)}
            detail |= {"number": number, "true_numbers": truths}
    relaxed = any(short_answers.relaxed(said, text, rules.tolerance, read=rules.numbers) for text in right_answers)
    right = short_answers.normalized(said) in {short_answers.normalized(text) for text in right_answers}
    # Of a number in a sentence the rest of the sentence is no matter.
    right = relaxed if counts["numbered"] else right
    whole = edits.collapsed(said)
    counts |= {
        "asked": 1.0,
        "right": float(right),
        "exact": float(whole in {edits.collapsed(text) for text in right_answers}),
        "agreed": short_answers.vqa_accuracy(said, right_answers),
        "relaxed": float(relaxed),
        "anls": edits.anls(said, right_answers),
        "f1": max(short_answers.word_f1(said, text) for text in right_answers),
        "words": float(len(edits.collapsed(response.text).split())),
        "empty": float(not edits.collapsed(response.text)),
    }
    if yesno := _yesno(item):
        spoken = short_answers.normalized(said).split()
        counts |= {"yesno": 1.0, "yesno_right": float(spoken[:1] == [yesno]), "yesno_yes": float(spoken[:1] == ["yes"])}
    return Score(item, response.text, counts, right, whole or None, detail)


def _yesno(item: Item) -> str | None:
    truths = {short_answers.normalized(text) for text in item.target}
    return truths.pop() if truths in ({"yes"}, {"no"}) else None


def _summary(scores: Sequence[Score], rules: _Rules, by: str | None) -> dict[str, Any]:
    sums = total((score.counts for score in scores), ("yesno", "yesno_right", "yesno_yes"))
    notes = [f"{sums['empty']:.0f} answers are empty."] if sums["empty"] else []
    for kind, asked_for, read in (("number", "numbered", "number_read"), ("letter", "lettered", "letter_read")):
        if unread := sums[asked_for] - sums[read]:
            what = "no number" if kind == "number" else "no option, or several"
            notes.append(f"{unread:.0f} of {sums[asked_for]:.0f} answers name {what}, and count as wrong.")
    if rules.letters and (open_ended := len(scores) - sums["lettered"]):
        notes.append(f"{open_ended:.0f} questions have no options, or a right answer that is none: read as texts.")
    if n := sums["yesno"]:
        true = sum(_yesno(score.item) == "yes" for score in scores)
        notes.append(
            f"{n:.0f} questions are answered yes or no: {100 * sums['yesno_right'] / n:.1f} % right by the first word, "
            f"yes said to {100 * sums['yesno_yes'] / n:.1f} %, true for {100 * true / n:.1f} %."
        )
    if by is None:
        return {"notes": notes}
    found, note = _by_value(scores, by)
    return {**found, "notes": [note, *notes]}


def _by_value(scores: Sequence[Score], by: str) -> tuple[dict[str, Any], str]:
    """Figures of each value of the facet, the most frequent first; and the first of them in words."""
    members: dict[str, list[Score]] = {}
    for score in scores:
        members.setdefault(score.item.facets[by], []).append(score)
    figures = {}
    for value, some in sorted(members.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        sums = total(score.counts for score in some)
        shares = {metric.name: metric.value(sums) for metric in TASK.metrics if metric.column == "exact"}
        figures[value] = {"n": len(some), **shares}
    shown = [(metric.name, metric.label) for metric in TASK.metrics if metric.column == "exact"]
    rows = [
        [value, row["n"], *(round(row[name], 1) for name, _ in shown)] for value, row in list(figures.items())[:_LISTED]
    ]
    more = f" (the {_LISTED} most frequent of {len(figures)})" if len(figures) > _LISTED else ""
    table = {"title": f"By {by}{more}", "columns": [by, "n", *(label for _, label in shown)], "rows": rows}
    told = ", ".join(f"{value} {row['accuracy']:.1f} (n {row['n']})" for value, row in list(figures.items())[:_TOLD])
    note = f"VQA accuracy by {by}: {told}{' ...' if len(figures) > _TOLD else ''}."
    return {"by_value": {by: figures}, "tables": [table]}, note


def _judge(items: Sequence[Item]) -> Callable[[Item, Response], Score]:
    return lambda item, response: _score(item, response, _Rules())


def _share(name: str, label: str, part: str, **more: Any) -> Metric:
    def value(sums: Sums) -> Any:
        return 100 * ratio(sums[part], sums["asked"])

    return Metric(name, label, (_ALL,), value, "asked", **more)


def _words(sums: Sums) -> Any:
    return ratio(sums["words"], sums["asked"])


TASK = Task(
    name="vqa",
    summary="VQA: short answers to questions about pictures.",
    open=_open,
    groups={_ALL: "Questions"},
    metrics=(
        _share("accuracy", "VQA acc", "agreed"),
        _share("relaxed", "Relaxed", "relaxed", proportion=("relaxed", "asked")),
        _share("exact", "Exact", "exact", proportion=("exact", "asked")),
        _share("anls", "ANLS", "anls"),
        _share("f1", "Word F1", "f1"),
        Metric("words", "Words", (_ALL,), _words, "asked", None, percent=False, column="rates"),
    ),
    headline=((_ALL, "accuracy"), (_ALL, "relaxed"), (_ALL, "anls")),
    options=(
        SPLIT,
        TURNS,
        Option("tolerance", "How far a number may be off and count as right, as a part of the true one.", "0.05"),
        Option("read-numbers", "Find numbers in sentences: units, LaTeX, fractions, the final answer.", "no", _NO_YES),
        Option("read-letters", "Read which of the question's options A, B, C is chosen.", "no", _NO_YES),
        GROUP_BY,
    ),
    judge=_judge,
    choices=True,
)
