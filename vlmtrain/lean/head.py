"""TRL's LM head with fewer passes over its logits where there is no Triton.

TRL 1.16 (``trl.kernels.chunked_logprob``) projects tiles of tokens and words and folds each into running figures, on a
GPU in one pass by a kernel, elsewhere by PyTorch operations that make about a dozen temporaries of a tile's size. The
backward projects again. Here the same tile is folded in place, in half the passes; and logits that are one tile are
kept for the backward, which would hold a tile as large. Where losses of several forwards are added, as mDPO's are, one
is kept of each. Figures are the same to rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import trl.kernels.chunked_logprob as kernels
import trl.trainer.utils as trl_utils

__all__ = ["in_place"]

# Logits in a processor's cache, a megabyte.
_IN_CACHE = 1 << 18

_forward_plain, _backward_plain = kernels._forward_tile, kernels._backward_tile


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Fold tiles in place while this lasts; with a cap on logits or a gradient of the entropy as TRL does it."""
    before = kernels._forward_tile, kernels._backward_tile, trl_utils._ChunkedLogProbFunction
    kernels._forward_tile, kernels._backward_tile = _forward_tile, _backward_tile
    trl_utils._ChunkedLogProbFunction = _OneTile
    try:
        yield
    finally:
        kernels._forward_tile, kernels._backward_tile, trl_utils._ChunkedLogProbFunction = before


def _forward_tile(
    tile: torch.Tensor,
    tile_stride: int,
    targets: torch.Tensor,
    running_max: torch.Tensor,
    sum_exp: torch.Tensor,
    x_sum_exp: torch.Tensor,
    sq_sum_exp: torch.Tensor,
    z_sum: torch.Tensor,
    max_before_target: torch.Tensor,
    target_logit: torch.Tensor,
    vocab_start: int,
    n_cols: int,
    **given: Any,
) -> None:
    """Fold a tile ``[N, n_cols]`` of logits into figures ``[N]``; the tile is not what it was then."""
    scale = given["logit_scale"] * given["inv_t"]
    z = tile.float()
    if given["HAS_SOFTCAP"]:
        _forward_plain(
            tile, tile_stride, targets, running_max, sum_exp, x_sum_exp, sq_sum_exp, z_sum, max_before_target,
            target_logit, vocab_start, n_cols, **given,
        )  # fmt: skip
        return
    if scale != 1:
        z = z.mul_(scale)
    if given["HAS_MEAN_LOGITS"]:
        z_sum += z.sum(-1)
    highest, at = z.max(-1)
    local = targets - vocab_start
    if given["HAS_IS_TOP1"]:
        # Of equal logits the first is found: where it stands behind the target none before it is as high.
        ahead = highest.masked_fill(at >= local, -math.inf)
        torch.maximum(max_before_target, ahead, out=max_before_target)
    own = z.gather(-1, local.clamp(0, n_cols - 1)[:, None])[:, 0]
    target_logit.copy_(torch.where((local >= 0) & (local < n_cols), own, target_logit))
    new_max = torch.maximum(running_max, highest)
    rescale = torch.exp(running_max - new_max)
    # Of z - max, so that one tile is enough; the sum of e * z is that of e * (z - max), and max times that of e.
    z.sub_(new_max[:, None])
    e = z.exp() if given["HAS_ENTROPY"] else z.exp_()
    total = e.sum(-1)
    sum_exp.mul_(rescale).add_(total)
    if given["HAS_ENTROPY"]:
        x_sum_exp.mul_(rescale).add_(torch.linalg.vecdot(e, z) + new_max * total)
    if given["HAS_LOG_SUM_SQ_PROBS"]:
        sq_sum_exp.mul_(rescale * rescale).add_(torch.linalg.vecdot(e, e))
    running_max.copy_(new_max)


def _backward_tile(
    tile: torch.Tensor,
    tile_stride: int,
    targets: torch.Tensor,
    log_z: torch.Tensor,
    entropy: torch.Tensor,
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    vocab_start: int,
    n_cols: int,
    **given: Any,
) -> None:
    """Turn a tile ``[N, n_cols]`` of logits into the loss's gradient by them."""
    if given["HAS_SOFTCAP"] or given["HAS_ENTROPY_GRAD"] or not given["HAS_LOGPROB_GRAD"]:
        _backward_plain(
            tile, tile_stride, targets, log_z, entropy, grad_logprobs, grad_entropy, vocab_start, n_cols, **given
        )
        return
    assert grad_logprobs is not None
    scale = given["logit_scale"] * given["inv_t"]
    p = tile.float()
    if scale != 1:
        p = p.mul_(scale)
    weight = grad_logprobs * scale
    p.sub_(log_z[:, None]).exp_().mul_(-weight[:, None])
    local = targets - vocab_start
    rows = ((local >= 0) & (local < n_cols)).nonzero()[:, 0]
    p[rows, local[rows]] += weight[rows]
    if p is not tile:
        tile.copy_(p)


