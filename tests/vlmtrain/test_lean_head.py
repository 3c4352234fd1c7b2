"""The LM head's logits folded in place, against TRL's own folding."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import trl.kernels.chunked_logprob as kernels
import trl.trainer.utils as trl_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmtrain.lean import head as lean_head
from vlmtrain.lean.head import in_place
from vlmtrain.trl_seam import compact_lm_head

OUTPUTS = st.sets(st.sampled_from(kernels.OPTIONAL_OUTPUTS)).map(lambda names: ("log_probs", *sorted(names)))


def found(way: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, *given: Any, entropy: bool = False) -> Any:
    """Gradients of hidden states, weight and bias, and all figures."""
    learned = [value.clone().requires_grad_() for value in (hidden, weight, bias) if value is not None]
    with way():
        results = trl_utils._ChunkedLogProbFunction.apply(*learned, *([None] if bias is None else []), *given)
        loss = (results[0] * torch.linspace(-1, 1, len(hidden))).sum()
        if entropy:
            loss = loss + results[1].square().sum()
        loss.backward()
    return [value.grad for value in learned] + [result for result in results if result is not None]


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(1, 7),
    chunk=st.integers(3, 40),
    scale=st.sampled_from([1.0, 0.3]),
    cap=st.sampled_from([None, 2.0]),
    outputs=OUTPUTS,
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_figures_and_gradient_are_trls(
    tokens: int, chunk: int, scale: float, cap: float | None, outputs: tuple[str, ...], bias: bool, seed: int
) -> None:
    """In one tile or in many; with equal logits, of which the first is the prediction."""
    torch.manual_seed(seed)
    hidden, weight, targets = torch.randn(tokens, 4), torch.randn(30, 4), torch.randint(0, 30, (tokens,))
    weight[7] = weight[3]
    targets[: tokens // 2] = (hidden @ weight.T).argmax(-1)[: tokens // 2]
    targets[targets == 3] = 7 if seed % 2 else 3
    given = (weight, torch.randn(30) if bias else None, targets, 0.7, chunk, cap, scale, outputs)
    entropy = "entropy" in outputs and seed % 3 == 0
    plain, lean = (found(way, hidden, *given, entropy=entropy) for way in (contextlib.nullcontext, in_place))
    for one, other in zip(plain, lean, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_folded_in_float32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    given = (weight, None, torch.arange(9), 1.0, 20, None, 0.5, ("log_probs", "entropy", "is_top1"))
    for one, other in zip(*(found(way, hidden, *given) for way in (contextlib.nullcontext, in_place)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_no_tile_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward without a temporary of the tile's size; the tile is what ``mm`` wrote."""
    made: list[int] = []
    tile = torch.randn(6, 1000)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() >= tile.numel() and not result.is_set_to(tile):
                made.append(result.numel())
            return result

    flags = {"logit_scale": 1.0, "softcap": 1.0, "inv_t": 1.0, "HAS_SOFTCAP": False}
    backward = {**flags, "HAS_LOGPROB_GRAD": True, "HAS_ENTROPY_GRAD": False, "BLOCK_SIZE": 1}
    zeros = torch.zeros(6)
    given = (tile, 1000, torch.arange(6), zeros, zeros, torch.ones(6), None, 0, 1000)
    with Watch():
        lean_head._backward_tile(*given, **backward)
    assert not made
    with Watch():
        lean_head._backward_plain(*given, **backward)
    assert made


@pytest.mark.parametrize(
    ("chunk", "dtype", "projections"), [(40, torch.float32, 1), (20, torch.float32, 4), (40, torch.bfloat16, 2)]
)
def test_one_tile_is_projected_once(chunk: int, dtype: torch.dtype, projections: int) -> None:
    """The backward has what the forward has kept; of two tiles, and in fewer bits, it projects again."""
    hidden, weight = torch.randn(5, 4, dtype=dtype, requires_grad=True), torch.randn(40, 4, dtype=dtype)
    made: list[torch.Size] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket is torch.ops.aten.mm:
                made.append(result.shape)
            return result

    with compact_lm_head(), Watch():
        figures = trl_utils._ChunkedLogProbFunction.apply(hidden, weight, None, torch.arange(5), 1.0, chunk)
        figures[0].sum().backward()
    assert made.count(torch.Size([5, chunk])) == projections


def test_it_is_put_back() -> None:
    def patched() -> tuple[Any, ...]:
        return kernels._forward_tile, kernels._backward_tile, trl_utils._ChunkedLogProbFunction

    before = patched()
    with compact_lm_head():
        assert patched() == (lean_head._forward_tile, lean_head._backward_tile, lean_head._OneTile)
    assert patched() == before
    with compact_lm_head(False):
        assert patched() == before
