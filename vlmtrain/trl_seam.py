"""With ``vlmtrain.feeding`` where private names of TRL and transformers are touched; a test fails when one moves."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtrain.adalora import ranks_of_best
from vlmtrain.checkpoints import rotate, seal, writable
from vlmtrain.features import IMAGES, image_features, repeat_rows
from vlmtrain.feeding import Feeding
from vlmtrain.lean.folded import folded_inputs

if TYPE_CHECKING:
    import torch

    from vlmtrain.bad_rows import Ledger
    from vlmtrain.caches.feature_cache import FeatureCache
    from vlmtrain.family import Family

__all__ = [
    "TrainerSeam",
    "answer_log_probs",
    "booked_lm_head",
    "compact_lm_head",
    "complete_reference_copy",
    "current_names",
    "drop_reference_copy",
    "image_tokens",
    "no_reference_model",
    "reference_is_precomputed",
    "wrap_layers",
]


def image_tokens(processor: Any, sizes: Sequence[tuple[int, int]], family: Family) -> list[int]:
    """How many tokens take the place of each image's placeholder, without looking at a pixel.

    Args:
        processor: a multimodal processor with its size settings.
        sizes: (width, height) of each image in pixels.
        family: of the model; some count for their processor.
    """
    if family.count_tokens is not None:
        return family.count_tokens(processor, sizes)
    counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
    return [int(count) for count in counts["num_image_tokens"]]


@contextlib.contextmanager
def compact_lm_head(on: bool = True) -> Iterator[None]:
    """Project supervised positions only through the LM head, also without Triton.

    TRL 1.16 does so on GPUs; elsewhere it projects every position, prompt, image and padding, to keep shapes
    constant for compilers (``trl.trainer.utils._fused_forward``), and folds the logits in many passes
    (``vlmtrain.lean.head``). Loss and gradients are the same.
    """
    import trl.trainer.utils as trl_utils

    from vlmtrain.lean.head import in_place

    if not on:
        yield
        return
    before = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        with in_place():
            yield
    finally:
        trl_utils._use_triton = before


@contextlib.contextmanager
def booked_lm_head(label: Callable[[], contextlib.AbstractContextManager[None]], kernels: bool) -> Iterator[None]:
    """TRL's fused LM head on tensors without numbers, to see what it allocates.

    Args:
        label: entered around its forward and its backward.
        kernels: fold its tiles as on a GPU, by kernels that allocate nothing.
    """
    import trl.kernels.chunked_logprob as kernel
    import trl.trainer.utils as trl_utils

    head: Any = kernel.ChunkedLogProbFunction if kernels else trl_utils._ChunkedLogProbFunction

    class Labelled(head):
        @staticmethod
        def forward(*args: Any) -> Any:
            with label():
                return head.forward(*args)

        @staticmethod
        def backward(*args: Any) -> Any:
            with label():
                return head.backward(*args)

    def folded(*args: Any, **kwargs: Any) -> None:
        """What a kernel leaves behind."""

    swaps: list[tuple[Any, str, Any]] = [(trl_utils, "_ChunkedLogProbFunction", Labelled)]
    if kernels:
        swaps += [(kernel, name, folded) for name in ("_forward_tile", "_backward_tile", "_addmm_fp32")]
    before = [getattr(place, name) for place, name, _ in swaps]
    for place, name, value in swaps:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(swaps, before, strict=True):
            setattr(place, name, value)


def reference_is_precomputed(trainer: Any) -> None:
    """Tell a DPOTrainer to take reference log-probabilities from the batch; TRL refuses its own option for images."""
    trainer.precompute_ref_logps = True


def answer_log_probs(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Log-probability of each row's answer, ``[B]``, through TRL's fused LM head.

    Args:
        model: of a TRL trainer.
        inputs: what its forward takes, with ``labels`` or ``completion_mask`` ``[B, T]``.
    """
    plain = {key: value for key, value in inputs.items() if key != "completion_mask"}
    if "labels" not in plain:
        plain["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    summed: torch.Tensor = model(**plain, use_cache=False, fused_lm_head=True).log_probs.sum(1)
    return summed


def current_names(model: Any, names: Sequence[str]) -> list[str]:
    """Names of modules as older versions of transformers had them, brought to today's where it knows how.

    The tables are those that convert the weights of old models when they are loaded.

    Args:
        model: a transformers model.
        names: full names of modules.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    # Converters merge and split weights; an adapter's cannot follow them.
    renamings = [entry for entry in get_model_conversion_mapping(model) if not isinstance(entry, WeightConverter)]
    return [rename_source_key(f"{name}.weight", renamings, [])[0].removesuffix(".weight") for name in names]


@contextlib.contextmanager
def no_reference_model() -> Iterator[None]:
    """Let a DPOTrainer or KTOTrainer of a whole model be made without loading the model again from where it came from.

    The reference is asked before the first step, when it still is the model itself, or it is handed over as a copy.
    """
    import trl.trainer.dpo_trainer as dpo_trainer
    import trl.trainer.kto_trainer as kto_trainer

    before = [(module, module.create_model_from_path) for module in (dpo_trainer, kto_trainer)]
    for module, _ in before:
        module.create_model_from_path = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for module, plain in before:
            module.create_model_from_path = plain


def complete_reference_copy(trainer: Any) -> None:
    """Make the second copy of a pretrained adapter, TRL's reference, a copy.

    TRL 1.16 copies parameters with ``.default.`` inside their names; those of LoHa and LoKr end with ``.default``, so
    that its reference is a fresh adapter, which is none.
    """
    import torch

    if "ref" not in getattr(trainer.model, "peft_config", ()):
        return
    parameters = dict(trainer.model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith(".default"):
                parameters[name.removesuffix("default") + "ref"].copy_(parameter)


def drop_reference_copy(trainer: Any) -> None:
    """Drop the second copy of a pretrained adapter that TRL keeps as the reference; log-probabilities replace it."""
    if "ref" in getattr(trainer.model, "peft_config", ()):
        trainer.model.delete_adapter("ref")


def wrap_layers(trainer: Any) -> None:
    """Have FSDP wrap the layers that a model says must not be split, as far as it has them.

    upstream bug: accelerate 1.15 refuses a model that names a layer it does not have, as LLaVA does (CLIP's text side).
    """
    if not trainer.is_fsdp_enabled:
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        present = {type(module).__name__ for module in trainer.model.modules()}
        plugin.transformer_cls_names_to_wrap = [n for n in trainer.model._no_split_modules or () if n in present]


class TrainerSeam(Feeding):
    """Put before SFTTrainer or DPOTrainer: our row order, our checkpoints, image features computed once.

    Attributes:
        save_to: writes the trained weights into a checkpoint folder.
        family: of the model.
        share_features: run a frozen tower under ``no_grad`` and hand its output to every forward of the step.
        sides: how many rows of a forward share the images of one row of the batch; 2 for pairs of answers.
        penalty: a term of the loss that depends on the weights alone.
        ledger: of rows that could not be read.
        judge: gives further figures of an evaluation, of what the model writes.
        cache: of image features, for batches that come without the pixels of images in it.
    """

    save_to: Any
    family: Any
    share_features: bool = True
    sides: int = 1
    penalty: Callable[[], torch.Tensor] | None = None
    ledger: Ledger | None = None
    judge: Callable[[], Mapping[str, float]] | None = None
    cache: FeatureCache | None = None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's evaluation, and the figures of ``judge``, before they are logged and compared.

        What it draws is its own: a run that goes on behind it must not differ from one that has evaluated.
        """
        import torch

        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
            if self.judge is not None:
                prefix = kwargs.get("metric_key_prefix", "eval")
                output.metrics.update({f"{prefix}_{name}": value for name, value in self.judge().items()})
        return output

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter alone; the stock method also pickles the arguments, which hold paths of this machine."""
        args: Any = self.args  # type: ignore[attr-defined]
        if args.should_save:
            self.save_to(Path(output_dir or args.output_dir), state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """One checkpoint that is whole or not taken; older ones go when it is."""
        trainer: Any = self
        folder, keep = Path(trainer.args.output_dir), trainer.args.save_total_limit
        name = f"checkpoint-{trainer.state.global_step}"
        writes = trainer.args.should_save
        with writable(folder, name if writes else ""):
            if writes:
                shutil.rmtree(folder / name, ignore_errors=True)
            trainer.accelerator.wait_for_everyone()
            trainer.args.save_total_limit = None
            try:
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
            finally:
                trainer.args.save_total_limit = keep
            trainer.accelerator.wait_for_everyone()
            if writes:
                seal(folder / name)
                rotate(folder, keep, trainer.state.best_model_checkpoint)

    def whole_state(self) -> Any:
        """All weights, where processes hold them in parts (FSDP, DeepSpeed); else None. For all of them to call."""
        trainer: Any = self
        if trainer.is_fsdp_enabled:
            return trainer.accelerator.get_state_dict(trainer.model)
        return trainer.accelerator.get_state_dict(trainer.deepspeed) if trainer.is_deepspeed_enabled else None

    def _load_best_model(self) -> None:
        """Every rank of an AdaLoRA adapter is in its checkpoint, whatever the run has pruned since."""
        with ranks_of_best(self):
            super()._load_best_model()  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card per checkpoint; the run folder gets its own."""

    @functools.cached_property
    def tower_is_frozen(self) -> bool:
        """Whether nothing that makes image features is trained; that does not change during a run."""
        model: Any = self.model  # type: ignore[attr-defined]
        names = (name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad)
        return not any(name.startswith(self.family.towers) for name in names)

    @property
    def net(self) -> Any:
        """The transformers model, without what trainers and adapters wrap around it."""
        trainer: Any = self
        found = trainer.accelerator.unwrap_model(trainer.model)
        return found.get_base_model() if hasattr(found, "get_base_model") else found

    @property
    def is_sharded(self) -> bool:
        """Whether processes hold the weights in parts, so that a tower cannot be run but inside a whole forward."""
        trainer: Any = self
        return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss on a batch whose pixels have become features where that is exact."""
        if self.ledger is not None:
            self.ledger.take(inputs)
        return self.loss_of(model, self.with_features(inputs), *args, **kwargs)

    def loss_of(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss on a prepared batch; methods with terms of their own add them here."""
        found = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        if self.penalty is None or not trainer.model.training:
            return found
        more = self.penalty()
        if trainer.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None:
            # The trainer divides by the number of accumulated batches only where the loss does not do so itself.
            more = more / trainer.current_gradient_accumulation_steps
        return (found[0] + more, *found[1:]) if isinstance(found, tuple) else found + more

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's reference pass on the same features."""
        return super().compute_ref_log_probs(model, self.with_features(inputs))  # type: ignore[misc]

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The reference, for forwards without a graph: the model without its new adapter or with an old one's copy."""
        import torch
        from trl.models.utils import disable_gradient_checkpointing
        from trl.trainer.utils import use_adapter

        trainer: Any = self
        net, adapter = trainer.accelerator.unwrap_model(trainer.model), contextlib.nullcontext()
        if trainer.ref_model is None and hasattr(net, "peft_config"):
            adapter = use_adapter(net, "ref" if "ref" in net.peft_config else None)
        checkpointing = trainer.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(trainer.model, checkpointing), adapter:
            with trainer.accelerator.autocast():
                yield trainer.model if trainer.ref_model is None else trainer.ref_model

    def with_features(self, inputs: Mapping[str, Any], sides: int | None = None) -> dict[str, Any]:
        """Pixels of B rows or pairs to what the model's forward takes for its B or 2B rows.

        A frozen tower runs once, under ``no_grad``: gradient checkpointing would otherwise put a graph through it
        (transformers makes the patch embedding's output require grad), and DPO would run it four times a pair.
        """
        import torch

        inputs = dict(inputs)
        copies, images = self.sides if sides is None else sides, inputs.pop(IMAGES, None)
        if (sharing := inputs.get("sharing")) is not None:
            inputs["sharing"] = folded_inputs(self.net, self.family, inputs, sharing)
            copies = 1 if "fold" in sharing else copies
        if images is not None and self.cache is not None:
            with torch.no_grad(), self.accelerator.autocast():  # type: ignore[attr-defined]
                return self.cache.in_place_of_pixels(self.net, self.family, inputs, images, copies)
        if inputs.get("pixel_values") is None:
            return inputs
        pixel_keys = {"pixel_values", *self.family.feature_inputs, *self.family.pixel_inputs} & inputs.keys()
        if self.share_features and self.tower_is_frozen and not self.is_sharded:
            seen = {key: inputs[key] for key in ("pixel_values", *self.family.feature_inputs) if key in inputs}
            accelerator: Any = self.accelerator  # type: ignore[attr-defined]
            with torch.no_grad(), accelerator.autocast():
                inputs |= (self.family.features or image_features)(self.net, seen, copies)
            pixel_keys.remove("pixel_values")
            del inputs["pixel_values"]
        if copies > 1:
            repeat = self.family.repeat or repeat_rows
            inputs |= repeat({key: inputs[key] for key in pixel_keys}, copies)
        return inputs
