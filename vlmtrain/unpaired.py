"""Rows to KTO batches: good and bad answers, and answers that belong to another question for the KL term."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from vlmdata.errors import DataError
from vlmtrain.caches.known_images import Shown
from vlmtrain.chat import render
from vlmtrain.collate import Said, branches, decode, rendered, stack
from vlmtrain.family import Family
from vlmtrain.features import Known
from vlmtrain.weights import label_of

__all__ = ["KL", "Partners", "UnpairedCollator", "check_questions"]

KL = "KL_"
"""TRL's prefix for what belongs to the mismatched answers."""
PAIR = ("chosen", "rejected")


class Partners:
    """For each row another one that asks something else, the same for a whole run.

    The rows of a dataset are shuffled into a ring; a row's partner is the next in it with another question or other
    images. Rows to evaluate on have partners among themselves, or, where they all ask the same, among those to train
    on.
    """

    def __init__(self, parts: Sequence[Any], seed: int) -> None:
        """Find partners.

        Args:
            parts: datasets of :func:`vlmtrain.lengths.fit`, that to train on first; a ``row`` number occurs once in
                all of them.
            seed: of the run.

        Raises:
            DataError: all rows to train on ask the same.
        """
        check_questions(parts[0])
        self.parts = [rows.remove_columns(["images"]) for rows in parts]
        self.places: dict[int, tuple[int, int]] = {}
        asked = [list(_questions(rows)) for rows in parts]
        for number, rows in enumerate(self.parts):
            names, source = list(rows["row"]), random.Random(f"{seed} {number}")
            ring = list(range(len(names)))
            source.shuffle(ring)
            if len(set(asked[number])) < 2:
                others = [place for place, question in enumerate(asked[0]) if question != asked[number][0]]
                self.places |= {name: (0, source.choice(others)) for name in names}
                continue
            # Backwards, so that the next row with another question is known already.
            after = next(place for place in ring if asked[number][place] != asked[number][ring[-1]])
            for here, behind in zip(reversed(ring), [ring[-1], *reversed(ring[1:])], strict=True):
                if asked[number][behind] != asked[number][here]:
                    after = behind
                self.places[names[here]] = (number, after)

    def of(self, row: int) -> Mapping[str, Any]:
        """The partner of a row by its number, without images."""
        part, place = self.places[row]
        found: Mapping[str, Any] = self.parts[part][place]
        return found


def check_questions(rows: Any) -> None:
    """See whether there are partners.

    Raises:
        DataError: all rows ask the same.
    """
    questions = _questions(rows)
    first = next(questions)
    if all(question == first for question in questions):
        raise DataError(
            f"loss_type kto needs rows that ask different things, and all {len(rows)} ask the same: "
            "loss_type apo_zero_unpaired does without"
        )


class UnpairedCollator:
    """Rows to KTO batches in TRL's layout.

    Of preference shards B rows become 2B answers, the B chosen ones (``label`` true) before the B rejected ones; of
    messages shards B answers, the last turns. ``input_ids``, ``attention_mask`` and ``completion_mask`` are ``[N, T]``,
    padded on the right, ``label`` is ``[N]``, the pixels are those of the B rows. The same questions with their
    partners' answers are ``KL_input_ids`` and so on, of their own T.

    Attributes:
        sides: what a row has: ``chosen`` and ``rejected``, or one answer.
        reference: row number -> log-probabilities under the reference of the sides' answers, then of the mismatched
            ones; where it is set they come along as ``ref_logps`` and ``ref_KL_logps`` ``[N]``.
        known: where it is set, images whose features are kept; the pixels are those of rows with another one.
    """

    reference: Mapping[int, tuple[float, ...]] | None = None
    known: Mapping[str, Known] | None = None

    def __init__(
        self, processor: Any, family: Family, partners: Partners | None, *, limit: int | None, label_by: str | None
    ) -> None:
        """Take the processor as it is to be used.

        Args:
            processor: of the model.
            family: the model's family.
            partners: None leaves out the mismatched answers.
            limit: most tokens of a row; mismatched answers are cut there, others fit.
            label_by: where messages say whether they are good; None for preferences.
        """
        self.processor, self.family, self.partners = processor, family, partners
        self.limit, self.label_by = limit, label_by
        self.sides: tuple[str | None, ...] = PAIR if label_by is None else (None,)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; the rows' images are decoded and processed once."""
        texts = [[self._own(row, side) for row in rows] for side in self.sides]
        if self.partners is not None:
            texts += [[self._mismatched(row, side) for row in rows] for side in self.sides]
        found = branches(self.processor, self.family, texts, [Shown(row, decode) for row in rows], self.known)
        count = len(self.sides)
        batch = {**found[0], **self._joined(found[:count])}
        if self.partners is not None:
            cut = {key: value[:, : self.limit] for key, value in self._joined(found[count:]).items()}
            batch |= {KL + key: value for key, value in cut.items()}
        batch["label"] = torch.tensor(
            [label_of(row, self.label_by) for row in rows]
            if self.label_by is not None
            else [side == "chosen" for side in self.sides for _ in rows]
        )
        if self.reference is not None:
            figures = torch.tensor([self.reference[row["row"]] for row in rows])
            for place, name in enumerate(("ref_logps", f"ref_{KL}logps")[: figures.shape[1] // count]):
                batch[name] = figures[:, place * count : (place + 1) * count].T.reshape(-1)
        return batch

    def said(self, row: Mapping[str, Any]) -> list[Any]:
        """All that is said of a row's images: its own answers, the mismatched ones and where they are cut."""
        own: list[Any] = [self._own(row, side) for side in self.sides]
        if self.partners is None:
            return own
        return [*own, *(self._mismatched(row, side) for side in self.sides), self.limit]

    def _joined(self, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return stack(self.processor, found[0], found[1]) if len(found) == 2 else dict(found[0])

    def _own(self, row: Mapping[str, Any], side: str | None) -> Said:
        said = rendered(self.processor, row, side)
        return said if side else said._replace(answers=said.answers[-1:])

    def _mismatched(self, row: Mapping[str, Any], side: str | None) -> Said:
        assert self.partners is not None
        other = self.partners.of(row["row"])
        answer = other[side] if side else other["messages"][-1:]
        prompt = row["prompt"] if side else row["messages"][:-1]
        mixed = render(self.processor, [*prompt, *answer])
        turns = sum(turn["role"] == "assistant" for turn in answer)
        return Said(mixed.text, mixed.answers[-turns:], mixed.begin)


def _questions(rows: Any) -> Iterator[str]:
    """What each row asks, images too, as one string."""
    column = "prompt" if "prompt" in rows.column_names else "messages"
    for row in rows.select_columns([column, "image_sha256"]):
        yield json.dumps([row[column] if column == "prompt" else row[column][:-1], row["image_sha256"]])
