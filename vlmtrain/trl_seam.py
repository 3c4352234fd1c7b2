"""The one place that touches private names of TRL and transformers; a test fails when one of them moves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["TrainerSeam", "compact_lm_head", "drop_reference_copy", "image_tokens", "reference_is_precomputed"]


def image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """How many tokens take the place of each image's placeholder, without looking at a pixel.

    Args:
        processor: a multimodal processor with its size settings.
        sizes: (width, height) of each image in pixels.
    """
    counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
    return [int(count) for count in counts["num_image_tokens"]]


@contextlib.contextmanager
def compact_lm_head(on: bool = True) -> Iterator[None]:
    """Project supervised positions only through the LM head, also without Triton.

    TRL 1.16 does so on GPUs; elsewhere it projects every position, prompt, image and padding, to keep shapes
    constant for compilers (``trl.trainer.utils._fused_forward``). Loss and gradients are the same.
    """
    import trl.trainer.utils as trl_utils

    if not on:
        yield
        return
    before = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = before


def reference_is_precomputed(trainer: Any) -> None:
    """Tell a DPOTrainer to take reference log-probabilities from the batch; TRL refuses its own option for images."""
    trainer.precompute_ref_logps = True


def drop_reference_copy(trainer: Any) -> None:
    """Drop the second copy of a pretrained adapter that TRL keeps as the reference; log-probabilities replace it."""
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")


class TrainerSeam:
    """Put before SFTTrainer or DPOTrainer: our row order, our checkpoints, image features computed once.

    Attributes:
        sampler: order of the rows of each epoch.
        save_to: writes the trained weights into a checkpoint folder.
        family: of the model.
        share_features: run a frozen tower under ``no_grad`` and hand its output to every forward of the step.
    """

    sampler: torch.utils.data.Sampler[int]
    save_to: Any
    family: Any
    share_features: bool = True
    tokens_seen: int = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return self.sampler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter alone; the stock method also pickles the arguments, which hold paths of this machine."""
        args: Any = self.args  # type: ignore[attr-defined]
        self.save_to(Path(output_dir or args.output_dir))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card per checkpoint; the run folder gets its own."""

    @functools.cached_property
    def tower_is_frozen(self) -> bool:
        """Whether nothing that makes image features is trained; that does not change during a run."""
        model: Any = self.model  # type: ignore[attr-defined]
        names = (name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad)
        return not any(name.startswith(self.family.towers) for name in names)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss on a batch whose pixels have become features where that is exact."""
        if self.model.training:  # type: ignore[attr-defined]
            self.tokens_seen += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, self.with_features(inputs), *args, **kwargs)  # type: ignore[misc]

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's reference pass on the same features."""
        return super().compute_ref_log_probs(model, self.with_features(inputs))  # type: ignore[misc]

    def with_features(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Pixels of B rows or pairs to what the model's forward takes for its B or 2B rows.

        A frozen tower runs once, under ``no_grad``: gradient checkpointing would otherwise put a graph through it
        (transformers makes the patch embedding's output require grad), and DPO would run it four times a pair.
        """
        import torch

        inputs = dict(inputs)
        if inputs.get("pixel_values") is None:
            return inputs
        copies = 2 if "completion_mask" in inputs else 1
        extra = {key: inputs[key] for key in self.family.feature_inputs if key in inputs}
        if self.share_features and self.tower_is_frozen:
            pixels = inputs.pop("pixel_values")
            accelerator: Any = self.accelerator  # type: ignore[attr-defined]
            net = accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
            net = net.get_base_model() if hasattr(net, "get_base_model") else net
            with torch.no_grad(), accelerator.autocast():
                features = net.get_image_features(pixel_values=pixels, return_dict=True, **extra)
            features.pooler_output = [*features.pooler_output] * copies
            inputs["mm_encoder_outputs"] = {"image": features}
        elif copies == 2:
            inputs["pixel_values"] = torch.cat([inputs["pixel_values"]] * 2)
        if copies == 2:
            inputs |= {key: torch.cat([value] * 2) for key, value in extra.items()}
        return inputs
