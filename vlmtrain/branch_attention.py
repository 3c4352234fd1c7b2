"""Attention on folded rows laid end to end: the common part and each branch apart, nothing computed that no token sees.

A mask over the whole of a folded row (``vlmtrain.sharing.segment_mask``) is right for any attention that takes one, but
most of what it covers is hidden: other rows, and all that comes later. Here each group of rows is cut into its common
part, plain causal attention, and its branches, which attend to the common part and to themselves. Both are computed by
transformers' own sdpa function, so that scaling, dropout and grouped heads are its.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vlmtrain.sharing import Layout

__all__ = ["NAME", "Branches", "attention"]

NAME = "sdpa_branches"


class Branches:
    """How folded rows lie end to end, and the masks that follow, each made once for all layers."""

    def __init__(self, layout: Layout) -> None:
        """Take lengths of the common part and of the branches of each group."""
        self.layout = layout
        self._masks: dict[tuple[Any, ...], torch.Tensor] = {}

    def mask(self, common: int, rests: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """``[1, 1, R, common + R]``, to be added: branches of R tokens see the common part and what is theirs so far.

        Args:
            common: tokens of the common part.
            rests: tokens of each branch, R in all.
            like: of its type and device it is.
        """
        key = (common, *rests, like.dtype, like.device)
        if key not in self._masks:
            own = torch.block_diag(*(torch.ones(rest, rest, device=like.device).tril() for rest in rests))
            seen = torch.cat([own.new_ones(len(own), common), own], dim=1).bool()
            mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = mask.masked_fill_(~seen, float("-inf"))[None, None]
        return self._masks[key]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    branches: Branches | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attention through transformers' sdpa; of folded rows laid end to end where ``branches`` says how they lie.

    Args:
        module: the attention layer.
        query: ``[1, heads, T, D]``.
        key: ``[1, key heads, T, D]``.
        value: ``[1, key heads, T, D]``.
        attention_mask: for rows that are not folded; not looked at with ``branches``.
        branches: how they lie.
        given: further arguments of transformers' attention functions.

    Returns:
        ``[1, T, heads, D]`` and no weights.
    """

    def attend(queries: torch.Tensor, states: Sequence[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
        attended: torch.Tensor = sdpa_attention_forward(module, queries, states[0], states[1], mask, **given)[0]
        return attended

    if branches is None:
        return attend(query, (key, value), attention_mask), None
    found: list[torch.Tensor] = []
    lengths = [common + sum(rests) for common, rests in branches.layout]
    groups = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    for (common, rests), (queries, *states) in zip(branches.layout, groups, strict=True):
        found += _of_group(common, rests, queries, states, attend, branches)
    return torch.cat(found, dim=1), None


def _of_group(
    common: int,
    rests: Sequence[int],
    queries: torch.Tensor,
    states: Sequence[torch.Tensor],
    attend: Callable[..., torch.Tensor],
    branches: Branches,
) -> Iterator[torch.Tensor]:
    """What the common part gives, then what its branches give, together or each by itself."""
    if common:
        yield attend(queries[:, :, :common], [part[:, :, :common] for part in states], None)
    rest = sum(rests)
    if not rest:
        return
    # One product hides what branches would see of each other, many copy the common part: that is the longer, or not.
    if common and rest <= common or len(rests) == 1:
        yield attend(queries[:, :, common:], states, branches.mask(common, rests, queries) if common else None)
        return
    firsts, pieces = [part[:, :, :common] for part in states], [part.split((common, *rests), dim=2) for part in states]
    for number, query in enumerate(queries.split((common, *rests), dim=2)[1:], start=1):
        own = [torch.cat([first, piece[number]], dim=2) for first, piece in zip(firsts, pieces, strict=True)]
        yield attend(query, own, branches.mask(common, rests[number - 1 : number], query) if common else None)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
