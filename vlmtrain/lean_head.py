"""TRL's LM head folded with fewer passes over its logits where there is no Triton.

TRL 1.16 (``trl.kernels.chunked_logprob``) projects tiles of tokens and words and folds each into running figures, on a
GPU in one pass by a kernel, elsewhere by PyTorch operations that make about a dozen temporaries of a tile's size. These
fold the same tile in place, in half the passes, with the same figures to rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import trl.kernels.chunked_logprob as kernels

__all__ = ["in_place"]

_forward_plain, _backward_plain = kernels._forward_tile, kernels._backward_tile


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Fold tiles in place while this lasts; with a cap on logits or a gradient of the entropy as TRL does it."""
    before = kernels._forward_tile, kernels._backward_tile
    kernels._forward_tile, kernels._backward_tile = _forward_tile, _backward_tile
    try:
        yield
    finally:
        kernels._forward_tile, kernels._backward_tile = before


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
