"""How likely a model finds given answers: the sum of the log-probabilities of their tokens, end token included.

The same number as preference training has for a row (``trl``'s ``logps``): the tokens of the answer and of what ends
the turn, each given all that stands before it. Only the positions that predict them go through the LM head, whose
logits would else be most of the memory; the backbone, the head and the cap of its logits are found as TRL 1.16 finds
them (``trl.trainer.utils.add_fused_lm_head``), without its kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["log_likelihoods"]

_ROWS = 1024


def log_likelihoods(
    model: Any, inputs: Mapping[str, Any], mask: torch.Tensor, *, plain: bool = False
) -> tuple[list[float], list[int]]:
    """Log-likelihoods of the answers of a batch.

    Args:
        model: a transformers model or a ``PeftModel``.
        inputs: what its forward takes, ``input_ids`` ``[B, T]`` padded on the right.
        mask: ``[B, T]``, which tokens belong to an answer; never the first of a row.
        plain: the model's own forward, with logits of every position: the same, with much more memory.

    Returns:
        For each row the sum, natural logarithm, and the number of tokens.
    """
    import torch

    predicts = torch.zeros_like(mask, dtype=torch.bool)
    predicts[:, :-1] = mask[:, 1:].bool()
    wanted = inputs["input_ids"][:, 1:][mask[:, 1:].bool()]
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits[predicts] if plain else _logits(model, inputs, predicts)
        # In parts: logits in 32 bits beside those in 16 would take three times the memory.
        parts = zip(logits.split(_ROWS), wanted.to(logits.device).split(_ROWS), strict=True)
        found = [part.float().log_softmax(-1).gather(1, own[:, None])[:, 0] for part, own in parts]
        each = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        each[predicts] = torch.cat(found).to(each)
    return each.sum(1).tolist(), predicts.sum(1).tolist()


def _logits(model: Any, inputs: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """Logits ``[N, V]`` of N positions of a batch ``[B, T]``."""
    net = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = net.base_model(**inputs, use_cache=False).last_hidden_state
    logits: torch.Tensor = net.get_output_embeddings()(hidden[positions.to(hidden.device)])
    if (cap := getattr(net.config.get_text_config(), "final_logit_softcapping", None)) is not None:
        logits = (logits / cap).tanh() * cap
    return logits
