"""A small AMBER-format world for tests, and a literal transcription of AMBER's formulas to check ours against."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

REAL = Path(os.environ.get("VLM_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "amber"
ASSOCIATION = {
    "person": ["people", "man", "child"],
    "child": ["kid"],
    "tree": ["forest", "leave"],
    "dog": [],
    "cat": ["animal"],
    "boat": ["ship"],
    "bus": [],
    "knife": [],
    "light": [],
}
SAFE = ["light", "orange"]
CAPTIONS = [
    (["person", "child", "tree"], ["dog", "bus"]),
    (["boat", "light"], ["cat", "person"]),
    (["dog", "dog", "knife"], ["tree"]),
    (["cat"], []),
]
QUESTIONS = [
    ("discriminative-attribute-state", "yes"),
    ("discriminative-attribute-state", "no"),
    ("discriminative-attribute-number", "yes"),
    ("discriminative-attribute-number", "no"),
    ("discriminative-attribute-action", "yes"),
    ("discriminative-attribute-action", "no"),
    ("discriminative-hallucination", "no"),
    ("discriminative-hallucination", "no"),
    ("discriminative-relation", "yes"),
    ("relation", "no"),
]


def annotations() -> list[dict[str, Any]]:
    """Four captions, then ten questions for each of the four images, by type as in AMBER."""
    rows: list[dict[str, Any]] = [
        {"id": index, "type": "generative", "truth": truth, "hallu": hallu}
        for index, (truth, hallu) in enumerate(CAPTIONS, 1)
    ]
    for kind, truth in QUESTIONS:
        for _image in CAPTIONS:
            rows.append({"id": len(rows) + 1, "type": kind, "truth": truth})
    return rows


def queries() -> list[dict[str, Any]]:
    count = len(CAPTIONS)
    return [
        {
            "id": row["id"],
            "image": f"AMBER_{(row['id'] - 1) % count + 1}.png",
            "query": "Describe this image." if row["type"] == "generative" else f"Is it so that {row['id']} holds?",
        }
        for row in annotations()
    ]


def write(folder: Path) -> Path:
    """The world as AMBER's own files, with pictures."""
    (folder / "query").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "annotations.json").write_text(json.dumps(annotations()))
    (folder / "relation.json").write_text(json.dumps(ASSOCIATION))
    (folder / "safe_words.txt").write_text("\n".join(SAFE))
    (folder / "query" / "query_all.json").write_text(json.dumps(queries()))
    for index in range(1, len(CAPTIONS) + 1):
        Image.new("RGB", (40, 30), (60 * index, 40, 200)).save(folder / "images" / f"AMBER_{index}.png")
    return folder


def respond(path: Path, answers: dict[int, Any]) -> Path:
    path.write_text(json.dumps([{"id": ident, "response": text} for ident, text in answers.items()]))
    return path


def truthful() -> dict[int, str]:
    """The right answer to every item."""
    return {
        row["id"]: f"There is a {' and a '.join(row['truth'])}."
        if row["type"] == "generative"
        else row["truth"].capitalize()
        for row in annotations()
    }


def official_discriminative(notes: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Accuracy, precision, recall, F1 by group, counted name by name as the description of the protocol has it."""
    names = {"discriminative-attribute-state": "state", "discriminative-attribute-number": "number"}
    names |= {"discriminative-attribute-action": "action", "discriminative-hallucination": "existence"}
    groups = ("all", "state", "number", "action", "existence", "relation")
    m = {f"{g}_{c}": (0.001 if c in ("n", "no", "ans") else 0) for g in groups for c in ("ok", "n", "hit", "no", "ans")}
    by_id = {note["id"]: note for note in notes}
    for row in rows:
        note = by_id[row["id"]]
        for g in ("all", names.get(note["type"], "relation")):
            m[f"{g}_n"] += 1
            if note["truth"] == "yes":
                if row["response"] == "Yes":
                    m[f"{g}_ok"] += 1
            else:
                m[f"{g}_no"] += 1
                if row["response"] == "No":
                    m[f"{g}_ok"] += 1
                    m[f"{g}_hit"] += 1
            if row["response"] == "No":
                m[f"{g}_ans"] += 1

    def figures(parts: tuple[str, ...], eps: float) -> list[float]:
        def share(top: str, bottom: str) -> float:
            return round(sum(m[f"{g}_{top}"] for g in parts) / sum(m[f"{g}_{bottom}"] for g in parts) * 100, 1)

        a, p, r = share("ok", "n"), share("hit", "ans"), share("hit", "no")
        return [a, p, r, round(2 * (p / 100) * (r / 100) / ((p / 100) + (r / 100) + eps) * 100, 1)]

    result = {g: figures((g,), 0.001 if g == "existence" else 0.0001) for g in groups[1:]}
    result["discriminative"] = figures(("all",), 0.0001)
    result["attribute"] = figures(("state", "number", "action"), 0.0001)
    return result


def official_caption(nouns: list[str], note: dict[str, Any], relation: dict[str, list[str]], safe: list[str], same):
    """The eight counters of one caption with flat lists and positions, as the description of the protocol has it."""
    vocabulary = [word for key, others in relation.items() for word in (key, *others)]
    nouns = [noun for noun in nouns if noun in vocabulary]
    lists = {}
    for name in ("truth", "hallu"):
        words, marks = [], []
        for position, word in enumerate(note[name]):
            words += relation[word]
            marks += [position] * len(relation[word])
        lists[name] = (words + note[name], marks, [0] * len(note[name]))

    def mark(name: str, place: int) -> None:
        _, marks, flags = lists[name]
        flags[marks[place] if place < len(marks) else place - len(marks)] = 1

    wrong = [0] * len(nouns)
    for i, noun in enumerate(nouns):
        if noun in safe:
            continue
        if noun in lists["truth"][0]:
            mark("truth", lists["truth"][0].index(noun))
            continue
        if noun in lists["hallu"][0]:
            mark("hallu", lists["hallu"][0].index(noun))
        for place, word in enumerate(lists["hallu"][0]):
            if same(noun, word):
                mark("hallu", place)
                break
        for place, word in enumerate(lists["truth"][0]):
            if same(noun, word):
                mark("truth", place)
                break
        else:
            wrong[i] = 1
    truth, hallu = lists["truth"][2], lists["hallu"][2]
    return (sum(wrong), len(wrong), sum(truth), len(truth), sum(hallu), len(hallu), int(sum(wrong) == 0), 1)
