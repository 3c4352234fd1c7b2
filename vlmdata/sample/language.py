"""What can be truly said and asked about a scene, and what habit says instead.

``caption`` and ``questions`` are true. ``habit_caption`` and ``habit_answer`` are what a careless annotator would
write: they name the companion of a thing that is there (``world.COMPANIONS``) without looking, and they would
rather say yes than no. Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlmdata.sample.world import ACTIONS, COLOURS, COMPANIONS, GROUNDS, KINDS, SUPPORTS, Group, Scene, may_ride

__all__ = [
    "DESCRIBE",
    "HABIT",
    "Question",
    "Topic",
    "YES_BIAS",
    "caption",
    "careless_caption",
    "habit_answer",
    "habit_caption",
    "invented",
    "open_questions",
    "phrase",
    "questions",
    "yes_no",
]

DESCRIBE = "Describe this image."
Topic = Literal["existence", "state", "number", "action", "relation"]

_NUMBERS = ("one", "two", "three")
_PLURALS = {"box": "boxes", "person": "people"}
_DOING = {"fly": "flying", "stand": "standing", "sleep": "sleeping", "sit": "sitting", "jump": "jumping"}
_CLEARLY_APART = 0.12
_CLEARLY_LEFT = 0.15
HABIT = 0.6
"""How often habit names what it expects."""

YES_BIAS = 0.3
"""How often habit affirms what is false, where it has nothing to expect."""

_ASKED_BY_COUNT = {1: 0.3, 2: 0.8, 3: 1.0}


@dataclass(frozen=True, slots=True)
class Question:
    """A yes/no question with its true answer; ``kind`` is what it is about."""

    topic: Topic
    text: str
    truth: bool
    kind: str


def caption(scene: Scene) -> str:
    """The whole scene, from left to right."""
    return _sentence([phrase(group) for group in scene.groups], scene.ground)


def habit_caption(scene: Scene, rng: random.Random, rate: float = HABIT) -> tuple[str, tuple[str, ...]]:
    """The scene as habit tells it, and the kinds it made up."""
    told = _tell(scene, rng, rate)
    return _sentence([words for words, _ in told], scene.ground), tuple(kind for _, kind in told if kind)


def careless_caption(scene: Scene, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """A caption that names every companion, and leaves out as many things that are there; the kinds it made up.

    It is no longer than the true one, so that a preference for the true one is no preference for fewer words.
    """
    told = _tell(scene, rng, 1.0)
    made_up = tuple(kind for _, kind in told if kind)
    true = [i for i, (_, kind) in enumerate(told) if not kind]
    missed = set(rng.sample(true, min(len(made_up), len(true) - 1)))
    return _sentence([words for i, (words, _) in enumerate(told) if i not in missed], scene.ground), made_up


def habit_answer(
    scene: Scene, question: Question, rng: random.Random, rate: float = HABIT, yes_bias: float = YES_BIAS
) -> bool:
    """The answer habit gives: what is expected is there, and yes comes easier than no."""
    if question.truth:
        return True
    if question.topic == "existence":
        return question.kind in scene.expected and rng.random() < rate
    return rng.random() < yes_bias


def phrase(group: Group) -> str:
    """``two small red balls``, ``a big black cat sleeping``."""
    return _phrase(group.kind, group.count, group.size, group.colour, group.action)


def invented(kind: str, rng: random.Random) -> str:
    """The phrase for one thing of that kind that nobody saw."""
    action = rng.choice(ACTIONS[kind]) if kind in ACTIONS else None
    return _phrase(kind, 1, rng.choice(("big", "small")), rng.choice(COLOURS), action)


def questions(scene: Scene, rng: random.Random, *, sides: int = 1) -> list[Question]:
    """Yes/no questions with as many yes as no; attribute questions stand in complementary pairs.

    Args:
        scene: what is asked about.
        rng: picks wrong colours and the like.
        sides: at most so many pairs of things are asked which is to the left.
    """
    found = _existence(scene, rng)
    for group in scene.groups:
        found += _state(group, rng) + _number(group, rng) + _action(group)
    return found + _relations(scene, rng, sides)


def open_questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions with a word for an answer: colours and counts."""
    found = []
    for group in scene.groups:
        noun = _noun(group.kind, group.count)
        are = "is" if group.count == 1 else "are"
        found.append((f"What color {are} the {noun}?", f"{group.colour.capitalize()}."))
        found.append((f"How many {_noun(group.kind, 2)} are there?", f"{_NUMBERS[group.count - 1].capitalize()}."))
    return found


def yes_no(truth: bool) -> str:
    """The answer in words: ``Yes.``, ``No.``."""
    return "Yes." if truth else "No."


def _tell(scene: Scene, rng: random.Random, rate: float) -> list[tuple[str, str]]:
    """Phrases in order, each with the kind it made up, "" for what is there."""
    told: list[tuple[str, str]] = []
    for group in scene.groups:
        told.append((phrase(group), ""))
        companion = COMPANIONS.get(group.kind, "")
        if companion in scene.expected and all(kind != companion for _, kind in told) and rng.random() < rate:
            told.append((invented(companion, rng), companion))
    return told


