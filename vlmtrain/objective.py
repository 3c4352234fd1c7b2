"""Which keys of a method's loss go together; the bounds of a single key stand beside it in ``vlmtrain.keys``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmtrain.keys import LOSSES

__all__ = ["ELSEWHERE", "faults"]

ELSEWHERE = {
    "padding_free": "here it is packing, on by default for sft",
    "rpo_alpha": "loss_type=sigmoid,sft with loss_weights=1,ALPHA is that loss",
    "simpo_gamma": "TRL's trainer with SimPO (CPO) takes no images",
    "pref_beta": "here it is beta",
    "pref_loss": "here it is loss_type",
    "label_smoothing_factor": "TRL gives it up for sft; dpo has label_smoothing",
}
"""Keys of other trainers -> what stands for them here."""
# Losses of the difference of two rewards: only there does the partition function of an f-divergence cancel.
_DIFFERENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
_SORTED = ("aot", "aot_unpaired")


def faults(method: str, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the combination of keys, one short sentence each.

    Args:
        method: ``sft``, ``dpo``, ``kto`` or ``classify``.
        values: the keys that somebody set, each valid by itself.
    """
    found = list(_schedule(values))
    if method == "dpo":
        found += [*_losses(values), *_idle(values), *_conditional(values)]
    elif method == "kto":
        found += _unpaired(values)
    elif method == "sft" and values.get("weight_by") and values.get("loss_type") == "dft":
        found.append("weight_by does not go with loss_type dft, which weighs each token itself")
    return found


def _schedule(values: Mapping[str, Any]) -> list[str]:
    floor, schedule = values.get("min_learning_rate", 0.0), values.get("schedule", "linear")
    if schedule == "cosine_with_min_lr" and not floor:
        return ["schedule cosine_with_min_lr needs min_learning_rate above 0; cosine is the one that ends at 0"]
    if schedule != "cosine_with_min_lr" and floor:
        return [f"min_learning_rate does nothing with schedule {schedule}; cosine_with_min_lr takes it"]
    return []


def _losses(values: Mapping[str, Any]) -> list[str]:
    """Losses, their weights, and what each of them cannot do without."""
    losses, weights = values.get("loss_type", ("sigmoid",)), values.get("loss_weights", ())
    found = []
    if not losses:
        found.append(f"loss_type is empty; valid: {', '.join(LOSSES)}")
    if weights and len(weights) != len(losses):
        found.append(f"loss_weights has {len(weights)} numbers for {len(losses)} losses")
    if "exo_pair" in losses and not values.get("label_smoothing"):
        found.append("loss_type exo_pair needs label_smoothing above 0, its paper takes 0.001")
    if values.get("beta") == 0 and {"ipo", "sppo_hard"} & set(losses):
        found.append("loss_type ipo and sppo_hard divide by beta, which is 0")
    other = [name for name in losses if name not in _DIFFERENCES]
    if values.get("f_divergence_type", "reverse_kl") != "reverse_kl" and other:
        valid = ", ".join(_DIFFERENCES)
        found.append(f"f_divergence_type {values['f_divergence_type']} does not go with {other[0]}; valid: {valid}")
    if values.get("use_weighting") and set(losses) & set(_SORTED):
        found.append("use_weighting does not go with aot and aot_unpaired, which sort the pairs of a batch")
    return found


def _idle(values: Mapping[str, Any]) -> list[str]:
    """Keys that somebody set and that would do nothing."""
    losses = values.get("loss_type", ("sigmoid",))
    found = []
    if values.get("label_smoothing") and not set(losses) & set(_SMOOTHED):
        found.append(f"label_smoothing does nothing for {', '.join(losses)}; losses with it: {', '.join(_SMOOTHED)}")
    if "discopop_tau" in values and "discopop" not in losses:
        found.append("discopop_tau does nothing without loss_type discopop")
    if "f_alpha_divergence_coef" in values and values.get("f_divergence_type") != "alpha_divergence":
        found.append("f_alpha_divergence_coef does nothing without f_divergence_type alpha_divergence")
    if "image_corruption" in values and not values.get("image_weight"):
        found.append("image_corruption does nothing without image_weight above 0")
    if "anchor_delta" in values and not values.get("anchor_weight"):
        found.append("anchor_delta does nothing without anchor_weight above 0")
    return found


def _conditional(values: Mapping[str, Any]) -> list[str]:
    if not (values.get("image_weight") or values.get("anchor_weight")):
        return []
    found = []
    if values.get("ld_alpha") is not None:
        found.append("ld_alpha does not go with image_weight and anchor_weight, which count whole answers")
    if values.get("f_divergence_type", "reverse_kl") != "reverse_kl":
        found.append("image_weight and anchor_weight need f_divergence_type reverse_kl")
    return found


def _unpaired(values: Mapping[str, Any]) -> list[str]:
    found = []
    if values.get("loss_type", "kto") == "kto" and values.get("batch_size") == 1:
        found.append("batch_size 1 is too few for loss_type kto, whose KL term is an average of the batch; at least 2")
    if values.get("desirable_weight") == 0 and values.get("undesirable_weight") == 0:
        found.append("desirable_weight and undesirable_weight are both 0: there would be no loss")
    return found
