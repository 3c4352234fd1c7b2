"""A test set over the sample world in AMBER's own files, with scenes of a layout no training picture has.

Formats: https://github.com/junyangwang0410/AMBER at 534babf (``data/annotations.json``, ``data/query``,
``data/relation.json``, ``data/safe_words.txt``, ``data/metrics.txt``). Deviation: existence questions have both
answers; AMBER's are all "no".
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

from vlmdata.sample import language
from vlmdata.sample.draw import draw_scene
from vlmdata.sample.language import Question
from vlmdata.sample.pictures import jpeg
from vlmdata.sample.world import GROUNDS, KINDS, TEST_LAYOUT, Scene, scenes

__all__ = ["write_amber"]

_ASSOCIATIONS = {
    "ball": ["toy"],
    "bird": ["animal"],
    "boat": ["ship"],
    "box": ["gift"],
    "car": ["vehicle"],
    "cat": ["animal"],
    "cup": ["mug"],
    "flower": ["plant"],
    "house": ["building"],
    "person": ["man", "woman", "child"],
    "tree": ["plant"],
    "water": ["sea"],
}
_SAFE_WORDS = ("light", "line")
_TYPES = {
    "state": "discriminative-attribute-state",
    "number": "discriminative-attribute-number",
    "action": "discriminative-attribute-action",
    "existence": "discriminative-hallucination",
}
_COUNTERS = ("correct", "no", "ans_no")
_GROUPS = ("qa", "as_qa", "an_qa", "aa_qa", "asso_qa", "ha_qa")


def write_amber(folder: Path, seed: int, count: int) -> dict[str, int]:
    """Pictures, queries and annotations; ids run from 1 in AMBER's order of groups."""
    drawn = list(itertools.islice(scenes("amber", seed, TEST_LAYOUT), count))
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(drawn, start=1):
        (images / f"AMBER_{i}.jpg").write_bytes(jpeg(draw_scene(scene)))
    entries = [*_generative(drawn), *_discriminative(drawn, seed)]
    annotations, queries = [], []
    for number, (image, query, note) in enumerate(entries, start=1):
        annotations.append({"id": number, **note})
        queries.append({"id": number, "image": image, "query": query})
    kinds = [_group(note["type"]) for note in annotations]
    written = {"annotations.json": _dump(folder / "annotations.json", annotations)}
    for name, groups in (
        ("all", ("generative", "attribute", "existence", "relation")),
        ("generative", ("generative",)),
        ("discriminative", ("attribute", "existence", "relation")),
        ("discriminative-attribute", ("attribute",)),
        ("discriminative-existence", ("existence",)),
        ("discriminative-relation", ("relation",)),
    ):
        some = [query for query, kind in zip(queries, kinds, strict=True) if kind in groups]
        _dump(folder / "query" / f"query_{name}.json", some)
    _dump(folder / "relation.json", {word: _ASSOCIATIONS.get(word, []) for word in (*KINDS, *GROUNDS)})
    (folder / "safe_words.txt").write_text("\n".join(_SAFE_WORDS) + "\n")
    (folder / "metrics.txt").write_text("\n".join(_metric_lines()) + "\n")
    return {str(folder / name): rows for name, rows in written.items()}


def _generative(drawn: list[Scene]) -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for i, scene in enumerate(drawn, start=1):
        absent = [kind for kind in KINDS if kind not in scene.kinds and kind not in scene.expected]
        hallu = [*scene.expected, *absent][:5]
        note = {"type": "generative", "truth": [*scene.kinds, scene.ground], "hallu": hallu}
        found.append((f"AMBER_{i}.jpg", language.DESCRIBE, note))
    return found


def _discriminative(drawn: list[Scene], seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    found: dict[str, list[tuple[str, str, dict[str, Any]]]] = {"attribute": [], "existence": [], "relation": []}
    for i, scene in enumerate(drawn, start=1):
        rng = random.Random(f"amber-questions/{seed}/{i}")
        for question in _pick(language.questions(scene, rng), rng):
            note = {"type": _type(question), "truth": "yes" if question.truth else "no"}
            found[_group(note["type"])].append((f"AMBER_{i}.jpg", question.text, note))
    return [entry for group in found.values() for entry in group]


def _pick(asked: list[Question], rng: random.Random) -> list[Question]:
    """All about existence and relation; of attributes two pairs of states and one pair each of the others."""
    found = [question for question in asked if question.topic in ("existence", "relation")]
    for topic, pairs in (("state", 2), ("number", 1), ("action", 1)):
        some = [question for question in asked if question.topic == topic]
        starts = rng.sample(range(0, len(some), 2), min(pairs, len(some) // 2))
        for start in sorted(starts):
            found += some[start : start + 2]
    return found


def _type(question: Question) -> str:
    if question.topic == "relation":
        return "discriminative-relation" if question.truth else "relation"
    return _TYPES[question.topic]


def _group(kind: str) -> str:
    if "attribute" in kind:
        return "attribute"
    return {"discriminative-hallucination": "existence", "generative": "generative"}.get(kind, "relation")


def _metric_lines() -> list[str]:
    names = ["chair", "safe_cover", "hallu_cover", "non_hallu"]
    names += [f"{group}_{counter}" for group in _GROUPS for counter in _COUNTERS]
    return [line for name in names for line in (f"{name}_score=0", f"{name}_num=0.001")]


def _dump(path: Path, rows: Any) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return len(rows)
