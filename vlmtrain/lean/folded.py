"""Folded rows (``vlmtrain.sharing``) on their way through a model: in as folded tokens, out as rows again.

Whoever calls the model gives it rows ``[R, T]`` as ever, and under ``sharing`` what they fold up to. The model without
its head runs on the folded tokens; its hidden states are handed on as those of the rows, so that the LM head, the
loss and every figure are computed by the code that computes them without any of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vlmtrain.lean import branch_attention
from vlmtrain.sharing import Share, gathered, positions, segment_mask, tokens_of

if TYPE_CHECKING:
    from vlmtrain.family import Family
    from vlmtrain.job import Job

__all__ = ["branches_of", "folded_inputs", "obstacle", "share", "take_folded", "unfold_outputs", "window"]

_MASKED = ("sdpa", "eager", branch_attention.NAME)
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


def share(trainer: Any, job: Job, *, beginnings: bool = True, packs: bool = False) -> Share | None:
    """Prepare a trainer behind ``TrainerSeam`` for folded rows; None, and a word of why, where it takes none.

    Args:
        trainer: of the job.
        job: what it was made from.
        beginnings: rows share what they have in common.
        packs: rows that share nothing lie end to end, without padding.
    """
    net = trainer.net
    reason = "processes hold the weights in parts" if trainer.is_sharded else obstacle(net, job.loaded.family)
    if reason:
        job.reporter.say(f"rows {_named(beginnings, packs)}: {reason}")
        return None
    found = take_folded(net, beginnings=beginnings, packs=packs)
    if getattr(trainer, "ref_model", None) is not None:
        take_folded(trainer.accelerator.unwrap_model(trainer.ref_model))
    if packs and not found.flat:
        job.reporter.say(f"rows {_named(False, packs)}: eager attention reads a mask of the whole")
    return found


def _named(beginnings: bool, packs: bool) -> str:
    return " and ".join(["do not share their beginning"] * beginnings + ["are padded"] * packs)


def take_folded(net: Any, *, beginnings: bool = True, packs: bool = False) -> Share:
    """Make a model without an :func:`obstacle` take folded rows, those of the :class:`Share` that is returned.

    Args:
        net: the transformers model.
        beginnings: as :class:`Share` has it.
        packs: likewise; not where the model's attention is eager, which needs a mask for every pair of tokens.
    """
    flat = branch_attention.takes_branches(net)
    unfold_outputs(net)
    return Share(window(net), flat, beginnings, packs and flat)


def branches_of(net: Any) -> type[branch_attention.Branches] | None:
    """What makes the ``branches`` of a forward of this model, which reads them from now on; None where it cannot."""
    return branch_attention.Branches if branch_attention.takes_branches(net) else None


def folded_inputs(net: Any, family: Family, inputs: Mapping[str, Any], sharing: Mapping[str, Any]) -> dict[str, Any]:
    """What the model without its head takes instead of the rows.

    Args:
        net: the transformers model.
        family: the model's family.
        inputs: the rows ``[R, T]``; what belongs to images is there once for each of the groups' images.
        sharing: what :func:`vlmtrain.sharing.fold` or :func:`~vlmtrain.sharing.fold_flat` says, and ``images``: which
            of the batch's images each row shows, one after the other.

    Returns:
        Tokens ``[G, L]``, ``attention_mask`` ``[G, 1, L, L]``, ``position_ids`` ``[G, L]`` or ``[3, G, L]``; and
        ``unfold`` ``[R, T]``. Of flat ones G is 1, the mask is empty and ``branches`` takes its place. What
        ``vlmtrain.lean.last_layer`` says of rows is handed on, folded or not.
    """
    read = {"read": sharing["read"]} if "read" in sharing else {}
    if "fold" not in sharing:
        return read
    index = sharing["fold"]
    place = positions(inputs)
    if family.positions is not None:
        shown = {key: inputs[key][sharing["images"]] for key in family.feature_inputs if key in inputs}
        place = family.positions(net, {**inputs, **shown})
    along = torch.stack([gathered(axis, index) for axis in place]) if place.ndim == 3 else gathered(place, index)
    tokens = {key: gathered(inputs[key], index) for key in tokens_of(inputs)}
    return {**tokens, **_seen(net, sharing), **read, "position_ids": along, "unfold": sharing["unfold"]}


def _seen(net: Any, sharing: Mapping[str, Any]) -> dict[str, Any]:
    """What says which tokens each token sees."""
    if "layout" in sharing:
        # A mask in four dimensions is handed on as it is; an attention that did not know the layout would fail on it.
        empty = torch.ones(1, 1, 0, 0, dtype=torch.bool, device=sharing["fold"].device)
        return {"attention_mask": empty, "branches": branch_attention.Branches(sharing["layout"])}
    seen = segment_mask(sharing["segment"])
    if net.config.get_text_config()._attn_implementation == "eager":
        dtype = net.get_input_embeddings().weight.dtype
        seen = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    return {"attention_mask": seen}


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
            if "unfold" in sharing:
                waiting.append(sharing["unfold"])
        return args, kwargs

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if waiting:
            output.last_hidden_state = gathered(output.last_hidden_state, waiting.pop())
        return output

    body.register_forward_pre_hook(before, with_kwargs=True)
    body.register_forward_hook(after, with_kwargs=True)
