"""One training step without numbers: the step that would run, on the meta device, with every byte booked.

What is built is what ``vlmtrain`` would load: the family's model, peft's adapter on the layers the keys choose, TRL's
fused LM head, gradient checkpointing, the frozen tower's shared features. What is left out is small or not a tensor:
the CUDA context, fragmentation, cuDNN's and cuBLAS's workspaces, and what ``fused_lora`` saves.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from vlmtrain.adapters import adapter_folder
from vlmtrain.config import Config
from vlmtrain.lean.folded import obstacle, take_folded
from vlmtrain.lean.last_layer import METHODS, read_where_learned
from vlmtrain.lean.last_layer import obstacle as unread
from vlmtrain.lean.recompute import can_recompute, keeps_last, recompute_first, recomputes
from vlmtrain.model import Loaded, quiet
from vlmtrain.narrow import narrowed, pixel_dtype
from vlmtrain.parts import layers_of, parts_of
from vlmtrain.planning.batches import Load, make_batch
from vlmtrain.planning.emulate import Emulation, backward
from vlmtrain.planning.ledger import Ledger
from vlmtrain.planning.shapes import Shape
from vlmtrain.planning.states import optimizer_bytes
from vlmtrain.sharing import Share
from vlmtrain.trl_seam import TrainerSeam, booked_lm_head, compact_lm_head
from vlmtrain.tuning import adapter_config, weights_dtype

__all__ = ["ITEMS", "Memory", "prepare", "rehearse", "stored_bytes"]

ITEMS = ("weights", "adapter", "reference", "gradients", "optimizer", "activations", "logits", "images")


@dataclass(slots=True)
class Memory:
    """What a run holds at its largest moment.

    Attributes:
        items: bytes by item; they add up to the peak.
        phase: ``forward and backward`` or ``optimizer step``, whichever is larger.
        base: parameters of the base.
        trained: parameters that are trained.
        batch: rows of a forward, ``tokens`` its tokens, ``pixels`` bytes of its images as the processor gives them.
        most: the largest each of activations, logits and images gets; not at the same moment.
        recomputed: how many layers of the language model or classifier compute their activations again.
    """

    items: dict[str, int]
    phase: str
    base: int
    trained: int
    batch: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    recomputed: int = 0

    @property
    def peak(self) -> int:
        """Bytes of all items."""
        return sum(self.items.values())


def rehearse(config: Config, shape: Shape, load: Load, *, device: str = "cuda", copy: bool = False) -> Memory:
    """Run a step of a configuration without memory and say what it would have taken.

    Args:
        config: of the run.
        shape: of its model, image budget set.
        load: the largest row.
        device: ``cuda`` or ``cpu``: what defaults, mixed precision and kernels depend on.
        copy: keep a second copy of the base as the reference, which ``vlmtrain`` does not.

    Raises:
        ConfigError: layers or parts that the model does not have, or images that do not fit into a row.
    """
    t = config.training
    with quiet():
        step = _Step(config, shape, device)
        batch = step.handed_over(
            make_batch(shape, t.batch_size, load, pairs=step.pairs, share=step.share, reads=step.reads)
        )
        spoiled = None
        if config.preference is not None and config.preference.image_weight:
            # mDPO: the chosen answers once more, on other pixels.
            spoiled = step.handed_over(make_batch(shape, t.batch_size, load, pairs=True, reads=step.reads))
        ledger = step.run(batch, spoiled)
    pixels = [v for k, v in batch.items() if k in step.pixel_keys and isinstance(v, torch.Tensor)]
    held = sum(v.numel() * v.element_size() for v in pixels)
    # Those that wait for their turn are not on the device; in memory the loader has one more in hand, and those of a
    # step are together where their labels are counted.
    waiting = held * (t.accumulate if config.method in _COUNTED else 1) if device == "cpu" else 0
    moving = {name: max(0, ledger.peak[name]) for name in ("gradients", "activations", "logits", "images")}
    moving["images"] += waiting
    stepping = {**step.stepping(), "logits": 0, "images": held + waiting if device == "cpu" else 0}
    forward = sum(moving.values()) >= sum(stepping.values())
    items = {**step.stored(copy), **(moving if forward else stepping)}
    ids = batch.get("input_ids")
    return Memory(
        items={name: int(items.get(name, 0)) for name in ITEMS},
        phase="forward and backward" if forward else "optimizer step",
        base=shape.stated or step.base,
        trained=step.trained,
        batch={"rows": t.batch_size, "tokens": ids.numel() if ids is not None else 0, "pixels": held},
        most={name: ledger.most[name] for name in ("activations", "logits", "images")},
        recomputed=sum(layer.gradient_checkpointing for layer in layers_of(step.net, shape.family).values()),
    )


def stored_bytes(config: Config, shape: Shape, *, copy: bool = False) -> int:
    """Bytes that stay on a GPU for the whole run: weights, adapter, reference and the optimizer's states."""
    with quiet():
        return sum(_Step(config, shape, "cuda").stored(copy).values())


