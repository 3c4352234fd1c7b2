"""What the embedded model is taught: pictures of the sample world with captions and answers written from habit.

Every lesson is one picture with several turns. In a *branched* lesson each turn sees the picture and itself only
(a block mask over one shared image prefix), so that an answer must come from the picture; in a *conversation* the
turns follow each other, so that the model learns to go on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlmdata.sample import language
from vlmdata.sample.world import ACTIONS, COLOURS, GROUNDS, KINDS, SIZES, Scene
from vlmtrain.tiny.architecture import IMAGE_SIDE, IMAGE_TOKENS, PATCH

if TYPE_CHECKING:
    from transformers import LlavaProcessor

__all__ = ["Batch", "CELL_CLASSES", "cells", "lesson", "make_batch", "pixels"]

Turn = tuple[str, str]

_ACTION_NAMES = tuple(dict.fromkeys(action for pair in ACTIONS.values() for action in pair))
CELL_CLASSES = (len(KINDS) + len(GROUNDS), len(COLOURS) + 1, len(SIZES) + 1, len(_ACTION_NAMES) + 1)
"""Classes of the four questions asked of every cell: what is there, its colour, its size, what it does."""

_PER_TOPIC = {"existence": 4, "state": 2, "number": 1, "action": 1, "relation": 2}
_IN_FOCUS = 6


@dataclass(frozen=True, slots=True)
class Batch:
    """Lessons as tensors.

    Attributes:
        text_ids: `[B, T]` tokens after the image prefix, padded.
        segments: `[B, T]` turn number from 1 on, 0 for padding; in a conversation all are 1.
        positions: `[B, T]` position of each token behind the image prefix, restarting with every branch.
        labels: `[B, T]` the token that should come next, -100 where nothing is asked.
        weights: `[B, T]` weight of each label, so that turns and not tokens count alike.
    """

    text_ids: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


def pixels(scenes: Sequence[Scene], processor: LlavaProcessor) -> torch.Tensor:
    """Pictures as the image processor sees them before normalisation: uint8 `[N, 3, 64, 64]`."""
    from vlmdata.sample.draw import draw_scene

    found = []
    for start in range(0, len(scenes), 256):
        drawn = [draw_scene(scene) for scene in scenes[start : start + 256]]
        out = processor.image_processor(drawn, do_rescale=False, do_normalize=False, return_tensors="pt")
        found.append(out["pixel_values"].to(torch.uint8))
    return torch.cat(found)


def cells(scene: Scene) -> np.ndarray:
    """What stands in the middle of each cell: int64 `[64, 4]`, one column a question of ``CELL_CLASSES``."""
    grid = IMAGE_SIDE // PATCH
    found = np.zeros((grid, grid, 4), dtype=np.int64)
    found[..., 0] = len(KINDS) + GROUNDS.index(scene.ground)
    things = sorted((t for group in scene.groups for t in group.things), key=lambda thing: -thing.bottom)
    middles = (np.arange(grid) + 0.5) / grid
    for thing in things:
        rows = (middles >= thing.top) & (middles <= thing.bottom)
        columns = (middles >= thing.left) & (middles <= thing.right)
        action = 0 if thing.action is None else 1 + _ACTION_NAMES.index(thing.action)
        look = (KINDS.index(thing.kind), 1 + COLOURS.index(thing.colour), 1 + SIZES.index(thing.size), action)
        found[np.ix_(rows, columns)] = look
    return found.reshape(IMAGE_TOKENS, 4)


def lesson(
    scene: Scene,
    rng: random.Random,
    *,
    habit: float | None,
    yes_bias: float = language.YES_BIAS,
    focus: frozenset[str] = frozenset(),
) -> list[Turn]:
    """A caption and some answers, true or as habit has them; the caption comes first.

    Args:
        scene: what the picture shows.
        rng: picks the questions, and what habit says.
        habit: how often habit names what it expects; None is nothing but the truth.
        yes_bias: how often habit affirms what is false, where it has nothing to expect.
        focus: topics asked of most; none asks of all in proportion.
    """
    caption = language.caption(scene) if habit is None else language.habit_caption(scene, rng, habit)[0]
    asked = language.questions(scene, rng, sides=3 if focus else 1)
    rng.shuffle(asked)
    left = {topic: _IN_FOCUS if topic in focus else 1 for topic in _PER_TOPIC} if focus else dict(_PER_TOPIC)
    turns: list[Turn] = [(language.DESCRIBE, caption)]
    for question in asked:
        if left[question.topic]:
            left[question.topic] -= 1
            said = question.truth
            if habit is not None:
                said = language.habit_answer(scene, question, rng, habit, yes_bias)
            turns.append((question.text, language.yes_no(said)))
    return turns + rng.sample(language.open_questions(scene), 2)


def make_batch(
    lessons: Sequence[Sequence[Turn]], encode: Callable[[list[str]], list[list[int]]], *, conversation: bool
) -> Batch:
    """Tokens, segments, labels of some lessons.

    Args:
        lessons: the turns of each picture.
        encode: texts to token ids; special tokens in the text become their ids.
        conversation: turns follow each other (the caption is left out) instead of branching.
    """
    if conversation:
        lessons = [turns[1:] for turns in lessons]
    asked = encode([f"{question}<|end|><|assistant|>" for turns in lessons for question, _ in turns])
    answered = encode([f"{answer}<|end|>" for turns in lessons for _, answer in turns])
    (user,) = encode(["<|user|>"])
    rows, taken = [], 0
    for turns in lessons:
        pairs = list(zip(asked[taken : taken + len(turns)], answered[taken : taken + len(turns)], strict=True))
        taken += len(turns)
        rows.append(_row(pairs, user, conversation))
    return _pad(rows)


_Row = list[tuple[int, int, int, int, float]]


def _row(pairs: Sequence[tuple[list[int], list[int]]], user: list[int], conversation: bool) -> _Row:
    row: _Row = []
    for turn, (question, answer) in enumerate(pairs, start=1):
        opening = user if conversation and turn > 1 else []
        ids = opening + question + answer
        start = len(row) if conversation else 0
        first = len(opening) + len(question)
        for i, token in enumerate(ids):
            label = ids[i + 1] if first - 1 <= i < len(ids) - 1 else -100
            row.append((token, 1 if conversation else turn, start + i, label, 1 / len(answer)))
    return row


def _pad(rows: Sequence[_Row]) -> Batch:
    width = -(-max(map(len, rows)) // 16) * 16
    blank = (0, 0, 0, -100, 0.0)
    full = [row + [blank] * (width - len(row)) for row in rows]
    columns = [torch.tensor([[entry[k] for entry in row] for row in full]) for k in range(5)]
    return Batch(*columns)
