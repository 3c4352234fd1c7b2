"""Answers of a local model to questions that share their images: which do, what is kept, and what is counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from vlmeval import ranks
from vlmeval.models import prefix, prefix_batches, prefix_flat
from vlmeval.models.computing import placed
from vlmeval.models.first_token import likelier, probabilities
from vlmeval.models.prefix_check import Check, plainly, spread
from vlmeval.models.prefix_reading import Row
from vlmeval.models.preparing import Prepared
from vlmeval.models.provenance import greedy
from vlmeval.task import Item, Response

if TYPE_CHECKING:
    import torch

__all__ = ["OFF", "Sharing"]

OFF = "share_prefix=no"
"""The reason where the user wants none."""


class Sharing:
    """Reads an image once for its questions.

    Attributes:
        reason: why it does not, in a few words; None where it does.
        prefixes: those that are kept, and how many were read.
        answers: that followed one of them so far.
        tokens: of what was asked after them, without the answers.
    """

    def __init__(
        self,
        reason: str | None,
        prefixes: prefix.Prefixes,
        longest: int | None,
        positions: prefix.Positions | None,
        size: int,
        verify: int,
        branches: Callable[..., Any] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            reason: why a family or a model cannot, where it cannot.
            prefixes: where they are kept.
            longest: most tokens of a row with its answer; None is no limit.
            positions: of the family.
            size: most items of a batch.
            verify: how many questions are answered a second time.
            branches: makes what the model reads how rows lie from; None where it cannot, and each row has a copy.
        """
        self.reason, self.prefixes, self.longest, self.positions = reason, prefixes, longest, positions
        self.size, self.verify, self.branches = size, verify, branches
        self._ids: set[int | str] = set()
        self._check: Check | None = Check(set()) if verify else None
        self._said: dict[int | str, Sequence[int]] = {}
        self.answers = self.tokens = 0

    def cut(
        self,
        items: Sequence[Item],
        kind: Callable[[Item], Hashable],
        length: Callable[[Item], int],
        limit: Callable[[Item], int],
        beginning: prefix_batches.Beginning | None,
        suffix: str,
    ) -> list[list[Item]]:
        """Cut items into batches, and see which of them share an image.

        Args:
            items: all that is asked.
            kind: what the items of a batch must agree in.
            length: tokens of an item's prompt.
            limit: most new tokens.
            beginning: as of :func:`vlmeval.models.prefix_batches.shared`; None where nothing is shared.
            suffix: added to every prompt.
        """
        self._ids = prefix_batches.shared(items, beginning, suffix) if beginning is not None else set()
        if (longest := self.longest) is not None:
            long = {item.id for item in items if item.id in self._ids and length(item) + limit(item) > longest}
            self._say(f"{len(long)} of {len(items)} items are longer than the model's window", told=bool(long))
            self._ids -= long
        if self.reason is not None:
            pairs = len(items) - len({item.images for item in items})
            wanted = self.reason != OFF and pairs > 0 and any(item.images for item in items)
            self._say(self.reason, told=wanted)
        if self._check is not None:
            self._check.wanted = spread([item for item in items if item.id in self._ids], self.verify)
        return prefix_batches.cut(items, self.size, self._ids, kind=kind, length=length)

    def shares(self, items: Sequence[Item]) -> bool:
        """Whether the items of a batch do; all or none."""
        return bool(items) and items[0].id in self._ids

    def to_json(self) -> dict[str, Any]:
        """How many items share their images, or why none does; and the outcome of answering some of them twice.

        The same however often a run was interrupted, but for that outcome, which is of what was asked last.
        """
        found: dict[str, Any] = {"items": len(self._ids)} if self.reason is None else {"reason": self.reason}
        return {**found, **({"verified": self._check.to_json()} if self._check is not None else {})}

    def answered(
        self, loaded: Any, prepared: Prepared, limit: int, words: Sequence[Sequence[int]] | None, how: str
    ) -> list[Response]:
        """As :func:`vlmeval.models.computing.answered`, of a batch of rows that share images."""
        model, tokenizer = loaded.model, loaded.processor.tokenizer
        token = prefix.image_token(model)
        assert token is not None
        rows: Sequence[Row] = prepared.inputs
        begun, rests = [], []
        for row in rows:
            ids = row.tokens["input_ids"][0]
            length = int((ids == token).nonzero()[-1]) + 1
            begun.append(self._prefix(model, row, length))
            rests.append(ids[length:])
        decide = words is not None and how == "logits"
        stops = _stops(model.generation_config.eos_token_id)
        axes = 3 if self.positions is not None else 1
        given = (model, begun, rests, 1 if decide else limit, stops, axes)
        said, first = prefix.follow(*given) if self.branches is None else prefix_flat.follow(*given, self.branches)
        self.answers += len(rows)
        self.tokens += sum(map(len, rests))
        texts = [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)]
        shares = probabilities(first, words) if words is not None else [[]] * len(rows)
        found = []
        for item, text, tokens, own in zip(prepared.items, texts, said, shares, strict=True):
            if self._check is not None and item.id in self._check.wanted:
                self._said[item.id] = [] if decide else tokens
            detail = {"probabilities": dict(zip(item.choices, own, strict=True))} if words is not None else {}
            found.append(Response(item.id, likelier(item.choices, own) if decide else text, detail))
        return found

    def checked(self, items: Sequence[Item]) -> list[Item]:
        """Those of a batch's items that are to be answered a second time."""
        return [item for item in items if self._check is not None and item.id in self._check.wanted]

    def plainly(
        self, loaded: Any, prepared: Prepared, limit: int, words: Sequence[Sequence[int]] | None, how: str
    ) -> list[Response]:
        """Answers to whole prompts, for :meth:`compare`."""
        decide = words is not None and how == "logits"
        placed(loaded.model, prepared.inputs)
        config = greedy(loaded.model.generation_config, 1 if decide else limit)
        config.update(output_logits=True, return_dict_in_generate=True)
        return plainly(loaded, prepared, 0 if decide else limit, words, config)

    def compare(self, ours: Sequence[Response], plain: Sequence[Response]) -> None:
        """Compare answers with those to whole prompts; what could not be answered in one of the ways is left out."""
        assert self._check is not None
        by_id = {response.id: response for response in ours if response.error is None}
        for response in plain:
            if response.error is None and response.id in by_id:
                self._check.compare(by_id[response.id], self._said.pop(response.id), response)

    def _prefix(self, model: Any, row: Row, length: int) -> prefix.Prefix:
        ids: torch.Tensor = row.tokens["input_ids"][0, :length]
        # The object, not the name: pictures that are opened anew may be others.
        key = (row.seen, ids.numpy().tobytes())
        return self.prefixes.get(key, lambda: prefix.read(model, row.tokens, row.seen.batch, length, self.positions))

    @staticmethod
    def _say(text: str, *, told: bool) -> None:
        if told and ranks.is_first():
            print(f"vlmeval: each question reads its image anew: {text}", file=sys.stderr)


def _stops(given: int | Sequence[int] | None) -> Collection[int]:
    return () if given is None else {given} if isinstance(given, int) else set(given)