def prepare(config: Config, shape: Shape) -> tuple[Any, int, int]:
    """The model with what is trained on it, on the meta device; the base's parameters, and bytes of one of them.

    Raises:
        ConfigError: layers or parts that the model does not have.
    """
    with quiet():
        base = shape.build(weights_dtype(config))
        count = sum(p.numel() for p in base.parameters())
        return _tuned(base, shape, config), count, base.dtype.itemsize


class _Step:
    """A model ready for one step, as the trainers would have it."""

    def __init__(self, config: Config, shape: Shape, device: str) -> None:
        self.config, self.shape, self.device = config, shape, device
        base = shape.build(weights_dtype(config))
        base.train()
        self.base = sum(p.numel() for p in base.parameters())
        self.dtype = base.dtype
        self.packed = _packed(base, shape, config)
        self.model = _tuned(base, shape, config)
        if shape.family.prepare_model is not None:
            shape.family.prepare_model(base, shape.processor)
        self.pairs = config.method == "dpo" or (config.unpaired is not None and not config.unpaired.label_by)
        self.pixel_keys = {"pixel_values", *shape.family.feature_inputs, *shape.family.pixel_inputs}
        self.share: Share | None = None
        if not obstacle(base, shape.family):
            if config.preference is not None and config.preference.share_prefix:
                self.share = take_folded(base)
            if config.supervision is not None and config.supervision.packing:
                self.share = take_folded(base, beginnings=False, packs=True)
        t = config.training
        self.reads = t.skip_unread and config.method in METHODS and not unread(base, shape.family, t)
        if self.reads:
            read_where_learned(base, shape.family)
        if recomputes(t, device) and can_recompute(base, shape.name, t):
            keep_last = keeps_last(config, self.reads)
            recompute_first(base, shape.family, t.checkpoint_layers, keep_last=keep_last)
            base.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})

    @property
    def trained(self) -> int:
        """How many parameters are trained."""
        return sum(p.numel() for p in self._trainable())

    def handed_over(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch as workers hand it over."""
        kind = pixel_dtype(self.net, self.shape.family)
        return narrowed(batch, kind) if isinstance(kind, torch.dtype) else batch

    def stored(self, copy: bool) -> dict[str, int]:
        """Bytes that stay for the whole run, by item."""
        found: Counter[str] = Counter()
        scale = self.shape.stated / self.base if self.shape.stated else 1.0
        full = self.config.lora.tuner == "full"
        for parameter in self.model.parameters():
            size: float = parameter.numel() * parameter.element_size()
            if id(parameter) in self.packed:
                size = _packed_bytes(parameter, self.config.base.quantize)
            own = not full and parameter.requires_grad
            found["adapter" if own else "weights"] += int(size if own else size * scale)
        found["weights"] += sum(b.numel() * b.element_size() for b in self.model.buffers())
        if copy or self._keeps_reference():
            found["reference"] = found["weights" if copy or full else "adapter"]
        found["optimizer"] = int(self._optimizer()[0] * (scale if full else 1))
        return dict(found)

    def stepping(self) -> dict[str, int]:
        """Bytes that a step of the optimizer takes besides."""
        gradients = sum(p.numel() * p.element_size() for p in self._trainable())
        return {"gradients": gradients, "activations": self._optimizer()[1]}

    def _trainable(self) -> list[Any]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _optimizer(self) -> tuple[int, int]:
        return optimizer_bytes(self.config.training.optimizer, self._trainable(), cpu=self.device == "cpu")

    def _keeps_reference(self) -> bool:
        """Whether a second model or adapter stays on the device (``reference: live``)."""
        group = self.config.preference or self.config.unpaired
        live = group is not None and group.reference == "live"
        return live and (self.config.lora.tuner == "full" or self.config.base.adapter is not None)

    def run(self, batch: dict[str, Any], spoiled: dict[str, Any] | None = None) -> Ledger:
        """Forward and backward; the gradients of earlier micro-batches are there where there are any."""
        ledger = Ledger()
        for parameter in self.model.parameters():
            ledger.book(parameter, "weights")
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: ledger.book(p.grad, "gradients"))
                if self.config.training.accumulate > 1:
                    parameter.grad = torch.empty_like(parameter)
                    ledger.book(parameter.grad, "gradients")
        for buffer in self.model.buffers():
            ledger.book(buffer, "weights")
        for key, value in batch.items():
            if isinstance(value, torch.Tensor):
                ledger.book(value, "images" if key in self.pixel_keys else "activations")
        if self.config.method != "classify":
            self._watch_towers(ledger)
        kind, gpu = self._autocast(), self.device != "cpu"
        packed = dict.fromkeys(self.packed, kind or self.dtype)
        compact = gpu or self.config.training.compact_head
        head = booked_lm_head(lambda: ledger.label("logits"), kernels=gpu)
        emulation = Emulation(kind, packed)
        with emulation.on(), compact_lm_head(compact), head, ledger:
            loss = self._loss(batch, ledger)
            if spoiled is not None:
                loss = loss + self._answers(_chosen(spoiled), ledger, sides=1)
            emulation.forward_is_done()
            backward(loss)
        return ledger

    def _loss(self, batch: dict[str, Any], ledger: Ledger) -> torch.Tensor:
        method, net = self.config.method, self.net
        if method == "classify":
            loss: torch.Tensor = self.model(**batch).loss
            return loss
        add_fused_lm_head(net, outputs=_OUTPUTS[method])
        return self._answers(batch, ledger, sides=2 if self.pairs else 1)

    def _answers(self, batch: dict[str, Any], ledger: Ledger, *, sides: int) -> torch.Tensor:
        """The sum of the answers' log-probabilities, and what other forwards the method makes beside it."""
        with ledger.label("images"):
            inputs = _Seam(self.model, self.shape, self.config).with_features(batch, sides)
        learned = inputs.pop("completion_mask", None)
        if learned is not None:
            inputs["labels"] = inputs["input_ids"].masked_fill(learned == 0, -100)
        inputs |= {"use_cache": False, "fused_lm_head": True}
        unpaired = self.config.unpaired
        if unpaired is not None and unpaired.loss_type == "kto":
            # The KL term: mismatched answers, as many.
            with torch.no_grad(), _without_checkpointing(self.net):
                self.model(**inputs)
        total: torch.Tensor = self.model(**inputs).log_probs.sum()
        if self._asks_reference():
            with torch.no_grad(), _without_checkpointing(self.net):
                self.model(**inputs)
        return total

    def _asks_reference(self) -> bool:
        group = self.config.preference or self.config.unpaired
        return group is not None and group.reference == "live"

    @property
    def net(self) -> Any:
        """The model without an adapter's wrapping."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _autocast(self) -> torch.dtype | None:
        """As ``vlmtrain.arguments`` and ``vlmtrain.classify`` set it."""
        halves = (torch.bfloat16, torch.float16)
        if self.config.method == "classify":
            return self.dtype if self.dtype in halves else None
        if self.device == "cpu":
            return None
        if self.config.base.quantize != "none" or weights_dtype(self.config) != self.config.base.dtype:
            return torch.bfloat16
        return self.dtype if self.dtype in halves else None

    def _watch_towers(self, ledger: Ledger) -> None:
        """What is made inside the towers is booked as of images."""
        stack: list[Any] = []

        def enter(module: Any, args: Any) -> None:
            stack.append(ledger.label("images"))
            stack[-1].__enter__()

        def leave(module: Any, args: Any, out: Any) -> None:
            stack.pop().__exit__(None, None, None)

        for name, module in self.net.named_modules():
            if f"{name}." in self.shape.family.towers:
                module.register_forward_pre_hook(enter)
                module.register_forward_hook(leave)


# Methods whose loss is divided by the labels of a step.
_COUNTED = ("sft", "classify")
# The figures TRL's trainers ask the head for besides log-probabilities.
_OUTPUTS = {
    "sft": ("log_probs", "entropy", "is_top1"),
    "dpo": ("log_probs", "entropy", "mean_logits", "is_top1"),
    "kto": ("log_probs", "entropy", "mean_logits", "is_top1"),
}


class _Seam(TrainerSeam):
    """The trainers' own way from pixels to features, without a trainer."""

    def __init__(self, model: Any, shape: Shape, config: Config) -> None:
        self.model, self.family = model, shape.family
        self.share_features = config.training.share_features
        self.is_fsdp_enabled = self.is_deepspeed_enabled = False
        self.accelerator = SimpleNamespace(unwrap_model=lambda net: net, autocast=contextlib.nullcontext)


def _chosen(batch: dict[str, Any]) -> dict[str, Any]:
    """The first half of a batch of pairs; its pixels are those of both halves."""
    rows = len(batch["input_ids"])
    half = {}
    for key, value in batch.items():
        own = isinstance(value, torch.Tensor) and len(value) == rows and key != "pixel_values"
        half[key] = value[: rows // 2] if own else value
    return half


@contextlib.contextmanager
def _without_checkpointing(net: Any) -> Iterator[None]:
    modules = [module for module in net.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in modules:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in modules:
            module.gradient_checkpointing = True


def _tuned(base: Any, shape: Shape, config: Config) -> Any:
    """The base with what is trained on it."""
    from peft import PeftConfig, get_peft_model

    if config.base.adapter is not None:
        lora: Any = PeftConfig.from_pretrained(str(adapter_folder(config.base.adapter)))
        lora.inference_mode = False
        return get_peft_model(base, lora, low_cpu_mem_usage=True)
    lora = adapter_config(config, Loaded(base, shape.processor, shape.family, shape.name, ""))
    if lora is None:
        return base
    base.requires_grad_(False)
    return get_peft_model(base, lora, low_cpu_mem_usage=True)


def _packed(base: Any, shape: Shape, config: Config) -> set[int]:
    """Weights that bitsandbytes would hold in fewer bits, by ``id``: as ``vlmtrain.quantization`` chooses them."""
    if config.base.quantize == "none":
        return set()
    modules = dict(base.named_modules())
    head = base.get_output_embeddings()
    linear = {n: m for n, m in modules.items() if isinstance(m, torch.nn.Linear) and m is not head}
    belongs = parts_of(linear, shape.family, list(modules))
    own = shape.family.head
    return {
        id(module.weight)
        for name, module in linear.items()
        if belongs[name] in config.base.quantize_parts and not (own and name == own)
    }


def _packed_bytes(weight: torch.Tensor, quantize: str) -> int:
    """8 bits with one float per output; 4 bits (NF4) with one float for every 64 weights."""
    if quantize == "8bit":
        return weight.numel() + 4 * weight.shape[0]
    return weight.numel() // 2 + 4 * -(-weight.numel() // 64)
