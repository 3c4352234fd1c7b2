"""Attention on folded rows laid end to end: the common part and each branch apart, nothing computed that no token sees.

A mask over the whole of a folded row (``vlmtrain.sharing.segment_mask``) is right for any attention that takes one, but
most of what it covers is hidden: other rows, and all that comes later. Here each group of rows is cut into its common
part, plain causal attention, and its branches, which attend to the common part and to themselves. Both are computed by
transformers' own sdpa function, so that scaling, dropout and grouped heads are its.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vlmtrain.sharing import Layout

__all__ = ["NAME", "attention"]

NAME = "sdpa_branches"


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    branches: Layout | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attention through transformers' sdpa; of folded rows laid end to end where ``branches`` says how they lie.

    Args:
        module: the attention layer.
        query: ``[1, heads, T, D]``.
        key: ``[1, key heads, T, D]``.
        value: ``[1, key heads, T, D]``.
        attention_mask: for rows that are not folded; not looked at with ``branches``.
        branches: lengths of the common part and of the branches of each group.
        given: further arguments of transformers' attention functions.

    Returns:
        ``[1, T, heads, D]`` and no weights.
    """
    if branches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)[0], None
    pieces = [length for common, rests in branches for length in (common, *rests)]
    queries, keys, values = (states.split(pieces, dim=2) for states in (query, key, value))
    found, at = [], 0
    for common, rests in branches:
        first = at
        if common:
            found.append(sdpa_attention_forward(module, queries[at], keys[at], values[at], None, **given)[0])
        for branch in range(at + 1, at + 1 + len(rests)):
            if not common:
                found.append(sdpa_attention_forward(module, *_at(branch, queries, keys, values), None, **given)[0])
                continue
            key_states, value_states = (torch.cat([part[first], part[branch]], dim=2) for part in (keys, values))
            seen = _seen(common, queries[branch].shape[2], query.device)
            found.append(sdpa_attention_forward(module, queries[branch], key_states, value_states, seen, **given)[0])
        at += 1 + len(rests)
    return torch.cat(found, dim=1), None


def _at(place: int, *parts: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [part[place] for part in parts]


def _seen(common: int, rest: int, device: torch.device) -> torch.Tensor:
    """``[1, 1, rest, common + rest]``: a branch sees all of the common part and itself up to each token."""
    return torch.ones(rest, common + rest, dtype=torch.bool, device=device).tril(common)[None, None]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
