"""The drawn world: what a scene is, and how scenes are made up.

A scene is a ground and a few groups of things. All things of a group share kind, colour, size and action, and no
kind stands in two groups, so "the ball" or "the balls" always has one meaning. Coordinates are fractions of the
picture's side, y downwards. Standard library only; the same seed gives the same scene on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = [
    "ACTIONS",
    "COLOURS",
    "COMPANIONS",
    "GROUNDS",
    "Group",
    "KINDS",
    "Layout",
    "SIZES",
    "SUPPORTS",
    "Scene",
    "TEST_LAYOUT",
    "TRAIN_LAYOUT",
    "Thing",
    "compose",
    "may_ride",
    "scenes",
]

KINDS = ("ball", "boat", "box", "car", "cup", "flower", "house", "star", "tree", "bird", "cat", "person")
ACTIONS: Mapping[str, tuple[str, str]] = {
    "bird": ("fly", "stand"),
    "cat": ("sleep", "sit"),
    "person": ("jump", "stand"),
}
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
SIZES = ("big", "small")
GROUNDS = ("grass", "road", "sand", "water", "wall")
SUPPORTS = ("box", "car", "house")
COMPANIONS: Mapping[str, str] = {
    "boat": "person",
    "box": "cup",
    "car": "house",
    "cat": "ball",
    "cup": "flower",
    "tree": "bird",
}
"""What people expect beside a thing; captions written from habit name it whether it is there or not."""

_SIDE = {"big": 0.34, "small": 0.23}
_ASPECT = {"car": 0.62, "boat": 0.9, "person": 1.25, "cat": 0.9, "bird": 0.85}


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn thing and its box."""

    kind: str
    colour: str
    size: str
    action: str | None
    left: float
    top: float
    right: float
    bottom: float

    @property
    def x(self) -> float:
        """Horizontal centre."""
        return (self.left + self.right) / 2

    def gap(self, other: Thing) -> float:
        """Distance between the two boxes; 0 where they meet."""
        across = max(self.left - other.right, other.left - self.right, 0.0)
        down = max(self.top - other.bottom, other.top - self.bottom, 0.0)
        return max(across, down)


@dataclass(frozen=True, slots=True)
class Group:
    """Things of one kind that look alike."""

    kind: str
    colour: str
    size: str
    action: str | None
    things: tuple[Thing, ...]

    @property
    def count(self) -> int:
        """How many things."""
        return len(self.things)

    @property
    def left(self) -> float:
        """Where the group begins."""
        return min(thing.left for thing in self.things)


