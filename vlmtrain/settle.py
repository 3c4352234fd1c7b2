"""A trainer and what it trains, brought together: what TRL leaves undone for adapters that are not plain LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vlmdata.errors import ConfigError
from vlmtrain.adalora import RankUpdates, orthogonality
from vlmtrain.bases import Base, load_base, locate
from vlmtrain.initial import LOFTQ, adapter_weights, as_plain_lora, start_from_loftq
from vlmtrain.job import Job
from vlmtrain.saving import save
from vlmtrain.trl_seam import complete_reference_copy
from vlmtrain.tuning import MUTATING

__all__ = ["save_trained", "settle"]


def settle(trainer: Any, job: Job) -> None:
    """Called once, when the trainer has put the adapter on the model and before anything is computed with it.

    Raises:
        ConfigError: first weights that the layers are too small for.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    lora, base = job.config.lora, job.config.base
    complete_reference_copy(trainer)
    if base.quantize != "none":
        # TRL holds the adapter in bfloat16 on a quantized base, where small steps of the optimizer round to nothing;
        # peft's own way, and QLoRA's with 16-bit compute, is float32. An adapter that is trained further has been
        # rounded by then, and would not be its reference.
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                exact = job.exact.pop(name, parameter.data)
                parameter.data = exact.to(parameter.device, torch.float32)
    if hasattr(model, "peft_config") and hasattr(model.peft_config["default"], "target_r"):
        trainer.penalty = lambda: orthogonality(model)
        if base.adapter is None:
            updates = RankUpdates(model, job.checkpoint)
            trainer.add_callback(updates)
            trainer.save_to = updates.beside(trainer.save_to)
    if base.adapter is not None or lora.init not in (*MUTATING, "loftq"):
        return
    if lora.init == "loftq":
        start_from_loftq(model, _unquantized(job))
    job.initial = adapter_weights(model)
    for key, value in job.initial.items():
        if "lora_A" in key and value.shape[0] != lora.lora_r:
            layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            raise ConfigError(f"init {lora.init}: lora_r {lora.lora_r} is more than {layer} has, {value.shape[0]}")


def _unquantized(job: Job) -> Any:
    from transformers import AutoConfig

    base = job.config.base
    source = locate(str(base.model))
    config = AutoConfig.from_pretrained(source, trust_remote_code=base.trust_remote_code)
    whole = Base(source, job.loaded.base, job.loaded.family, config, base.trust_remote_code)
    return load_base(whole, base.dtype, "cpu")


def save_trained(model: Any, job: Job, out: Path, state: Any = None) -> None:
    """Write what a finished run learned: an adapter that stands on the published base, or a model folder.

    Args:
        model: without the trainer's wrapping.
        job: what was trained.
        out: the folder to write to.
        state: the weights, where several processes hold them in parts.
    """
    from safetensors.torch import save_file

    save(model, job.loaded.processor, out, job.loaded.base, state=state)
    if job.initial is None:
        return
    if job.config.lora.init == "loftq":
        save_file(job.initial, out / LOFTQ, metadata={"format": "pt"})
        return
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    state = {key: value.detach().cpu() for key, value in state.items()}
    state, config = as_plain_lora(state, model.peft_config["default"], job.initial)
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(str(out))
