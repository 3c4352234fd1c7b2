"""What one process of ``benchmarks.gpu`` is to do."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu_shapes import SHAPES, Shape

__all__ = ["SIDES", "WORKS", "Setting", "shape_of"]

# Work -> method, data, gradient checkpointing.
WORKS = {
    "dpo": ("dpo", "pairs", True),
    "dpo-off": ("dpo", "pairs", False),
    "sft": ("sft", "rows", True),
    "sft-off": ("sft", "rows", False),
    "ask": ("ask", "pictures", False),
}
# The first side's answers are compared with the others', the last side's time is divided by the others'.
SIDES = {
    "dpo": ("vlmtrain", "vlmtrain-once", "trl"),
    "dpo-off": ("vlmtrain", "trl"),
    "sft": ("vlmtrain", "trl"),
    "sft-off": ("vlmtrain", "trl"),
    "ask": ("vlmeval", "vlmeval-words", "generate"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One process.

    Attributes:
        work: key of ``WORKS``; ``make`` and ``rate`` prepare.
        model: key of ``SHAPES``.
        side: of the work.
        folder: of the model and its data.
        tiny: shrink the shape.
        device: ``cuda`` or ``cpu``.
        dtype: of the weights.
        pairs: of a DPO step; an SFT step has twice as many rows.
        warm: steps before those that are timed.
        steps: timed steps.
        pictures: to ask about.
        questions: about each of them.
        new_tokens: most of an answer in words.
        sets: further configuration keys of vlmtrain's side, ``key=value``.
    """

    work: str
    model: str
    side: str
    folder: str
    tiny: bool
    device: str
    dtype: str
    pairs: int
    warm: int
    steps: int
    pictures: int
    questions: int
    new_tokens: int = 3
    sets: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return shape_of(self.model, self.tiny)

    @property
    def batch(self) -> int:
        """Rows or pairs of a step."""
        return self.pairs if self.work.startswith("dpo") else 2 * self.pairs

    @property
    def all_steps(self) -> int:
        """Those before, the timed ones, and the one that is counted."""
        return self.warm + self.steps + 1


def shape_of(model: str, tiny: bool) -> Shape:
    """The shape of that name, or a tiny one of its kind."""
    return SHAPES[model].shrunk() if tiny else SHAPES[model]
