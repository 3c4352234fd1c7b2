"""The same training prepared twice: by vlmtrain, as its commands do it, and by plain TRL."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["NOTHING_KNOWN", "gpu_path", "ours", "same_weights", "theirs"]


# What an earlier run left is not to be found.
NOTHING_KNOWN: dict[str, dict[str, Any]] = {"sft": {}, "dpo": {"reference_cache": False}}


@contextlib.contextmanager
def gpu_path() -> Iterator[None]:
    """TRL as on a GPU: it projects supervised positions only. On a CPU it is made to, by its own operations."""
    import trl.trainer.utils as trl_utils

    before = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = before


def ours(
    method: str, model: Path, data: Path, out: Path, *, options: Mapping[str, Any], sets: Sequence[str] = ()
) -> Any:
    """The trainer of vlmtrain; where the reference is asked beforehand, it has been.

    Args:
        method: ``sft`` or ``dpo``.
        model: folder of the base.
        data: a converted dataset.
        out: a folder for the run's own.
        options: configuration keys of ``vlmtrain.config``.
        sets: further ones, ``key=value``.
    """
    from vlmtrain.training import begin

    given = {"model": str(model), **NOTHING_KNOWN[method], **options}
    job = begin(method, data=[data], out=out / "run", progress=False, sets=sets, options=given)
    return importlib.import_module(f"vlmtrain.{method}").make_trainer(job)


def theirs(
    method: str,
    model: Path,
    data: Path,
    out: Path,
    family: str,
    *,
    arguments: Mapping[str, Any],
    lora: Mapping[str, Any],
    dtype: str = "auto",
) -> Any:
    """The trainer of TRL, with LoRA on the linear layers of the language model.

    Args:
        method: ``sft``, whose loss is on the answers, or ``dpo``.
        model: folder of the base.
        data: a converted dataset.
        out: a folder for the trainer's own.
        family: of the model, as vlmtrain calls it.
        arguments: of the trainer's configuration.
        lora: of peft's.
        dtype: of the weights.
    """
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from vlmtrain.family import load

    net = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
    files = sorted(map(str, data.glob("*.parquet")))
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(out / "cache"))
    given: dict[str, Any] = {"output_dir": str(out / "trl"), "report_to": "none", "max_length": None, **arguments}
    if method == "sft":
        kind, args = SFTTrainer, SFTConfig(**given, assistant_only_loss=True)
    else:
        kind, args = DPOTrainer, DPOConfig(**given)
    return kind(
        model=net,
        args=args,
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(model),
        peft_config=LoraConfig(**lora, target_modules=load(family).target_regex(("language",), ("attention", "mlp"))),
    )


def same_weights(model: Any) -> None:
    """Give an adapter the same weights whatever made it; with them the policy is not the reference."""
    import torch

    generator = torch.Generator().manual_seed(7)
    for _, weight in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        if weight.requires_grad:
            weight.data.copy_(torch.empty(weight.shape).normal_(0, 0.02, generator=generator))
