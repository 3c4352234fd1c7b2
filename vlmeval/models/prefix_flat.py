"""What follows kept prefixes, end to end in one row: nothing of a prefix is copied for the rows that share it.

:func:`vlmeval.models.prefix.follow` gives each row of a batch its own copy of its prefix, in a cache padded to the
longest. Here the rows lie one after the other, without padding; each sees its image's prefix and itself
(``vlmtrain.lean.branch_attention``), so that keys and values of a prefix are there once for all its questions. A row
that has ended takes part no more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from vlmeval.models.prefix import Prefix

if TYPE_CHECKING:
    import torch

__all__ = ["follow"]

Branches = Callable[[Any, Sequence[Sequence[int]]], Any]


def follow(
    model: Any,
    prefixes: Sequence[Prefix],
    rests: Sequence[torch.Tensor],
    limit: int,
    stops: Collection[int],
    axes: int,
    branches: Branches,
) -> tuple[list[list[int]], torch.Tensor]:
    """As :func:`vlmeval.models.prefix.follow`; ``branches`` makes the model's ``branches`` from layout and tails."""
    import torch

    places = {id(prefix): place for place, prefix in reversed([*enumerate(prefixes)])}
    # Rows that share a prefix follow each other.
    speaking = sorted(range(len(rests)), key=lambda row: places[id(prefixes[row])])
    new, at = list(rests), [prefix.following for prefix in prefixes]
    said: list[list[int]] = [[] for _ in rests]
    first: torch.Tensor | None = None
    rows = _rows(prefixes)
    with torch.inference_mode():
        while speaking:
            rows.begin(speaking, [len(new[row]) for row in speaking])
            given = [new[row] for row in speaking], [at[row] for row in speaking]
            logits = _read(model, rows, *given, axes, branches)
            if first is None:
                first = logits[torch.tensor(speaking).argsort().to(logits.device)]
            for row, token in zip(speaking, logits.argmax(-1).tolist(), strict=True):
                said[row].append(token)
                at[row] += len(new[row])
                new[row] = torch.tensor([token])
            speaking = [row for row in speaking if said[row][-1] not in stops and len(said[row]) < limit]
    assert first is not None
    return said, first


def _read(
    model: Any, rows: Any, new: Sequence[torch.Tensor], at: Sequence[int], axes: int, branches: Branches
) -> torch.Tensor:
    """Logits ``[B, V]`` after the last new token of each row, which is kept; ``at`` is the position of its first."""
    import torch

    tails = [len(tokens) for tokens in new]
    place = torch.cat([start + torch.arange(tail) for start, tail in zip(at, tails, strict=True)])[None]
    place = place.to(model.device)
    found: torch.Tensor = model(
        input_ids=torch.cat([tokens.to(model.device) for tokens in new])[None],
        # Handed on as it is; an attention that did not know of branches would fail on it.
        attention_mask=torch.ones(1, 1, 0, 0, dtype=torch.bool, device=model.device),
        position_ids=place if axes == 1 else place.expand(axes, *place.shape),
        past_key_values=rows,
        use_cache=True,
        logits_to_keep=torch.tensor(tails).cumsum(0).to(model.device) - 1,
        branches=branches(*rows.branches()),
    ).logits
    return found[0].float()


def _rows(prefixes: Sequence[Prefix]) -> Any:
    """What the rows of a batch have read since their prefixes, as a cache of transformers."""
    import torch
    from transformers import DynamicCache

    class Rows(DynamicCache):
        """Own keys and values of each row, by layer; what an update returns has each prefix in front of its rows."""

        def __init__(self) -> None:
            super().__init__()
            self.lengths = [0] * len(prefixes)
            self.own: dict[int, list[list[torch.Tensor] | None]] = {}

        def begin(self, speaking: Sequence[int], tails: Sequence[int]) -> None:
            """The rows that read on, and how many tokens each."""
            self.tails = dict(zip(speaking, tails, strict=True))
            self.groups = [list(rows) for _, rows in groupby(speaking, key=lambda row: id(prefixes[row]))]
            for row, tail in self.tails.items():
                self.lengths[row] += tail

        def branches(self) -> tuple[Any, list[list[int]]]:
            """Layout and tails of ``vlmtrain.lean.branch_attention.Branches``."""
            layout = tuple((prefixes[rows[0]].tokens, tuple(self.lengths[row] for row in rows)) for rows in self.groups)
            return layout, [[self.tails[row] for row in rows] for rows in self.groups]

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            own = self.own.setdefault(layer_idx, [None] * len(prefixes))
            pieces = [states.split(list(self.tails.values()), dim=2) for states in (key_states, value_states)]
            for row, keys, values in zip(self.tails, *pieces, strict=True):
                before = own[row]
                new = [keys, values]
                own[row] = new if before is None else [torch.cat(pair, dim=2) for pair in zip(before, new, strict=True)]
            joined = []
            for side in (0, 1):
                parts = []
                for rows in self.groups:
                    kept = (own[row] for row in rows)
                    parts += [prefixes[rows[0]].layers[layer_idx][side], *(one[side] for one in kept if one)]
                joined.append(torch.cat(parts, dim=2))
            return joined[0], joined[1]

    return Rows()
