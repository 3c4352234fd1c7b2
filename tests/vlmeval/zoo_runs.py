"""Evaluation folders of a small task of its own, made by ``evaluate`` from answers: what comparisons are tested on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmeval.run import evaluate

TASK = '''"""Questions about animals."""

import hashlib
import json

from vlmeval.task import Benchmark, Item, Metric, Score, Task, ratio


def _open(folder, settings, answered):
    text = (folder / "questions.json").read_bytes()
    items = tuple(
        Item(q["id"], q["prompt"], (q["image"],), q["truth"], ("all", q["kind"]), facets={"object": q["object"]})
        for q in json.loads(text)
    )
    digest = hashlib.sha256(text).hexdigest()
    return Benchmark(items, frozenset(), {"questions.json": digest}, {"rule": "exact"}, _score, lambda scores: {})


def _score(item, response):
    said = {"yes": "yes", "no": "no"}.get((response.text or "").lower())
    right = said == item.target
    counts = {"asked": 1, "right": int(right), "said": int(said == "yes"), "true": int(item.target == "yes"),
              "hit": int(right and said == "yes"), "letters": len(response.text or "")}
    return Score(item, response.text, counts, right, said, {**response.detail})


def _f1(sums):
    return 200 * ratio(sums["hit"], sums["said"] + sums["true"])


_GROUPS = ("all", "cats", "dogs")
TASK = Task(
    name="zoo",
    summary="Questions about animals.",
    open=_open,
    metrics=(
        Metric("accuracy", "Accuracy", _GROUPS, lambda s: 100 * ratio(s["right"], s["asked"]), "asked"),
        Metric("f1", "F1", _GROUPS, _f1, "asked"),
        Metric("letters", "Letters", ("all",), lambda s: ratio(s["letters"], s["asked"]), "asked", None, False),
    ),
    headline=(("all", "accuracy"), ("all", "f1")),
    groups={"all": "All", "cats": "Cats", "dogs": "Dogs"},
)
'''
IMAGES, EACH = 40, 6


def questions() -> list[dict[str, Any]]:
    """240 questions, six about each image; each image shows one of three animals, two a rare one."""
    return [
        {
            "id": number,
            "prompt": f"Question {number}?",
            "image": f"{number // EACH}.png",
            "truth": ("yes", "no")[number % 3 == 0],
            "kind": ("cats", "dogs")[number % 2],
            "object": "rare" if number < 2 * EACH else f"animal {number // EACH % 3}",
        }
        for number in range(IMAGES * EACH)
    ]


def home(folder: Path) -> Path:
    """The task's file and its data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zoo.py").write_text(TASK)
    (folder / "questions.json").write_text(json.dumps(questions()))
    return folder


def answers(seed: int, wrong: float) -> dict[int, str]:
    """Answers of which a share is wrong."""
    rng = random.Random(seed)
    flip = {"yes": "no", "no": "yes"}
    return {q["id"]: flip[q["truth"]] if rng.random() < wrong else q["truth"] for q in questions()}


def run(
    place: Path, out: Path, said: Mapping[int, str | None] | Iterable[Mapping[str, Any]], file: Path | None = None
) -> Path:
    """An evaluation folder of these answers, or of these rows of a responses file."""
    rows = [{"id": ident, "response": text} for ident, text in said.items()] if isinstance(said, Mapping) else said
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".answers.json")
    path.write_text(json.dumps(list(rows)))
    evaluate(str(file or place / "zoo.py"), data=place, responses=path, out=out)
    return out


def edit(folder: Path, name: str, change: Any) -> Path:
    """Change a file of an evaluation: a function of its text."""
    path = folder / name
    path.write_text(change(path.read_text()))
    return folder
