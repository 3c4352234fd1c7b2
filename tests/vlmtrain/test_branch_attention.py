"""Attention by branches against attention under a mask of the whole row."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlmtrain.lean.branch_attention import NAME, Branches, attention, takes_branches
from vlmtrain.sharing import Layout

GROUPS = st.tuples(st.integers(0, 9), st.lists(st.integers(1, 6), max_size=4).map(tuple))
LAYOUTS = st.lists(GROUPS.filter(lambda group: group[0] + sum(group[1]) > 0), min_size=1, max_size=4).map(tuple)


class Layer(torch.nn.Module):
    """What transformers' sdpa asks of an attention layer."""

    is_causal = True
    num_key_value_groups = 2


def seen(layout: Layout) -> torch.Tensor:
    """``[T, T]``: which token sees which, by the definition."""
    group, branch = [], []
    for number, (common, rests) in enumerate(layout):
        group += [number] * (common + sum(rests))
        branch += [0] * common + [place for place, rest in enumerate(rests, start=1) for _ in range(rest)]
    total = range(len(group))
    return torch.tensor(
        [[j <= i and group[i] == group[j] and branch[j] in (0, branch[i]) for j in total] for i in total]
    )


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.integers(0, 2**16))
@example(((9, (2, 3)), (1, (6, 6, 6)), (0, (4, 2)), (5, ()), (1, ())), 0)
def test_branches_see_what_the_mask_shows(layout: Layout, seed: int) -> None:
    """Results and gradients, with fewer heads of keys than of queries."""
    torch.manual_seed(seed)
    mask = seen(layout)[None, None]
    tokens = mask.shape[-1]
    states = [torch.randn(1, heads, tokens, 8, requires_grad=True) for heads in (4, 2, 2)]
    weight = torch.randn(1, tokens, 4, 8)
    found = []
    for ways in (
        lambda: attention(Layer(), *states, None, branches=Branches(layout)),
        lambda: sdpa_attention_forward(Layer(), *states, mask),
    ):
        output = ways()[0]
        found.append([output, *torch.autograd.grad((output * weight).sum(), states)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.randoms(use_true_random=False))
def test_tails_ask_what_they_would_have_asked(layout: Layout, random: Random) -> None:
    """Behind what was computed before: the same rows of the same attention."""
    layout = tuple((common, rests or (1,)) for common, rests in layout)
    tails = [tuple(random.randint(1, rest) for rest in rests) for _, rests in layout]
    torch.manual_seed(random.randint(0, 9))
    asking: list[bool] = []
    for (common, rests), own in zip(layout, tails, strict=True):
        asking += [False] * common
        for rest, tail in zip(rests, own, strict=True):
            asking += [False] * (rest - tail) + [True] * tail
    query, key, value = (torch.randn(1, heads, len(asking), 8) for heads in (4, 2, 2))
    whole = attention(Layer(), query, key, value, None, branches=Branches(layout))[0][:, asking]
    found = attention(Layer(), query[:, :, asking], key, value, None, branches=Branches(layout, tails))[0]
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_a_mask_is_made_once() -> None:
    branches = Branches(((4, (2, 1)),))
    states = torch.zeros(1, 1, 7, 8)
    mask = branches.mask(4, (2, 1), (2, 1), states)
    assert mask is branches.mask(4, (2, 1), (2, 1), states)
    assert mask is not branches.mask(4, (2, 1), (2, 1), states.double())
    hidden = [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1, 0]]
    assert mask[0, 0].isinf().int().tolist() == hidden
    assert branches.mask(4, (2, 1), (1, 1), states)[0, 0].isinf().int().tolist() == hidden[1:]


def test_another_attention_is_left_alone() -> None:
    kinds = {"sdpa": NAME, "eager": "eager", "flash_attention_2": "flash_attention_2"}
    for kind, expected in kinds.items():
        text = SimpleNamespace(_attn_implementation=kind)
        net = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda text=text: text))
        assert takes_branches(net) is (kind == "sdpa") and text._attn_implementation == expected
