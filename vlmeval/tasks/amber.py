"""AMBER: yes/no questions about what is and is not in an image, and captions scored for what they invent.

Paper:    https://arxiv.org/abs/2311.07397
Official: https://github.com/junyangwang0410/AMBER at 534babf, ``inference.py``
Data:     ``annotations.json``, ``relation.json``, ``safe_words.txt``, ``metrics.txt``, ``query/`` of that repository

The ``official`` column is what the official script prints for the same answers, to the digit: "No" is the positive
class, denominators start at 0.001, F1 comes from rounded precision and recall. Deviations, all stated in the report:
    - ids the annotations do not have are reported and not scored (the script scores 0 and -1, and dies of others);
    - generated answers are read by the exclusive word rule first; a responses file is taken as it is, like there;
    - the embedded noun engine and ``exact`` synonyms need no model; ``--nouns official`` uses nltk and spaCy.

Beyond the script: ``pairs`` (both of two complementary attribute questions right, which no blind answer gets), the
paper's AMBER Score, (100 - CHAIR + F1) / 2 (the script does not print it), figures object by object, and
what first-token probabilities tell where a model gave them (``vlmeval.polling``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vlmdata.errors import ConfigError, choices
from vlmeval import amberset, breakdown, official, polling
from vlmeval.charts import Chart, Scatter
from vlmeval.metrics import chair, yesno
from vlmeval.metrics.sums import total
from vlmeval.task import Benchmark, Item, Metric, Option, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_QUESTIONS = ("discriminative", "existence", "attribute", "state", "number", "action", "relation")
_OVERALL = "overall"
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
        counts = {**yesno.counts(answer, item.target), "pairs": 0.0, "pairs_right": 0.0}
        return Score(item, response.text, counts, correct, answer, polling.detail(response))

    def summarize(scores: Sequence[Score]) -> dict[str, Any]:
        found = _summary(scores, _asked(items), amber.starts)
        return {**found, "notes": [*_remarks(scores, items, part, rule), *found.get("notes", ())]}

    def together(scores: Sequence[Score]) -> Sequence[Score]:
        return _paired(scores, pairs)

    known, pairs = frozenset(amber.annotations), amberset.pairs(amber)
    return Benchmark(
        items,
        known,
        amber.data,
        protocol,
        score,
        summarize,
        _notes(amber, engine),
        together,
        folder=amberset.locate(data),
    )


def _part_of(amber: amberset.AmberSet, answered: frozenset[int | str] | None) -> str:
    """Captions only, questions only or both: what a responses file holds."""
    if answered is None:
        return "all"
    kinds = {note.groups[0] for ident, note in amber.annotations.items() if ident in answered}
    return kinds.pop() if len(kinds) == 1 else "all"


def _items(amber: amberset.AmberSet, part: str) -> list[Item]:
    """Everything that is asked; what is both captions and questions counts in ``overall`` as well."""
    notes = [note for note in amber.annotations.values() if part in ("all", *note.groups)]
    both = (_OVERALL,) if len({note.groups == ("generative",) for note in notes}) == 2 else ()
    items = []
    for note in notes:
        image, prompt = amber.queries.get(note.id, ("", ""))
        groups = note.groups if part in ("all", "discriminative") else note.groups[note.groups.index(part) :]
        images, facets = (image,) if image else (), {"type": note.groups[-1]}
        if isinstance(note.truth, str):
            named = polling.object_of(prompt) if "existence" in note.groups else None
            facets |= {"object": named} if named else {}
            words = polling.CHOICES
            items.append(Item(note.id, prompt, images, note.truth, groups + both, choices=words, facets=facets))
        else:
            target = {"truth": list(note.truth), "hallu": list(note.hallu)}
            items.append(Item(note.id, prompt, images, target, groups + both, "text", facets=facets))
    return items


def _asked(items: Sequence[Item]) -> list[str]:
    present = {group for item in items for group in item.groups}
    return [group for group in TASK.groups if group in present]


def _paired(scores: Sequence[Score], pairs: Sequence[tuple[int, int]]) -> list[Score]:
    """Count every pair once, with the first answer to its second question, if both are answered.

    A question that is answered several times has to be right each time.
    """
    right: defaultdict[int | str, list[bool]] = defaultdict(list)
    for score in scores:
        right[score.item.id].append(bool(score.correct))
    first_of = {second: first for first, second in pairs if first in right and second in right}
    found = []
    for score in scores:
        ident = score.item.id
        first = first_of.pop(ident, None) if isinstance(ident, int) else None
        if first is not None:
            both = float(all(right[first]) and all(right[ident]))
            score = replace(score, counts={**score.counts, "pairs": 1.0, "pairs_right": both})
        found.append(score)
    return found


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
    digest = synonyms.sha256(wanted)
    names = {"nouns": engine, "synonyms": synonym_name, **({"synonyms_sha256": digest} if digest else {})}
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
    groups = [group for group in asked if group in _QUESTIONS]
    found = {group: _questions_official(scores, group, starts) for group in groups}
    if "generative" in asked:
        found["generative"] = _captions_official(scores, starts)
    questions = [score for score in scores if score.item.kind == "answer"]
    summary: dict[str, Any] = {"official": found}
    if questions:
        blind = {answer: _constant(questions, answer) for answer in ("No", "Yes")}
        summary["baselines"] = {
            f"all_{answer.lower()}": {group: _questions_official(same, group, starts) for group in groups}
            for answer, same in blind.items()
        }
        unread = {name: sum(rule(score.response) is None for score in questions) for name, rule in _READ.items()}
        summary["protocol"] = {"unread": {**unread, "of": len(questions)}}
        summary |= {"unread": polling.unread(questions), **polling.calibration(questions, groups)}
    summary |= {"objects": breakdown.objects(scores)}
    if any(score.item.kind == "text" for score in scores):
        summary |= {"invented": breakdown.invented(scores)}
    return {**summary, "tables": [*polling.table(summary, TASK.groups), *breakdown.tables(summary)]}


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


def _pairs(sums: Sums) -> Any:
    # Scores written before there were pairs do not have them.
    return 100 * ratio(sums.get("pairs_right", 0.0), sums.get("pairs", 0.0))


def _amber_score(sums: Sums) -> Any:
    if "nouns" not in sums or "caught" not in sums:
        return float("nan")
    return (100 - 100 * ratio(sums["hallucinated"], sums["nouns"]) + _f1(sums)) / 2


def _charts(report: Mapping[str, Any]) -> list[Chart]:
    """Calibration, and CHAIR against Cover beside published results."""
    found = polling.charts(report)
    own = report.get("official", {}).get("generative")
    if own and report["n"].get("generative"):
        rows = (report.get("published") or {}).get("rows", ())
        points = [(own["chair"], own["cover"], "this run", True)]
        points += [
            (row["figures"]["chair"], row["figures"]["cover"], row["name"], False)
            for row in rows
            if {"chair", "cover"} <= row["figures"].keys()
        ]
        found.append(Scatter("What captions invent and what they cover", "CHAIR (less is better)", "Cover", points))
    return found


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
        _OVERALL: "Both",
    },
    metrics=(
        _share("accuracy", "Accuracy", _QUESTIONS, "right", "asked"),
        _share("precision", "Precision", _QUESTIONS, "caught", "said_no"),
        _share("recall", "Recall", _QUESTIONS, "caught", "is_no"),
        Metric("f1", "F1", _QUESTIONS, _f1, "asked"),
        _share("yes_rate", "Says yes", _QUESTIONS, "said_yes", "asked", None, column="rates"),
        _share("no_answer_rate", "Neither", _QUESTIONS, "unread", "asked", "low", independent=True, column="rates"),
        Metric("pairs", "Pairs", _QUESTIONS, _pairs, "pairs", proportion=("pairs_right", "pairs"), column="rates"),
        _share("chair", "CHAIR", _CAPTIONS, "hallucinated", "nouns", "low"),
        _share("cover", "Cover", _CAPTIONS, "covered", "truth_slots"),
        _share("hal", "Hal", _CAPTIONS, "dirty", "captions", "low", independent=True),
        _share("cog", "Cog", _CAPTIONS, "cognition", "hallu_slots", "low"),
        Metric("words", "Words", _CAPTIONS, _words, "captions", None, percent=False, column="rates"),
        Metric("amber_score", "AMBER Score", (_OVERALL,), _amber_score, "captions", column="rates"),
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
            "exact, official (spaCy's en_core_web_lg), or a file: a table of vlmeval build-synonyms, or tab-separated"
            " pairs. Default: exact with embedded nouns, else official.",
        ),
    ),
    fetch=lambda: official.fetch("amber"),
    charts=_charts,
    choices=True,
)