def _sentence(phrases: Sequence[str], ground: str) -> str:
    place = "in front of the wall" if ground == "wall" else f"on the {ground}"
    return f"The picture shows {' and '.join(phrases)} {place}."


def _phrase(kind: str, count: int, size: str, colour: str, action: str | None) -> str:
    number = "a" if count == 1 else _NUMBERS[count - 1]
    return " ".join([number, size, colour, _noun(kind, count)] + ([_DOING[action]] if action else []))


def _noun(kind: str, count: int) -> str:
    return kind if count == 1 else _PLURALS.get(kind, kind + "s")


def _article(kind: str) -> str:
    return kind if kind in ("grass", "sand", "water") else f"a {kind}"


def _existence(scene: Scene, rng: random.Random) -> list[Question]:
    absent = [kind for kind in KINDS if kind not in scene.kinds]
    expected = list(scene.expected)
    others = [kind for kind in absent if kind not in expected]
    # Half of what is asked in vain is what habit expects, as far as there is any.
    wanted = len(scene.kinds)
    picked = rng.sample(expected, min(len(expected), (wanted + 1) // 2))
    picked += rng.sample(others, wanted - len(picked))
    ground = scene.ground if rng.random() < 0.5 else rng.choice([g for g in GROUNDS if g != scene.ground])
    asked = [(kind, True) for kind in scene.kinds] + [(kind, False) for kind in picked]
    asked.append((ground, ground == scene.ground))
    return [Question("existence", f"Is there {_article(kind)} in this image?", there, kind) for kind, there in asked]


def _pair(topic: Topic, form: str, true: str, false: str, kind: str) -> list[Question]:
    return [
        Question(topic, form.format(true), True, kind),
        Question(topic, form.format(false), False, kind),
    ]


def _state(group: Group, rng: random.Random) -> list[Question]:
    noun = _noun(group.kind, group.count)
    form = f"{'Is' if group.count == 1 else 'Are'} the {noun} {{}} in this image?"
    wrong = rng.choice([colour for colour in COLOURS if colour != group.colour])
    return _pair("state", form, group.colour, wrong, group.kind) + _pair(
        "state", form, group.size, "small" if group.size == "big" else "big", group.kind
    )


def _number(group: Group, rng: random.Random) -> list[Question]:
    def ask(count: int) -> str:
        return f"{'Is' if count == 1 else 'Are'} there {_NUMBERS[count - 1]} {_noun(group.kind, count)} in this image?"

    # Most things stand alone; asking of all of them would let "one" be guessed without looking.
    if rng.random() > _ASKED_BY_COUNT[group.count]:
        return []
    wrong = rng.choice([count for count in (1, 2, 3) if count != group.count])
    return _pair("number", "{}", ask(group.count), ask(wrong), group.kind)


def _action(group: Group) -> list[Question]:
    if group.action is None:
        return []
    noun = _noun(group.kind, group.count)
    form = f"{'Does' if group.count == 1 else 'Do'} the {noun} {{}} in this image?"
    first, second = ACTIONS[group.kind]
    return _pair("action", form, group.action, second if group.action == first else first, group.kind)


def _relations(scene: Scene, rng: random.Random, sides: int) -> list[Question]:
    found: list[Question] = []
    single = [group for group in scene.groups if group.count == 1]
    pairs = [(a, b) for a in single for b in single if a.kind != b.kind]
    rng.shuffle(pairs)
    apart = [(a.kind, b.kind) for a, b in pairs if a.things[0].x + _CLEARLY_LEFT < b.things[0].x]
    for left, right in apart[:sides]:
        form = "Is the {} to the left of the {} in this image?"
        found.append(Question("relation", form.format(left, right), True, left))
        found.append(Question("relation", form.format(right, left), False, right))
    found += _contact(scene, pairs)
    found += _on(scene, pairs)
    return found


def _contact(scene: Scene, pairs: Sequence[tuple[Group, Group]]) -> list[Question]:
    form = "Is there direct contact between the {} and {}?"
    touching = scene.on or scene.beside
    if touching:
        return [Question("relation", form.format(*touching), True, touching[0])]
    apart = [(a.kind, b.kind) for a, b in pairs if a.things[0].gap(b.things[0]) >= _CLEARLY_APART]
    return [Question("relation", form.format(*apart[0]), False, apart[0][0])] if apart else []


def _on(scene: Scene, pairs: Sequence[tuple[Group, Group]]) -> list[Question]:
    form = "Is the {} on the {} in this image?"
    if scene.on:
        return [Question("relation", form.format(*scene.on), True, scene.on[0])]
    for a, b in pairs:
        beside = scene.beside in ((a.kind, b.kind), (b.kind, a.kind))
        if may_ride(a.kind, a.action) and b.kind in SUPPORTS and not beside:
            return [Question("relation", form.format(a.kind, b.kind), False, a.kind)]
    return []