@dataclass(frozen=True, slots=True)
class Scene:
    """A ground and its groups, from left to right.

    Attributes:
        on: (upper kind, lower kind) of a thing that stands on another, if any.
        beside: two kinds that touch side by side, if any.
        texture: seed of the ground's texture.
    """

    ground: str
    busy: bool
    groups: tuple[Group, ...]
    on: tuple[str, str] | None
    beside: tuple[str, str] | None
    texture: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are there, from left to right."""
        return tuple(group.kind for group in self.groups)

    @property
    def expected(self) -> tuple[str, ...]:
        """Companions of what is there that are not there themselves."""
        found = dict.fromkeys(COMPANIONS[kind] for kind in self.kinds if kind in COMPANIONS)
        return tuple(kind for kind in found if kind not in self.kinds)


@dataclass(frozen=True, slots=True)
class Layout:
    """How scenes are laid out; training and test pictures have different ones.

    Attributes:
        groups: weights of 2, 3, 4 groups.
        counts: weights of 1, 2, 3 things in a group.
        contact: chance that one thing stands on another; the same again for side by side.
        busy: chance of a busy ground.
        rows: things keep to this many horizontal bands; 0 lets them stand anywhere.
    """

    groups: tuple[int, int, int]
    counts: tuple[int, int, int]
    contact: float
    busy: float
    rows: int


TRAIN_LAYOUT = Layout(groups=(3, 4, 2), counts=(6, 3, 3), contact=0.3, busy=0.4, rows=0)
TEST_LAYOUT = Layout(groups=(2, 4, 3), counts=(5, 4, 3), contact=0.25, busy=0.55, rows=3)

_MAX_THINGS = 6
_SPACE = 0.05
_OVERLAP = 0.012


def scenes(name: str, seed: int, layout: Layout) -> Iterator[Scene]:
    """An endless stream of scenes; ``name`` keeps streams of one seed apart."""
    index = 0
    while True:
        yield compose(random.Random(f"{name}/{seed}/{index}"), layout)
        index += 1


def compose(rng: random.Random, layout: Layout, kinds: tuple[str, ...] = ()) -> Scene:
    """One scene; ``kinds`` must be part of it."""
    while True:
        scene = _attempt(rng, layout, kinds)
        if scene is not None:
            return scene


def may_ride(kind: str, action: str | None) -> bool:
    """Whether such a thing may stand on another."""
    return kind not in ("boat", "house", "tree") and action not in ("fly", "jump")


def _attempt(rng: random.Random, layout: Layout, kinds: tuple[str, ...]) -> Scene | None:
    wanted = rng.choices((2, 3, 4), layout.groups)[0]
    chosen = list(kinds) + rng.sample([k for k in KINDS if k not in kinds], max(0, wanted - len(kinds)))
    looks = {kind: _look(rng, kind) for kind in chosen}
    counts = {kind: rng.choices((1, 2, 3), layout.counts)[0] for kind in chosen}
    while sum(counts.values()) > _MAX_THINGS:
        counts[max(counts, key=lambda kind: counts[kind])] -= 1
    placed: dict[str, list[Thing]] = {kind: [] for kind in chosen}
    on = beside = None
    if rng.random() < layout.contact:
        on = _place_on(rng, chosen, looks, counts, placed)
    elif rng.random() < layout.contact / (1 - layout.contact):
        beside = _place_beside(rng, chosen, looks, counts, placed)
    for kind in chosen:
        while len(placed[kind]) < counts[kind]:
            thing = _place(rng, layout, kind, looks[kind], [t for things in placed.values() for t in things])
            if thing is None:
                return None
            placed[kind].append(thing)
    groups = [Group(kind, *looks[kind], things=tuple(placed[kind])) for kind in chosen]
    groups.sort(key=lambda group: group.left)
    return Scene(
        ground=rng.choice(GROUNDS),
        busy=rng.random() < layout.busy,
        groups=tuple(groups),
        on=on,
        beside=beside,
        texture=rng.randrange(2**31),
    )


def _look(rng: random.Random, kind: str) -> tuple[str, str, str | None]:
    return rng.choice(COLOURS), rng.choice(SIZES), rng.choice(ACTIONS[kind]) if kind in ACTIONS else None


def _extent(rng: random.Random, kind: str, size: str) -> tuple[float, float]:
    side = _SIDE[size] * rng.uniform(0.92, 1.08)
    aspect = _ASPECT.get(kind, 1.0)
    return (side / aspect, side) if aspect > 1 else (side, side * aspect)


def _thing(kind: str, look: tuple[str, str, str | None], left: float, top: float, extent: tuple[float, float]) -> Thing:
    return Thing(kind, *look, left=left, top=top, right=left + extent[0], bottom=top + extent[1])


def _place(
    rng: random.Random, layout: Layout, kind: str, look: tuple[str, str, str | None], others: list[Thing]
) -> Thing | None:
    for _ in range(60):
        extent = _extent(rng, kind, look[1])
        left = rng.uniform(0.01, 0.99 - extent[0])
        top = rng.uniform(0.01, 0.99 - extent[1])
        if layout.rows:
            band = (rng.randrange(layout.rows) + 0.5) / layout.rows
            top = min(max(band - extent[1] / 2 + rng.uniform(-0.04, 0.04), 0.01), 0.99 - extent[1])
        thing = _thing(kind, look, left, top, extent)
        if all(thing.gap(other) >= _SPACE for other in others):
            return thing
    return None


_Looks = Mapping[str, tuple[str, str, str | None]]


def _place_on(
    rng: random.Random, chosen: list[str], looks: _Looks, counts: dict[str, int], placed: dict[str, list[Thing]]
) -> tuple[str, str] | None:
    supports = [kind for kind in chosen if kind in SUPPORTS]
    riders = [kind for kind in chosen if may_ride(kind, looks[kind][2])]
    pairs = [(upper, lower) for upper in riders for lower in supports if upper != lower]
    if not pairs:
        return None
    upper, lower = rng.choice(pairs)
    counts[upper] = counts[lower] = 1
    below, above = _extent(rng, lower, looks[lower][1]), _extent(rng, upper, looks[upper][1])
    left = rng.uniform(0.06, 0.94 - below[0])
    top = rng.uniform(0.02 + above[1], 0.99 - below[1])
    base = _thing(lower, looks[lower], left, top, below)
    start = min(max(base.x - above[0] / 2 + rng.uniform(-0.03, 0.03), 0.01), 0.99 - above[0])
    placed[lower].append(base)
    placed[upper].append(_thing(upper, looks[upper], start, top - above[1] + _OVERLAP, above))
    return upper, lower


def _place_beside(
    rng: random.Random, chosen: list[str], looks: _Looks, counts: dict[str, int], placed: dict[str, list[Thing]]
) -> tuple[str, str]:
    first, second = rng.sample(chosen, 2)
    counts[first] = counts[second] = 1
    one, two = _extent(rng, first, looks[first][1]), _extent(rng, second, looks[second][1])
    left = rng.uniform(0.01, 0.99 - one[0] - two[0])
    bottom = rng.uniform(max(one[1], two[1]) + 0.01, 0.99)
    placed[first].append(_thing(first, looks[first], left, bottom - one[1], one))
    placed[second].append(_thing(second, looks[second], left + one[0] - _OVERLAP, bottom - two[1], two))
    return first, second
