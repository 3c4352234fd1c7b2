"""POPE: is there such an object in the image? Asked of objects that are there and, as often, of objects that are not.

Paper:    https://arxiv.org/abs/2305.10355
Official: https://github.com/AoiDragon/POPE, ``evaluate.py`` at f3ec604
Data:     ``coco_pope_random.json``, ``..._popular.json``, ``..._adversarial.json`` of that repository, which differ in
    how absent objects were chosen; or any file of the same format: JSON Lines, or a JSON array, of ``question_id``,
    ``image``, ``text`` and ``label``

"yes" is the positive class. The script reads every answer as yes that has no ``No``, ``no`` or ``not`` in its first
sentence: "I cannot tell" is yes. A responses file is read like that; generated answers are read by the exclusive word
rule, under which an answer that is neither is wrong, and no yes. ``script`` in the report is what the script prints for
the same answers, in either case. Deviations:
    - answers are joined by id, ``random:1`` where files number their questions alike, not by their place;
    - a null answer, at which the script fails, is neither yes nor no.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, MissingError, choices
from vlmeval import breakdown, official, polling
from vlmeval.charts import Chart
from vlmeval.metrics import yesno
from vlmeval.metrics.sums import total
from vlmeval.task import Benchmark, Item, Metric, Option, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"
_SPLITS = ("random", "popular", "adversarial")
_GROUPS = (_ALL, *_SPLITS)
_FILE = re.compile(r"(?:^|_)pope_(random|popular|adversarial)\.jsonl?$")
_READ = {"word": yesno.by_word, "official": yesno.by_sentence}
_KEYS = ("question_id", "image", "text", "label")


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open POPE files; a responses file of one split may number its answers as that file does."""
    rule = settings.get("read_answers") or ("word" if answered is None else "official")
    if rule not in _READ:
        raise ConfigError(f"--read-answers is {rule!r}; valid: {choices(_READ)}")
    split = settings.get("split") or _ALL
    if split not in _GROUPS:
        raise ConfigError(f"--split is {split!r}; valid: {choices(_GROUPS)}")
    digests: dict[str, str] = {}
    known: set[int | str] = set()
    items: list[Item] = []
    files = _files(data)
    if split != _ALL and split not in files:
        raise MissingError(f"{data} has no file of --split {split}; it has {choices(name or _ALL for name in files)}")
    plain = _numbered_alone(files, split, answered)
    for name, path in files.items():
        asked = split in (_ALL, name)
        found = [_item(row, name, plain) for row in _rows(path, digests if asked else {})]
        _unique(found, path)
        known |= {item.id for item in found}
        items += found if asked else []

    def score(item: Item, response: Response) -> Score:
        answer = _READ[rule](response.text)
        counts = yesno.polled(answer, item.target)
        correct = (answer or "").lower() == item.target
        return Score(item, response.text, counts, correct, answer, polling.detail(response))

    def summarize(scores: Sequence[Score]) -> dict[str, Any]:
        return _summary(scores, [group for group in _GROUPS if any(group in item.groups for item in items)], rule)

    protocol = {"split": split, "read_answers": rule, "positive_class": "yes"}
    return Benchmark(tuple(items), frozenset(known), digests, protocol, score, summarize)


def _files(data: Path) -> dict[str, Path]:
    """Split to its file; an own file that is of no split stands under an empty name.

    Raises:
        MissingError: there are none.
        DataError: two of one split.
    """
    if data.is_file():
        match = _FILE.search(data.name)
        return {match[1] if match else "": data}
    found: dict[str, Path] = {}
    for path in sorted(data.glob("*")) if data.is_dir() else ():
        match = _FILE.search(path.name)
        if match and match[1] in found:
            raise DataError(
                f"{found[match[1]].name} and {path.name} in {data} are both {match[1]}: give --data one of the files, "
                "or a folder with one of each"
            )
        if match:
            found[match[1]] = path
    if not found:
        raise MissingError(
            f"no POPE questions in {data}: expected coco_pope_random.json and its like, or one file of question_id, "
            "image, text and label; vlmeval fetch pope gets the official ones"
        )
    return {name: found[name] for name in _SPLITS if name in found}


