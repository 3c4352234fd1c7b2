"""Evaluation by what a model writes: figures of ``eval_metric`` and of AMBER, added to every evaluation of a run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import DataError
from vlmtrain.evaluate import Amber, Judge
from vlmtrain.watching.answers import Asker, Prompt, askable, prompts_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmtrain.job import Job

__all__ = ["Scores", "scores"]

_ANSWER_TOKENS = 16


class Scores:
    """Asks the held-out rows, and AMBER's items, and scores the answers.

    Attributes:
        asked: how many prompts an evaluation answers.
        names: of its figures, that of ``eval_metric`` first.
    """

    def __init__(self, asker: Asker, job: Job) -> None:
        """Choose what is asked, the same at every evaluation."""
        w = job.config.watching
        self._asker, self._tokens = asker, w.eval_tokens
        self._judge: Judge | None = None
        self._amber: Amber | None = None
        self._rows: list[Prompt] = []
        self._items: list[Prompt] = []
        if w.eval_metric != "loss" and not w.eval_metric.startswith("amber_"):
            places = askable(job)
            chosen = sorted(random.Random(0).sample(places, min(w.eval_rows, len(places))))
            self._rows = [prompt for prompt in prompts_of(job.eval_rows, chosen) if prompt is not None]
            texts = [prompt.text for prompt in self._rows], [prompt.reference for prompt in self._rows]
            self._judge = Judge(w.eval_metric, *texts)
        if w.eval_amber:
            self._amber = Amber(w.eval_amber, w.eval_amber_images, w.eval_rows)
            self._items = [_item(item, self._amber.pictures) for item in self._amber.items]
        self.asked = len(self._rows) + len(self._items)
        known = [name for one in (self._judge, self._amber) if one is not None for name in one.metrics]
        first = [w.eval_metric] if w.eval_metric in known else []
        self.names = tuple(dict.fromkeys([*first, *known]))

    def __call__(self) -> dict[str, float]:
        """Figures of the weights as they are."""
        found: dict[str, float] = {}
        if self._judge is not None:
            found |= self._judge.figures(self._asker.answers(self._rows, self._tokens))
        if self._amber is not None:
            found |= self._amber.figures(self._asked())
        return found

    def _asked(self) -> list[str | None]:
        """Answers to AMBER's items; a yes or no is not waited for longer than vlmeval does."""
        assert self._amber is not None
        texts: list[str | None] = [None] * len(self._items)
        for kind, tokens in (("answer", min(self._tokens, _ANSWER_TOKENS)), ("text", self._tokens)):
            places = [place for place, item in enumerate(self._amber.items) if item.kind == kind]
            answers = self._asker.answers([self._items[place] for place in places], tokens)
            for place, text in zip(places, answers, strict=True):
                texts[place] = text
        return texts


def scores(asker: Asker, job: Job) -> Scores | None:
    """What scores a run's written answers; None where its evaluations need none."""
    w = job.config.watching
    return Scores(asker, job) if job.eval_rows is not None and (w.eval_metric != "loss" or w.eval_amber) else None


def _item(item: Any, folder: Path) -> Prompt:
    def pictures() -> list[Image]:
        return [_open(folder / name) for name in item.images]

    places: list[dict[str, Any]] = [{"type": "image", "text": None} for _ in item.images]
    turn = {"role": "user", "content": [*places, {"type": "text", "text": item.prompt}]}
    return Prompt(str(item.id), [turn], item.prompt, "", pictures)


def _open(path: Path) -> Image:
    """A picture as ``vlmeval`` shows it: upright, on white, RGB."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path.name} cannot be decoded: {error}") from error
