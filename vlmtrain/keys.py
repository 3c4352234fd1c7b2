"""Every configuration key of a run: its group, default, bounds and one line of help.

The groups apply by method (``vlmtrain.config``); a key means the same in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Adapter",
    "Base",
    "Classification",
    "GROUPS",
    "LOSSES",
    "Length",
    "METHODS",
    "Preference",
    "Rows",
    "Supervision",
    "Training",
    "Unpaired",
    "Watching",
]

METHODS = ("sft", "dpo", "kto", "classify")
LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


def _key(default: Any, help: str, *, least: float | None = None, most: float | None = None, among: Any = ()) -> Any:
    """A configuration key; ``among`` are its valid values, ``least`` and ``most`` its bounds, both included."""
    if isinstance(default, tuple):
        return field(default=default, metadata={"help": help, "least": least, "most": most, "among": among})
    return field(default=default, metadata={"help": help, "least": least, "most": most, "among": tuple(among)})


@dataclass(frozen=True, slots=True)
class Base:
    """The model that is trained."""

    model: str | None = _key(None, "vlmtrain:tiny, a model folder or a hub id")
    adapter: str | None = _key(None, "adapter to train further; its settings replace the lora keys")
    dtype: str = _key("auto", "weights of the base", among=("auto", "float32", "bfloat16", "float16"))
    quantize: str = _key("none", "load the base in fewer bits", among=("none", "8bit", "4bit"))
    max_image_tokens: int | None = _key(None, "most tokens one image may take", least=1)
    trust_remote_code: bool = _key(False, "run code that comes with a hub model")


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA: where, and how much."""

    lora_r: int = _key(16, "rank", least=1)
    lora_alpha: float = _key(32, "scale is alpha / r", least=0)
    lora_dropout: float = _key(0.0, "dropout before the adapter", least=0, most=0.999)
    parts: str = _key("language:attention,mlp", "PART[,PART]:KIND[,KIND]; vision, projector, language: attention, mlp")
    target_modules: tuple[str, ...] = _key((), "module names instead of parts; all-linear is every linear layer")
    modules_to_save: tuple[str, ...] = _key((), "modules trained in full and saved with the adapter")
    bias: str = _key("none", "which biases are trained", among=("none", "all", "lora_only"))
    rslora: bool = _key(False, "scale is alpha / sqrt(r)")


@dataclass(frozen=True, slots=True)
class Training:
    """Steps and their size."""

    epochs: float = _key(1.0, "passes over the data", least=0.001)
    max_steps: int | None = _key(None, "stop after so many optimizer steps, whatever the epochs", least=1)
    batch_size: int = _key(4, "rows (dpo: pairs) per device and forward", least=1)
    accumulate: int = _key(1, "forwards per optimizer step", least=1)
    learning_rate: float = _key(2e-4, "peak learning rate", least=0)
    schedule: str = _key("linear", "learning rate over time", among=SCHEDULES)
    warmup: float = _key(0.0, "steps of warm-up; below 1 a fraction of all steps", least=0)
    weight_decay: float = _key(0.0, "AdamW's decay", least=0)
    max_grad_norm: float = _key(1.0, "gradients are clipped to this norm; 0 is off", least=0)
    optimizer: str = _key("adamw", "adamw_8bit needs bitsandbytes", among=("adamw", "adamw_8bit"))
    gradient_checkpointing: bool | None = _key(None, "recompute activations to save memory; unset is on for a GPU only")
    seed: int = _key(0, "of initial adapter weights, dropout and row order", least=0, most=2**32 - 1)
    group_by_length: bool = _key(True, "rows of like length share a batch")
    compact_head: bool = _key(True, "project answer tokens only through the LM head")
    share_features: bool = _key(True, "a frozen vision tower sees each image once per step, without a graph")
    workers: int | None = _key(None, "processes that decode images; unset is chosen by the device", least=0)
    eval_fraction: float = _key(0.0, "share of the data held out for evaluation", least=0, most=0.9)
    eval_steps: int | None = _key(None, "evaluate every so many steps; unset is after each epoch", least=1)
    save_steps: int = _key(200, "write a checkpoint every so many steps", least=1)
    keep_checkpoints: int = _key(2, "how many of the last checkpoints stay", least=1)
    logging_steps: int | None = _key(None, "log every so many steps; unset is a 100th of the run, at most 10", least=1)


@dataclass(frozen=True, slots=True)
class Length:
    """What happens to rows that do not fit."""

    max_length: int | None = _key(None, "most tokens of a row, image tokens too; unset: the model's context", least=8)
    on_long: str = _key("shrink", "longer rows: shrink images, else drop; drop; fail", among=("shrink", "drop", "fail"))


@dataclass(frozen=True, slots=True)
class Preference:
    """DPO only."""

    beta: float = _key(0.1, "how far the policy may go from the reference", least=0)
    loss_type: tuple[str, ...] = _key(("sigmoid",), "loss, or several to be added", among=LOSSES)
    loss_weights: tuple[float, ...] = _key((), "weight of each loss; unset is 1")
    label_smoothing: float = _key(0.0, "share of pairs assumed to be the wrong way round", least=0, most=0.499)
    reference: str = _key("precompute", "when the reference is asked: before, or live", among=("precompute", "live"))


@dataclass(frozen=True, slots=True)
class Rows:
    """How datasets become rows."""


@dataclass(frozen=True, slots=True)
class Watching:
    """What is looked at during a run, and where it is shown."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """SFT only."""


@dataclass(frozen=True, slots=True)
class Unpaired:
    """KTO only."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Image classification only."""


_TEXT = ("sft", "dpo", "kto")
# Attribute of a Config -> its group and the methods that have it.
GROUPS: Mapping[str, tuple[type[Any], tuple[str, ...]]] = {
    "base": (Base, METHODS),
    "lora": (Adapter, METHODS),
    "training": (Training, METHODS),
    "rows": (Rows, METHODS),
    "watching": (Watching, METHODS),
    "length": (Length, _TEXT),
    "supervision": (Supervision, ("sft",)),
    "preference": (Preference, ("dpo",)),
    "unpaired": (Unpaired, ("kto",)),
    "classification": (Classification, ("classify",)),
}
