"""Every configuration key of a run: its group, default, bounds and one line of help.

The groups apply by method (``vlmtrain.config``); a key means the same in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmtrain.family import PARTS

__all__ = [
    "Adapter",
    "BITSANDBYTES",
    "Base",
    "Classification",
    "EVAL_METRICS",
    "GROUPS",
    "INITS",
    "LOSSES",
    "Length",
    "METHODS",
    "OPTIMIZERS",
    "Preference",
    "Rows",
    "Supervision",
    "TRACKERS",
    "TUNERS",
    "Training",
    "Unpaired",
    "WATCHED_ONLY",
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
LOG_MODEL = ("no", "end", "checkpoint")
TRACKERS = ("none", "wandb", "tensorboard", "trackio")
# Of text methods, but for loss: figures of vlmeval's tasks, see vlmtrain.evaluate; top5 is a classifier's.
EVAL_METRICS = (
    "loss",
    "accuracy",
    "f1",
    "exact",
    "anls",
    "relaxed",
    "fields",
    "cer",
    "wer",
    "cider",
    "bleu4",
    "rouge_l",
    "amber_accuracy",
    "amber_f1",
    "amber_chair",
    "amber_cover",
    "amber_hal",
    "amber_cog",
    "top5",
)
# Of Watching, the keys that change nothing about the weights.
WATCHED_ONLY = (
    "report_to",
    "project",
    "run_name",
    "log_model",
    "curves",
    "sample_steps",
    "sample_rows",
    "sample_tokens",
    "sample_temperature",
    "sample_min_p",
)
TUNERS = ("lora", "dora", "loha", "lokr", "adalora", "full")
INITS = ("default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16", "loftq")
MIX_STOPS = ("first", "all")
TRAIN_ON = ("assistant", "completion", "all")
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "constant",
    "constant_with_warmup",
)
# Ours -> transformers' name.
OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_fused": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "lion": "lion_32bit",
    "lion_8bit": "lion_8bit",
    "sgd": "sgd",
}
BITSANDBYTES = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion", "lion_8bit")


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
    quantize_parts: tuple[str, ...] = _key(("language",), "parts loaded in fewer bits", among=PARTS)
    max_image_tokens: int | None = _key(None, "most tokens one image may take", least=1)
    image_processor: Mapping[str, Any] | None = _key(None, "its settings, as {size: {longest_edge: 490, ...}}")
    trust_remote_code: bool = _key(False, "run code that comes with a hub model")


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is trained: LoRA or one of its kin, where and how much; or the model itself."""

    tuner: str = _key("lora", "kind of adapter; full trains the chosen parts of the model itself", among=TUNERS)
    init: str = _key("default", "first LoRA weights; loftq needs quantize=4bit", among=INITS)
    lora_r: int = _key(16, "rank", least=1)
    lora_alpha: float = _key(32, "scale is alpha / r", least=0)
    lora_dropout: float = _key(0.0, "dropout before the adapter", least=0, most=0.999)
    parts: str = _key("language:attention,mlp", "PART[,PART]:KIND[,KIND]; vision, projector, language: attention, mlp")
    target_modules: tuple[str, ...] = _key((), "module names instead of parts; all-linear is every linear layer")
    lora_last_layers: int | None = _key(None, "only the last so many blocks get an adapter; unset: all", least=1)
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
    auto_batch: bool = _key(False, "out of memory: begin again with half the batch, twice the accumulation")
    learning_rate: float = _key(2e-4, "peak learning rate", least=0)
    schedule: str = _key("linear", "learning rate over time", among=SCHEDULES)
    warmup: float = _key(0.0, "steps of warm-up; below 1 a fraction of all steps", least=0)
    min_learning_rate: float = _key(0.0, "where cosine_with_min_lr ends", least=0)
    weight_decay: float = _key(0.0, "the optimizer's decay", least=0)
    max_grad_norm: float = _key(1.0, "gradients are clipped to this norm; 0 is off", least=0)
    optimizer: str = _key("adamw", "8bit, paged, lion: of bitsandbytes; adamw: fused on a GPU", among=tuple(OPTIMIZERS))
    adam_beta1: float = _key(0.9, "of adamw and lion", least=0, most=0.99999)
    adam_beta2: float = _key(0.999, "of adamw and lion", least=0, most=0.99999)
    adam_epsilon: float = _key(1e-8, "of adamw", least=0)
    gradient_checkpointing: bool | None = _key(None, "recompute activations to save memory; unset is on for a GPU only")
    checkpoint_layers: int | None = _key(None, "how many layers recompute, the first; unset: where it pays", least=1)
    compile: bool = _key(False, "torch.compile the layers of the model; measure whether it pays")
    seed: int = _key(0, "of initial adapter weights, dropout and row order", least=0, most=2**32 - 1)
    group_by_length: bool = _key(True, "rows of like length share a batch")
    compact_head: bool = _key(True, "project answer tokens only through the LM head")
    fused_lora: bool = _key(True, "LoRA's product is added where the base's is computed; plain LoRA without dropout")
    skip_unread: bool = _key(True, "sft, dpo: the last layer computes what is read: answers, keys and values of others")
    share_features: bool = _key(True, "a frozen vision tower sees each image once per step, without a graph")
    cache_vision: str = _key("off", "keep what a frozen tower gives, for all epochs", among=("off", "ram", "disk"))
    cache_vision_gb: float | None = _key(None, "room for it; unset: 1/4 of memory, 1/2 of the free disk", least=0)
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
    ld_alpha: float | None = _key(None, "LD-DPO: weight of tokens beyond the shorter answer's length", least=0, most=1)
    f_divergence_type: str = _key("reverse_kl", "distance from the reference (f-DPO)", among=DIVERGENCES)
    f_alpha_divergence_coef: float = _key(0.5, "alpha of alpha_divergence")
    discopop_tau: float = _key(0.05, "temperature of discopop", least=1e-6)
    use_weighting: bool = _key(False, "WPO: pairs weigh what the policy would write itself")
    image_weight: float = _key(0.0, "mDPO: weight of preferring the picture to a spoiled one; paper: 1", least=0)
    image_corruption: str = _key("crop", "mDPO: how a picture is spoiled", among=("crop", "noise", "mask"))
    anchor_weight: float = _key(0.0, "mDPO: weight of a chosen reward above anchor_delta; paper: 1", least=0)
    anchor_delta: float = _key(0.0, "mDPO: what the chosen reward is to exceed")
    reference: str = _key("precompute", "when the reference is asked: before, or live", among=("precompute", "live"))
    reference_cache: bool = _key(True, "what the reference says of a row is kept on disk for other runs")
    group_by_image: bool = _key(False, "pairs on the same image share a batch, as many as it holds, and its tokens")
    share_prefix: bool = _key(True, "what the answers of a pair have in common runs through the model once")


