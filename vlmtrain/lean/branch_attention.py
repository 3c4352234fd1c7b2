"""Attention on folded rows laid end to end: the common part apart from its branches, and no row with another.

A mask over the whole of a folded row (``vlmtrain.sharing.segment_mask``) is right for any attention that takes one, but
most of what it covers is hidden: other rows, and all that comes later. Here each group of rows is cut into its common
part, plain causal attention, and its branches, which attend to the common part and to themselves: short ones together,
long ones each by itself. A branch may fork once more, as pairs of answers to several questions on an image do. All of
it is computed by transformers' own sdpa function, so that scaling, dropout and grouped heads are its.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vlmtrain.sharing import Branch, Layout

__all__ = ["Branches", "NAME", "attention", "takes_branches"]

NAME = "sdpa_branches"


class Branches:
    """How folded rows lie end to end, and the masks that follow, each made once for all layers.

    Attributes:
        queries: tokens of each group that ask; all of its tokens are seen.
        sizes: of each branch of each group, with all its ends.
        tails: how many of each branch's tokens ask, its last ones.
    """

    def __init__(self, layout: Layout, tails: Sequence[Sequence[int]] | None = None) -> None:
        """Take lengths of the common part and of the branches of each group.

        Args:
            layout: of the groups.
            tails: of each group, where what stands before has been computed, as the common part has; None: all ask.
        """
        self.layout = layout
        self.sizes = [tuple(_size(branch) for branch in branches) for _, branches in layout]
        self.tails = [tuple(own) for own in tails] if tails is not None else self.sizes
        before = [common if tails is None else 0 for common, _ in layout]
        self.queries = [asking + sum(own) for asking, own in zip(before, self.tails, strict=True)]
        self._masks: dict[tuple[Any, ...], torch.Tensor] = {}

    def mask(self, common: int, rests: Sequence[Branch], tails: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """``[1, 1, Q, common + R]``, to be added: branches of R tokens see the common part and what is theirs so far.

        Args:
            common: tokens of the common part.
            rests: each branch, of R tokens in all.
            tails: those that ask, Q in all.
            like: of its type and device it is.
        """
        key = (common, *rests, *tails, like.dtype, like.device)
        if key not in self._masks:
            pairs = zip(rests, tails, strict=True)
            own = torch.block_diag(*(_sees(rest)[_size(rest) - tail :] for rest, tail in pairs))
            seen = torch.cat([own.new_ones(len(own), common), own], dim=1).bool()
            mask = torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, float("-inf"))
            self._masks[key] = mask[None, None].to(like.device)
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
        key: ``[1, key heads, S, D]``; S is T but for ``branches`` behind their common parts.
        value: ``[1, key heads, S, D]``.
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
    seen = [common + sum(sizes) for (common, _), sizes in zip(branches.layout, branches.sizes, strict=True)]
    parts = (query.split(branches.queries, dim=2), key.split(seen, dim=2), value.split(seen, dim=2))
    for number, (queries, *states) in enumerate(zip(*parts, strict=True)):
        found += _of_group(branches, number, queries, states, attend)
    return torch.cat(found, dim=1), None


def _of_group(
    branches: Branches,
    number: int,
    queries: torch.Tensor,
    states: Sequence[torch.Tensor],
    attend: Callable[..., torch.Tensor],
) -> Iterator[torch.Tensor]:
    """What the common part of a group gives, if it asks, then what its branches give, together or each by itself."""
    (common, rests), sizes, tails = branches.layout[number], branches.sizes[number], branches.tails[number]
    asking = queries.shape[2] - sum(tails)
    if asking:
        yield attend(queries[:, :, :asking], [part[:, :, :common] for part in states], None)
    if not rests:
        return
    queries = queries[:, :, asking:]

    def mask(first: int, last: int, like: torch.Tensor) -> torch.Tensor | None:
        whole = not common and tails[first:last] == rests[first:last] and last - first == 1
        return None if whole else branches.mask(common, rests[first:last], tails[first:last], like)

    # One product hides what branches would see of each other, many copy the common part: that is the longer, or not.
    if (common and sum(sizes) <= common) or len(rests) == 1:
        yield attend(queries, states, mask(0, len(rests), queries))
        return
    firsts, pieces = [part[:, :, :common] for part in states], [part.split((common, *sizes), dim=2) for part in states]
    for at, query in enumerate(queries.split(tails, dim=2)):
        own = [torch.cat([first, piece[at + 1]], dim=2) for first, piece in zip(firsts, pieces, strict=True)]
        yield attend(query, own, mask(at, at + 1, query))


def _size(branch: Branch) -> int:
    return branch if isinstance(branch, int) else sum(branch)


def _sees(branch: Branch) -> torch.Tensor:
    """``[N, N]``, 1 where one of its N tokens sees another: what stands before it, but in other ends of a fork."""
    seen = torch.ones(_size(branch), _size(branch)).tril()
    if isinstance(branch, int):
        return seen
    begin = branch[0]
    for end in branch[1:]:
        seen[begin + end :, begin : begin + end] = 0
        begin += end
    return seen


def takes_branches(net: Any) -> bool:
    """Let a transformers model with sdpa attention read ``branches``; False where it has another attention.

    Args:
        net: the model; one with an adapter's wrapping off.
    """
    text = net.config.get_text_config()
    if text._attn_implementation == "sdpa":
        # Without branches it is what it was.
        text._attn_implementation = NAME
    return bool(text._attn_implementation == NAME)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