class _OneTile(kernels.ChunkedLogProbFunction):
    """TRL's head, which keeps a tile that is the only one: without Triton, in float32, without a cap on logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = kernels.OPTIONAL_OUTPUTS,
    ) -> tuple[torch.Tensor | None, ...]:
        """Log-probabilities and further figures ``[N]`` of ``hidden`` ``[N, H]``, as TRL's forward gives them."""
        kinds = {part.dtype for part in (hidden, weight, bias) if part is not None}
        ctx.one = (
            kinds == {torch.float32}
            and final_logit_softcapping is None
            and not kernels._use_triton(hidden.device)
            and not torch.is_autocast_enabled(hidden.device.type)
            and len(hidden) <= kernels.TOKEN_CHUNK_SIZE
            and len(weight) <= chunk_size
            and (targets.is_meta or bool((targets < len(weight)).all()))
        )
        if not ctx.one:
            found: tuple[torch.Tensor | None, ...] = kernels.ChunkedLogProbFunction.forward(
                ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale,
                outputs,
            )  # fmt: skip
            return found
        ctx.set_materialize_grads(False)
        ctx.compute_dtype, ctx.chunk_size, ctx.scale = hidden.dtype, chunk_size, logit_scale / temperature
        # What TRL's backward needs, where the entropy has a gradient.
        ctx.kernel_args = {"logit_scale": logit_scale, "softcap": 1.0, "inv_t": 1 / temperature, "HAS_SOFTCAP": False}
        z = torch.addmm(bias, hidden, weight.t()) if bias is not None else hidden @ weight.t()
        if ctx.scale != 1:
            z.mul_(ctx.scale)
        figures = _exponentials(z, targets, outputs)
        log_z, total = figures["log_z"], figures["total"]
        entropy, top = figures.get("entropy"), figures.get("is_top1")
        squares, mean_logits = figures.get("log_sum_sq_probs"), figures.get("mean_logits")
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, log_z if entropy is None else entropy, z, total)
        ctx.mark_non_differentiable(*(x for x in (squares, mean_logits, top) if x is not None))
        return figures["own"] - log_z, entropy, squares, mean_logits, top

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: torch.Tensor | None, grad_entropy: torch.Tensor | None, *rest: Any
    ) -> tuple[Any, ...]:
        """Gradients of hidden states, weight and bias; that of a row's logits is g at the target less g e / total."""
        if not ctx.one or grad_entropy is not None or grad_logprobs is None:
            saved = ctx.saved_tensors[:6]
            names = ("compute_dtype", "chunk_size", "kernel_args", "needs_input_grad")
            plain = SimpleNamespace(saved_tensors=saved, **{name: getattr(ctx, name) for name in names})
            found: tuple[Any, ...] = kernels.ChunkedLogProbFunction.backward(plain, grad_logprobs, grad_entropy, *rest)
            return found
        hidden, weight, _, targets, _, _, e, total = ctx.saved_tensors
        gain = (grad_logprobs * ctx.scale)[:, None]
        loss = gain / total[:, None]
        of_hidden = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_hidden = weight[targets].mul_(gain).sub_((e @ weight).mul_(loss))
        if ctx.needs_input_grad[1]:
            of_weight = torch.mm(e.t(), hidden * loss).neg_().index_add_(0, targets, hidden * gain)
        if ctx.needs_input_grad[2]:
            of_bias = (e.t() @ loss[:, 0]).neg_().index_add_(0, targets, gain[:, 0])
        return of_hidden, of_weight, of_bias, *(None,) * 6


def _exponentials(z: torch.Tensor, targets: torch.Tensor, outputs: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Figures ``[N]`` of logits ``[N, V]``, which become e to the power of what they are less than their row's largest.

    A few rows at a time: they are passed over several times while they are in the processor's cache.
    """
    rows = max(1, _IN_CACHE // z.shape[-1])
    room = z.new_empty(min(rows, len(z)), z.shape[-1])
    blocks = zip(z.split(rows), targets.split(rows), strict=True)
    parts = [_of_rows(block, own, room[: len(block)], outputs) for block, own in blocks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _of_rows(
    z: torch.Tensor, targets: torch.Tensor, e: torch.Tensor, outputs: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    highest, at = z.max(-1)
    found = {"own": z.gather(-1, targets[:, None])[:, 0]}
    if "is_top1" in outputs:
        # Of equal logits the first is found, as TRL has it.
        found["is_top1"] = at == targets
    if "mean_logits" in outputs:
        found["mean_logits"] = z.mean(-1)
    z.sub_(highest[:, None])
    torch.exp(z, out=e)
    found["total"] = e.sum(-1)
    logarithm = found["total"].log()
    found["log_z"] = highest + logarithm
    if "entropy" in outputs:
        found["entropy"] = logarithm - z.mul_(e).sum(-1) / found["total"]
    z.copy_(e)
    if "log_sum_sq_probs" in outputs:
        found["log_sum_sq_probs"] = e.square_().sum(-1).log() - 2 * logarithm
    return found
