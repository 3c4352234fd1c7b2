"""AMBER: yes/no questions about what is and is not in an image, and captions scored for what they invent.

Paper:    https://arxiv.org/abs/2311.07397
Official: https://github.com/junyangwang0410/AMBER at 534babf, ``inference.py``
Data:     ``annotations.json``, ``relation.json``, ``safe_words.txt``, ``metrics.txt``, ``query/`` of that repository

The ``official`` column is what the official script prints for the same answers, to the digit: "No" is the positive
class, denominators start at 0.001, F1 comes from rounded precision and recall. Deviations, all stated in the report:
    - ids the annotations do not have are reported and not scored (the script scores 0 and -1, and dies of others);
    - generated answers are read by the exclusive word rule first; a responses file is taken as it is, like there;
    - the embedded noun engine and ``exact`` synonyms need no model; ``--nouns official`` uses nltk and spaCy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlmdata.errors import ConfigError, choices
from vlmeval import amberset
from vlmeval.metrics import chair, yesno
from vlmeval.metrics.sums import total
from vlmeval.task import Benchmark, Item, Metric, Option, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_QUESTIONS = ("discriminative", "existence", "attribute", "state", "number", "action", "relation")
_PREFIX: Mapping[str, tuple[str, ...]] = {
    "discriminative": ("",),
    "existence": ("ha_",),
    "attribute": ("as_", "an_", "aa_"),
    "state": ("as_",),
    "number": ("an_",),
    "action": ("aa_",),
    "relation": ("asso_",),
}
_NOUNS = ("embedded", "official")
_READ = {"word": yesno.by_word, "none": yesno.as_written}


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open an AMBER folder; without ``part`` a responses file decides what is asked."""
    amber = amberset.read(data)
    rule = settings.get("read_answers") or ("none" if answered is not None else "word")
    if rule not in _READ:
        raise ConfigError(f"--read-answers is {rule!r}; valid: {choices(_READ)}")
    part = settings.get("part") or _part_of(amber, answered)
    if part not in amberset.PARTS:
        raise ConfigError(f"--part is {part!r}; valid: {choices(amberset.PARTS)}")
    items = tuple(_items(amber, part))
    lexicon, find, engine = _engines(amber, items, settings)
    protocol = {"part": part, "read_answers": rule, "positive_class": "No", **engine}

    def score(item: Item, response: Response) -> Score:
        if item.kind == "text":
            nouns = find(response.text or "")
            counts, detail = chair.captioned(nouns, item.target["truth"], item.target["hallu"], lexicon)
            return Score(
                item, response.text, {**counts, "words": float(len((response.text or "").split()))}, detail=detail
            )
        answer = _READ[rule](response.text)
        correct = (answer or "").lower() == item.target
        return Score(item, response.text, yesno.counts(answer, item.target), correct, answer)

    def summarize(scores: Sequence[Score]) -> dict[str, Any]:
        return {**_summary(scores, _asked(items), amber.starts), "notes": _remarks(scores, items, part, rule)}

    known = frozenset(amber.annotations)
    return Benchmark(items, known, amber.data, protocol, score, summarize, _notes(amber, engine))


def _part_of(amber: amberset.AmberSet, answered: frozenset[int | str] | None) -> str:
    """Captions only, questions only or both: what a responses file holds."""
    if answered is None:
        return "all"
    kinds = {note.groups[0] for ident, note in amber.annotations.items() if ident in answered}
    return kinds.pop() if len(kinds) == 1 else "all"


def _items(amber: amberset.AmberSet, part: str) -> list[Item]:
    items = []
    for note in amber.annotations.values():
        if part not in ("all", *note.groups):
            continue
        image, prompt = amber.queries.get(note.id, ("", ""))
        groups = note.groups if part in ("all", "discriminative") else note.groups[note.groups.index(part) :]
        captioned = note.groups == ("generative",)
        target = {"truth": list(note.truth), "hallu": list(note.hallu)} if captioned else note.truth
        images = (image,) if image else ()
        items.append(Item(note.id, prompt, images, target, groups, "text" if captioned else "answer"))
    return items


def _asked(items: Sequence[Item]) -> list[str]:
    present = {group for item in items for group in item.groups}
    return [group for group in TASK.groups if group in present]