@dataclass(frozen=True, slots=True)
class Rows:
    """How datasets become rows."""

    data_weights: tuple[float, ...] = _key((), "share of each --data in an epoch; unset takes all rows of all")
    mix_stop: str = _key("first", "with weights, an epoch ends when the first, or all, are used up", among=MIX_STOPS)
    streaming: bool = _key(False, "read rows when they are needed: for data larger than memory and disk cache")
    shuffle_buffer: int = _key(1000, "with streaming, rows among which it is shuffled", least=1)
    on_bad_row: str = _key("skip", "a row that cannot be read, found during training", among=("skip", "fail"))


@dataclass(frozen=True, slots=True)
class Watching:
    """What is looked at during a run, and where it is shown."""

    report_to: tuple[str, ...] = _key((), "trackers that get the figures, too", among=TRACKERS)
    project: str | None = _key(None, "project at the tracker; unset: vlmtrain")
    run_name: str | None = _key(None, "name at the tracker; unset: that of the run folder")
    log_model: str = _key("no", "W&B artifacts: the finished run; checkpoint: those, too", among=LOG_MODEL)
    curves: bool = _key(True, "draw curves.png when the run ends")
    sample_steps: int | None = _key(None, "answers to held-out rows before, every so many steps, and after", least=1)
    sample_rows: int = _key(3, "how many rows those are", least=1)
    sample_tokens: int = _key(64, "most tokens of such an answer", least=1)
    sample_temperature: float = _key(0.0, "0: the likeliest token; above: drawn", least=0, most=100)
    sample_min_p: float = _key(0.0, "draw from tokens at least that likely, against the likeliest", least=0, most=1)
    eval_metric: str = _key("loss", "what evaluations are for; all but loss by written answers", among=EVAL_METRICS)
    eval_rows: int = _key(200, "most held-out rows, and AMBER items, that are answered for that", least=1)
    eval_tokens: int = _key(128, "most tokens of such an answer", least=1)
    eval_amber: str | None = _key(None, "folder of AMBER's files: its figures at every evaluation")
    eval_amber_images: str | None = _key(None, "folder of its pictures; unset: images in that folder")
    eval_on_start: bool = _key(False, "evaluate before the first step, too")
    keep_best: bool | None = _key(None, "end with the weights that were best by eval_metric; unset: classify does")
    push_to_hub: str | None = _key(None, "ORG/NAME on the hub the finished run is uploaded to")
    hub_private: bool = _key(False, "a repository that is made there is private")