def _rows(path: Path, digests: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Where each row stands, and the row."""
    raw = path.read_bytes()
    digests[path.name] = hashlib.sha256(raw).hexdigest()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    number = 1
    try:
        if text.lstrip().startswith("["):
            rows = list(enumerate(json.loads(text), 1))
        else:
            rows = []
            for number, line in enumerate(text.split("\n"), 1):
                rows += [(number, json.loads(line))] if line.strip() else []
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno + number - 1} is not JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{path}, line {number} is JSON nested too deeply to be a question") from None
    checked = [(f"{path}, row {number}", row) for number, row in rows]
    for where, row in checked:
        if not isinstance(row, dict) or not set(_KEYS) <= row.keys():
            raise DataError(f"{where}: expected an object with {', '.join(_KEYS)}, got {row!r:.80}")
    if not checked:
        raise DataError(f"{path} holds no questions")
    return checked


def _item(placed: tuple[str, dict[str, Any]], split: str, plain: bool) -> Item:
    where, row = placed
    ident, label = row["question_id"], str(row["label"]).strip().lower()
    if not isinstance(ident, int | str) or isinstance(ident, bool):
        raise DataError(f"{where}: question_id is {ident!r:.40}, expected a number or a text")
    if label not in ("yes", "no"):
        raise DataError(f"{where}: label is {row['label']!r:.40}, expected yes or no")
    if not isinstance(row["image"], str) or not isinstance(row["text"], str) or not row["image"]:
        raise DataError(f"{where}: image and text are not both texts: {row['image']!r:.40}, {row['text']!r:.40}")
    named = polling.object_of(row["text"])
    facets = {**({"split": split} if split else {}), **({"object": named} if named else {})}
    groups = (_ALL, split) if split else (_ALL,)
    return Item(
        ident if plain or not split else f"{split}:{ident}",
        row["text"],
        (row["image"],),
        label,
        groups,
        choices=polling.CHOICES,
        facets=facets,
    )


def _numbered_alone(files: Mapping[str, Path], split: str, answered: frozenset[int | str] | None) -> bool:
    """Whether answers to a single split are numbered as its file numbers its questions."""
    if not answered or any(isinstance(ident, str) and ident.partition(":")[0] in _SPLITS for ident in answered):
        return False
    asked = [name for name in files if split in (_ALL, name)]
    if len(asked) > 1:
        raise DataError(
            f"the answers' ids are like {min(answered, key=str)!r}, and {len(asked)} files number their questions "
            f"alike: write ids like {asked[0]}:1, or say with --split which file was answered"
        )
    return True


def _unique(items: Sequence[Item], path: Path) -> None:
    seen: set[int | str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"{path}: question_id {str(item.id).rpartition(':')[2]} stands there twice")
        seen.add(item.id)


def _summary(scores: Sequence[Score], groups: Sequence[str], rule: str) -> dict[str, Any]:
    def printed(answers: Mapping[int, str | None]) -> dict[str, dict[str, float]]:
        counts = [(s.item.groups, yesno.polled(answers[place], s.item.target)) for place, s in enumerate(scores)]
        empty = yesno.polled(None, "")
        return {
            group: yesno.script(total((count for member, count in counts if group in member), empty))
            for group in groups
        }

    read = {name: {place: by(s.response) for place, s in enumerate(scores)} for name, by in _READ.items()}
    otherwise = sum(read["word"][place] != read["official"][place] for place in range(len(scores)))
    blind = {answer: printed(dict.fromkeys(range(len(scores)), answer)) for answer in ("No", "Yes")}
    summary: dict[str, Any] = {
        "script": printed(read["official"]),
        "baselines": {f"all_{answer.lower()}": _percent(found) for answer, found in blind.items()},
        "protocol": {
            "unread": {
                **{name: list(answers.values()).count(None) for name, answers in read.items()},
                "otherwise": otherwise,
                "of": len(scores),
            }
        },
        "unread": polling.unread(scores),
        "objects": breakdown.objects(scores),
        **polling.calibration(scores, groups),
    }
    summary["tables"] = [*polling.table(summary, TASK.groups), *breakdown.tables(summary)]
    summary["notes"] = [*_remarks(scores, rule, summary), *summary.get("notes", ())]
    return summary


def _percent(figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """A baseline's fractions, as reports show them."""
    return {
        group: {name: round(100 * value, 1) for name, value in row.items() if name != "yes_ratio"}
        for group, row in figures.items()
    }


def _remarks(scores: Sequence[Score], rule: str, summary: Mapping[str, Any]) -> list[str]:
    """How answers that are not plainly yes or no were counted."""
    protocol, asked = summary["protocol"], len(scores)
    remarks = []
    vague = protocol["unread"]["word"]
    if rule == "word" and vague:
        remarks.append(f"{vague} of {asked} answers hold neither yes nor no alone: they are wrong, and no yes.")
    if rule == "official" and vague:
        yes = sum(score.answer == "Yes" and yesno.by_word(score.response) is None for score in scores)
        remarks.append(
            f"{vague} of {asked} answers hold neither yes nor no alone; the official rule takes {yes} of them for yes, "
            "as every answer whose first sentence has no No, no or not; --read-answers word counts them as wrong."
        )
    otherwise = protocol["unread"]["otherwise"]
    if rule == "word" and otherwise:
        other = summary["script"][_ALL]
        remarks.append(
            f"The official script reads {otherwise} answers otherwise and prints accuracy "
            f"{100 * other['accuracy']:.1f}, F1 {100 * other['f1']:.1f}."
        )
    return remarks


def _share(name: str, label: str, part: str, of: str, **more: Any) -> Metric:
    def value(sums: Sums) -> Any:
        return 100 * ratio(sums[part], sums[of])

    return Metric(name, label, _GROUPS, value, of, proportion=(part, of), **more)


def _f1(sums: Sums) -> Any:
    return 200 * ratio(sums["caught"], sums["said_yes"] + sums["is_yes"])


def _charts(report: Mapping[str, Any]) -> list[Chart]:
    return polling.charts(report)


TASK = Task(
    name="pope",
    summary="POPE: objects that are there, and objects that are not.",
    open=_open,
    groups={_ALL: "All", "random": "Random", "popular": "Popular", "adversarial": "Adversarial"},
    metrics=(
        _share("accuracy", "Accuracy", "right", "asked"),
        _share("precision", "Precision", "caught", "said_yes"),
        _share("recall", "Recall", "caught", "is_yes"),
        Metric("f1", "F1", _GROUPS, _f1, "asked"),
        _share("yes_rate", "Says yes", "said_yes", "asked", better=None, column="rates"),
        _share("no_answer_rate", "Neither", "unread", "asked", better="low", independent=True, column="rates"),
    ),
    headline=(
        (_ALL, "accuracy"),
        (_ALL, "f1"),
        ("random", "f1"),
        ("popular", "f1"),
        ("adversarial", "f1"),
        (_ALL, "yes_rate"),
    ),
    options=(
        Option("split", "Which questions are asked.", _ALL, _GROUPS),
        Option(
            "read-answers",
            "word: the answer holds the word yes or the word no, not both; official: no where the first sentence has"
            " No, no or not, else yes. Default: word for generated answers, official for --responses.",
            None,
            ("word", "official"),
        ),
    ),
    fetch=lambda: official.fetch("pope"),
    charts=_charts,
    choices=True,
)