def _engines(
    amber: amberset.AmberSet, items: Sequence[Item], settings: Mapping[str, Any]
) -> tuple[chair.Lexicon, Callable[[str], list[str]], dict[str, Any]]:
    """The lexicon, the noun finder and their names for the report; nothing is loaded when no caption is asked."""
    from vlmeval.metrics import nouns, nouns_official, synonyms

    engine = settings.get("nouns") or "embedded"
    if engine not in _NOUNS:
        raise ConfigError(f"--nouns is {engine!r}; valid: {choices(_NOUNS)}")
    lexicon = chair.Lexicon(amber.association, amber.safe)
    if not any(item.kind == "text" for item in items):
        return lexicon, lambda text: [], {}
    wanted = settings.get("synonyms") or ("official" if engine == "official" else "exact")
    same, synonym_name = synonyms.load(wanted, lexicon.vocabulary)
    find = nouns_official.load() if engine == "official" else nouns.build(lexicon.vocabulary)
    names = {"nouns": engine, "synonyms": synonym_name}
    return chair.Lexicon(amber.association, amber.safe, same), find, names


def _notes(amber: amberset.AmberSet, engine: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if engine and engine != {"nouns": "official", "synonyms": "official"}:
        notes.append(
            f"Captions: nouns by the {engine['nouns']} engine, synonyms {engine['synonyms']}; the published AMBER "
            "numbers use nltk's tagger and spaCy's en_core_web_lg."
        )
    if not amber.queries:
        notes.append(
            "The data folder has no query/ files: images are unknown, so intervals treat answers as independent."
        )
    return tuple(notes)


def _starts(group: str, starts: Mapping[str, float]) -> dict[str, float]:
    """Where the three denominators of a group start."""
    return {
        name: sum(starts.get(f"{prefix}qa_{name}_num", 0.001) for prefix in _PREFIX[group])
        for name in ("correct", "ans_no", "no")
    }


def _questions_official(scores: Sequence[Score], group: str, starts: Mapping[str, float]) -> dict[str, Any]:
    counts = (score.counts for score in scores if group in score.item.groups)
    sums = total(counts, yesno.counts(None, ""))
    return yesno.official(sums, _starts(group, starts), 0.001 if group == "existence" else 0.0001)


def _captions_official(scores: Sequence[Score], starts: Mapping[str, float]) -> dict[str, Any]:
    empty = chair.captioned((), (), (), chair.Lexicon({}, frozenset()))[0]
    sums = total((score.counts for score in scores if score.item.kind == "text"), empty)
    names = ("chair", "safe_cover", "hallu_cover", "non_hallu")
    return chair.official(sums, {name: starts.get(f"{name}_num", 0.001) for name in names})


def _summary(scores: Sequence[Score], asked: Sequence[str], starts: Mapping[str, float]) -> dict[str, Any]:
    """``official``, the blind baselines on the same questions, and what each reading rule could not read."""
    official = {group: _questions_official(scores, group, starts) for group in asked if group != "generative"}
    if "generative" in asked:
        official["generative"] = _captions_official(scores, starts)
    questions = [score for score in scores if score.item.kind == "answer"]
    summary: dict[str, Any] = {"official": official}
    if questions:
        summary["baselines"] = {
            f"all_{answer.lower()}": {
                group: _questions_official(_constant(questions, answer), group, starts)
                for group in official
                if group != "generative"
            }
            for answer in ("No", "Yes")
        }
        unread = {name: sum(rule(score.response) is None for score in questions) for name, rule in _READ.items()}
        summary["protocol"] = {"unread": {**unread, "of": len(questions)}}
    return summary


def _remarks(scores: Sequence[Score], items: Sequence[Item], part: str, rule: str) -> list[str]:
    """What a reader must know about these answers."""
    remarks = []
    answered = {score.item.id for score in scores}
    for narrow in ("existence", "attribute", "relation") if part in ("all", "discriminative") else ():
        if answered == {item.id for item in items if narrow in item.groups}:
            remarks.append(f"All answers are to the {narrow} questions: --part {narrow} scores them as a complete set.")
    silent_groups = [group for group in _asked(items) if not any(group in score.item.groups for score in scores)]
    if silent_groups:
        remarks.append(
            f"No answers at all for: {', '.join(silent_groups)}. The official formulas give 0.0 for them (Hal 100.0)."
        )
    questions = [score for score in scores if score.item.kind == "answer"]
    lost = sum(score.answer is None for score in questions)
    readable = sum(score.answer is None and yesno.by_word(score.response) is not None for score in questions)
    if lost:
        more = f"; --read-answers word would read {readable} of them" if rule == "none" and readable else ""
        remarks.append(f"{lost} of {len(questions)} answers are neither Yes nor No and count as wrong{more}.")
    captions = [score for score in scores if score.item.kind == "text"]
    silent = sum(not score.counts["nouns"] for score in captions)
    if silent:
        remarks.append(
            f"{silent} of {len(captions)} captions name nothing of the vocabulary: they lower CHAIR and Hal as if they "
            "were right; look at Cover."
        )
    return remarks


def _constant(questions: Sequence[Score], answer: str) -> list[Score]:
    return [Score(q.item, answer, yesno.counts(answer, q.item.target)) for q in questions]


def _share(
    name: str,
    label: str,
    groups: tuple[str, ...],
    successes: str,
    trials: str,
    better: Literal["high", "low"] | None = "high",
    *,
    independent: bool = False,
    column: Literal["exact", "rates"] = "exact",
) -> Metric:
    """A metric that is a proportion, in percent."""

    def value(sums: Sums) -> Any:
        return 100 * ratio(sums[successes], sums[trials])

    return Metric(name, label, groups, value, trials, better, True, (successes, trials), independent, column)


def _f1(sums: Sums) -> Any:
    return 200 * ratio(sums["caught"], sums["said_no"] + sums["is_no"])


def _words(sums: Sums) -> Any:
    return ratio(sums["words"], sums["captions"])


_CAPTIONS = ("generative",)

TASK = Task(
    name="amber",
    summary="AMBER: hallucination in yes/no answers and captions.",
    open=_open,
    groups={
        "discriminative": "Discriminative",
        "existence": "Existence",
        "attribute": "Attribute",
        "state": "State",
        "number": "Number",
        "action": "Action",
        "relation": "Relation",
        "generative": "Generative",
    },
    metrics=(
        _share("accuracy", "Accuracy", _QUESTIONS, "right", "asked"),
        _share("precision", "Precision", _QUESTIONS, "caught", "said_no"),
        _share("recall", "Recall", _QUESTIONS, "caught", "is_no"),
        Metric("f1", "F1", _QUESTIONS, _f1, "asked"),
        _share("yes_rate", "Says yes", _QUESTIONS, "said_yes", "asked", None, column="rates"),
        _share("no_answer_rate", "Neither", _QUESTIONS, "unread", "asked", "low", independent=True, column="rates"),
        _share("chair", "CHAIR", _CAPTIONS, "hallucinated", "nouns", "low"),
        _share("cover", "Cover", _CAPTIONS, "covered", "truth_slots"),
        _share("hal", "Hal", _CAPTIONS, "dirty", "captions", "low", independent=True),
        _share("cog", "Cog", _CAPTIONS, "cognition", "hallu_slots", "low"),
        Metric("words", "Words", _CAPTIONS, _words, "captions", None, percent=False, column="rates"),
    ),
    headline=(
        ("discriminative", "accuracy"),
        ("discriminative", "f1"),
        ("generative", "chair"),
        ("generative", "cover"),
        ("generative", "hal"),
        ("generative", "cog"),
        ("discriminative", "yes_rate"),
        ("generative", "words"),
    ),
    options=(
        Option("part", "What is asked; all, or what a responses file holds, when left out.", None, amberset.PARTS),
        Option(
            "read-answers",
            "word: the answer holds the word yes or the word no, not both; none: exactly Yes or No. Default: word for"
            " generated answers, none for --responses.",
            None,
            ("word", "none"),
        ),
        Option("nouns", "Noun engine of captions; official needs nltk and its data.", "embedded", _NOUNS),
        Option(
            "synonyms",
            "exact, official (spaCy's en_core_web_lg), or a file of synonym pairs, one tab-separated pair a line."
            " Default: exact with embedded nouns, else official.",
        ),
    ),
)