@dataclass(frozen=True, slots=True)
class Supervision:
    """SFT only."""

    train_on: str = _key("assistant", "tokens with a loss: all answers, the last, or all text", among=TRAIN_ON)
    weight_by: str | None = _key(None, "key of each row's meta with the weight of the row's tokens")
    loss_type: str = _key("nll", "nll, or dft: each token's loss times its probability", among=("nll", "dft"))
    neftune_noise_alpha: float | None = _key(None, "NEFTune: noise on the embeddings; its paper takes 5", least=0)
    group_by_image: bool = _key(False, "rows on the same image share a batch, as many as it holds")
    share_prefix: bool = _key(True, "what rows of a batch on one image have in common runs through the model once")
    packing: bool = _key(True, "rows of a batch lie end to end, without padding; each sees itself alone, as ever")


@dataclass(frozen=True, slots=True)
class Unpaired:
    """KTO only."""

    beta: float = _key(0.1, "how far the policy may go from the reference", least=0)
    loss_type: str = _key("kto", "kto, or apo_zero_unpaired, which has no KL term", among=("kto", "apo_zero_unpaired"))
    desirable_weight: float = _key(1.0, "weight of the losses of good answers", least=0)
    undesirable_weight: float = _key(1.0, "weight of the losses of bad answers", least=0)
    label_by: str | None = _key(None, "key of each row's meta that says whether its answer is good; data: messages")
    reference: str = _key("precompute", "when the reference is asked: before, or live", among=("precompute", "live"))
    reference_cache: bool = _key(True, "what the reference says of a row is kept on disk for other runs")


@dataclass(frozen=True, slots=True)
class Classification:
    """Image classification only."""

    augment: str = _key("crop_flip", "training pictures: a random crop and flip, or none", among=("crop_flip", "none"))
    crop_scale: float = _key(0.08, "smallest share of a picture that a random crop shows", least=0.01, most=1)
    center_crop: bool = _key(True, "evaluation pictures: resized and cropped; false: as the base's processor has it")
    label_smoothing: float = _key(0.0, "share of a label that is spread over all classes", least=0, most=0.999)
    class_weights: str = _key("none", "balanced: rare classes weigh as much as common ones", among=("none", "balanced"))
    head_only: bool = _key(False, "train the head alone, no LoRA (linear probe)")
    cache_features: bool = _key(True, "augment=none: what the head, or the first trained block, sees: computed once")
    cache_in: str = _key("ram", "where what the first trained block sees is kept", among=("ram", "disk"))
    cache_gb: float | None = _key(None, "room for it; unset: 1/4 of memory, 1/2 of the free disk", least=0)


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
