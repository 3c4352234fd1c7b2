"""Folded rows (``vlmtrain.sharing``) on their way through a model: in as folded tokens, out as rows again.

Whoever calls the model gives it rows ``[R, T]`` as ever, and under ``sharing`` what they fold up to. The model without
its head runs on the folded tokens; its hidden states are handed on as those of the rows, so that the LM head, the
loss and every figure are computed by the code that computes them without any of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vlmtrain.sharing import Share, gathered, positions, segment_mask, tokens_of

if TYPE_CHECKING:
    from vlmtrain.family import Family
    from vlmtrain.job import Job

__all__ = ["folded_inputs", "obstacle", "share", "unfold_outputs", "window"]

_MASKED = ("sdpa", "eager")
_MARK = "_vlmtrain_unfolds"


def obstacle(net: Any, family: Family) -> str | None:
    """Why rows of this model cannot be folded, in a few words; None where they can."""
    text = net.config.get_text_config()
    if not family.folds:
        return f"{family.name}: {family.folds_not}"
    attention = text._attn_implementation
    if attention not in _MASKED:
        return f"{attention} attention takes no mask of its own"
    if getattr(text, "output_router_logits", False):
        return "the experts' balance is a mean over rows"
    return None


def window(net: Any) -> int | None:
    """Most tokens of a row that can be folded: within it a sliding window hides nothing. None is no limit."""
    text = net.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    size: int | None = getattr(text, "sliding_window", None)
    return size if getattr(text, "use_sliding_window", True) else None


def share(trainer: Any, job: Job) -> Share | None:
    """Prepare a trainer behind ``TrainerSeam`` for folded rows; None, and a word of why, where it takes none."""
    net = trainer.net
    reason = "processes hold the weights in parts" if trainer.is_sharded else obstacle(net, job.loaded.family)
    if reason:
        job.reporter.say(f"rows do not share their beginning: {reason}")
        return None
    unfold_outputs(net)
    if getattr(trainer, "ref_model", None) is not None:
        unfold_outputs(trainer.accelerator.unwrap_model(trainer.ref_model))
    return Share(window(net))


def folded_inputs(net: Any, family: Family, inputs: Mapping[str, Any], sharing: Mapping[str, Any]) -> dict[str, Any]:
    """What the model without its head takes instead of the rows.

    Args:
        net: the transformers model.
        family: the model's family.
        inputs: the rows ``[R, T]``; what belongs to images is there once for each of the groups' images.
        sharing: ``fold``, ``segment`` and ``unfold`` of :func:`vlmtrain.sharing.fold`, and ``images``: which of the
            batch's images each row shows, one after the other.

    Returns:
        Tokens ``[G, L]``, ``attention_mask`` ``[G, 1, L, L]``, ``position_ids`` ``[G, L]`` or ``[3, G, L]``; and
        ``unfold`` ``[R, T]``.
    """
    index, segment = sharing["fold"], sharing["segment"]
    seen = segment_mask(segment)
    text = net.config.get_text_config()
    if text._attn_implementation == "eager":
        dtype = net.get_input_embeddings().weight.dtype
        seen = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    place = positions(inputs)
    if family.positions is not None:
        shown = {key: inputs[key][sharing["images"]] for key in family.feature_inputs if key in inputs}
        place = family.positions(net, {**inputs, **shown})
    along = torch.stack([gathered(axis, index) for axis in place]) if place.ndim == 3 else gathered(place, index)
    tokens = {key: gathered(inputs[key], index) for key in tokens_of(inputs)}
    return {**tokens, "attention_mask": seen, "position_ids": along, "unfold": sharing["unfold"]}


def unfold_outputs(net: Any) -> None:
    """Make the model without its head understand ``sharing``; to do so twice changes nothing."""
    body = net.base_model
    if getattr(body, _MARK, False):
        return
    setattr(body, _MARK, True)
    waiting: list[torch.Tensor] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sharing = kwargs.pop("sharing", None)
        waiting.clear()
        if sharing is not None:
            kwargs |= {key: value for key, value in sharing.items() if key != "unfold"}
            waiting.append(sharing["unfold"])
        return args, kwargs

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if waiting:
            output.last_hidden_state = gathered(output.last_hidden_state, waiting.pop())
        return output

    body.register_forward_pre_hook(before, with_kwargs=True)
    body.register_forward_hook(after, with_kwargs=True)
