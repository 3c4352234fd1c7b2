"""The last layer of a language model computed only where its result is read.

What the last layer gives for a token that no loss looks at is thrown away; its keys and values alone are seen by other
tokens. So queries, output projection and MLP of that layer are computed for the tokens whose successor is learned,
and the others get zeros there, which nothing reads. Loss and gradients are the same: of a model of N layers nearly an
Nth of the work on prompts and images is not done. Checkpointing, adapters and attention are as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmtrain.lean.folded import unfold_outputs

if TYPE_CHECKING:
    from vlmtrain.family import Family
    from vlmtrain.job import Job
    from vlmtrain.keys import Training

__all__ = ["METHODS", "obstacle", "places", "read_where_learned", "skip_unread", "with_places"]

METHODS = ("sft", "dpo")
_PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


def places(learned: torch.Tensor, unfold: torch.Tensor | None) -> torch.Tensor:
    """Tokens whose hidden state is read, ``[K]``, each once: those that stand before a learned one.

    Args:
        learned: ``[R, T]``, of each token whether it is.
        unfold: ``[R, T]``, where the tokens of the rows have gone, if they are folded.
    """
    before = torch.zeros_like(learned, dtype=torch.bool)
    before[:, :-1] = learned[:, 1:].bool()
    return before.flatten().nonzero()[:, 0] if unfold is None else unfold[before].unique()


def with_places(batch: Mapping[str, Any], learned: torch.Tensor) -> dict[str, Any]:
    """A batch that says where hidden states are read; of one that is folded in the tokens it is folded into.

    Args:
        batch: as a collator makes it.
        learned: ``[R, T]``, of each token whether it is.
    """
    sharing = batch.get("sharing", {})
    return {**batch, "sharing": {**sharing, "read": places(learned, sharing.get("unfold"))}}


def obstacle(net: Any, family: Family, training: Training) -> str | None:
    """Why the last layer of this model has to compute everything, in a few words; None where it has not."""
    if training.compile:
        return "layers are compiled as they are"
    if not training.compact_head:
        return "compact_head=false reads every position"
    if not family.folds:
        return "rows share nothing"
    if _last(net, family) is None:
        return "it has no q_proj, o_proj and plain mlp"
    return None


def read_where_learned(net: Any, family: Family) -> None:
    """Make the last layer of a model without an :func:`obstacle` understand ``read``.

    Args:
        net: the transformers model; batches without ``read`` are computed as before.
        family: the model's family.
    """
    layer = _last(net, family)
    assert layer is not None
    unfold_outputs(net)
    index: list[torch.Tensor] = []
    shapes: dict[Any, torch.Size] = {}

    def begin(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        index[:] = [kwargs["read"]] if kwargs.get("read") is not None else []

    def take(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not index:
            return None
        shapes[module] = args[0].shape[:-1]
        return args[0].flatten(0, -2)[index[0]][None], *args[1:]

    def put_back(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not index:
            return None
        shape = shapes[module]
        whole = output.new_zeros(math.prod(shape), output.shape[-1]).index_copy_(0, index[0], output[0])
        return whole.view(*shape, -1)

    # Hooks of the layer itself stand outside its checkpoint: a recomputation would find the places of a later forward.
    layer.self_attn.register_forward_pre_hook(begin, with_kwargs=True)
    for name in _PARTS:
        part = layer.get_submodule(name)
        part.register_forward_pre_hook(take)
        part.register_forward_hook(put_back)


def skip_unread(trainer: Any, job: Job) -> None:
    """Let a prepared trainer of SFT or DPO compute its last layer so, if it is wanted; a word of why, where it cannot.

    Args:
        trainer: behind ``TrainerSeam``; its collator says from now on where hidden states are read.
        job: what it was made from.
    """
    settings, family = job.config.training, job.loaded.family
    if job.config.method not in METHODS:
        if "skip_unread" in job.config.asked:
            job.reporter.say(f"skip_unread is for sft and dpo: {job.config.method} computes every layer whole")
        return
    if not settings.skip_unread:
        return
    sharded = "processes hold the weights in parts" if trainer.is_sharded else None
    if reason := sharded or obstacle(trainer.net, family, settings):
        job.reporter.say(f"the last layer computes every token: {reason}")
        return
    read_where_learned(trainer.net, family)
    if getattr(trainer, "ref_model", None) is not None:
        read_where_learned(trainer.accelerator.unwrap_model(trainer.ref_model), family)
    collator = trainer.data_collator.collate
    collator.reads = True
    if spoiled := getattr(collator, "spoiled", None):
        spoiled.reads = True


def _last(net: Any, family: Family) -> Any:
    """The last layer of the language model, if it is made as this module needs it."""
    count = net.config.get_text_config().num_hidden_layers
    for name, module in net.named_modules():
        if not name.endswith("layers") or f"{name}.".startswith(tuple(family.towers)) or len(module) != count:
            continue
        layer = module[-1]
        known = {part for part, _ in layer.named_modules()}
        # What experts get is counted and balanced over all tokens.
        if isinstance(layer, GradientCheckpointingLayer) and known >= {*_PARTS} and "mlp.experts" not in known:
            return layer
    return None
