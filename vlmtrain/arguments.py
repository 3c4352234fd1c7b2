"""A run's configuration as keyword arguments of transformers' and TRL's trainers."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from vlmtrain.job import Job
from vlmtrain.keys import OPTIMIZERS
from vlmtrain.lean.recompute import recomputes
from vlmtrain.tuning import weights_dtype

__all__ = ["arguments", "optimizer_name"]


def arguments(job: Job) -> dict[str, Any]:
    """Keyword arguments for TRL's SFTConfig and DPOConfig."""
    t = job.config.training
    cpu = job.device == "cpu"
    mixed = weights_dtype(job.config) != job.config.base.dtype
    has_bf16 = not cpu and torch.cuda.is_bf16_supported(False)
    dtype = str(job.loaded.model.dtype).removeprefix("torch.")
    per_epoch = math.ceil(math.ceil(len(job.rows) / t.batch_size) / t.accumulate)
    total = t.max_steps or max(1, math.ceil(per_epoch * t.epochs))
    workers = t.workers if t.workers is not None else (0 if cpu else min(4, max(1, (os.cpu_count() or 1) - 1)))
    if workers:
        # Workers are forked after the tokenizer was used; its threads would not survive that.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    evaluate = "no" if job.eval_rows is None else "steps" if t.eval_steps else "epoch"
    return {
        "output_dir": str(job.folder.checkpoints),
        "num_train_epochs": t.epochs,
        "max_steps": t.max_steps or -1,
        "per_device_train_batch_size": t.batch_size,
        "per_device_eval_batch_size": t.batch_size,
        "gradient_accumulation_steps": t.accumulate,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.schedule,
        "warmup_steps": t.warmup,
        "lr_scheduler_kwargs": {"min_lr": t.min_learning_rate} if t.schedule == "cosine_with_min_lr" else None,
        "weight_decay": t.weight_decay,
        "adam_beta1": t.adam_beta1,
        "adam_beta2": t.adam_beta2,
        "adam_epsilon": t.adam_epsilon,
        "max_grad_norm": t.max_grad_norm,
        "optim": optimizer_name(t.optimizer, job.device),
        "activation_checkpointing": recomputes(t, job.device),
        "seed": t.seed,
        "use_cpu": cpu,
        "bf16": not cpu and (dtype == "bfloat16" or job.config.base.quantize != "none" or (mixed and has_bf16)),
        "fp16": not cpu and job.config.base.quantize == "none" and (dtype == "float16" or (mixed and not has_bf16)),
        "eval_strategy": evaluate,
        "eval_steps": t.eval_steps,
        "eval_on_start": job.config.watching.eval_on_start,
        "prediction_loss_only": True,
        "save_strategy": "steps",
        "save_steps": t.save_steps,
        "save_total_limit": t.keep_checkpoints,
        "logging_steps": t.logging_steps or max(1, min(10, total // 100)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "dataloader_num_workers": workers,
        "dataloader_pin_memory": not cpu,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
    }


def optimizer_name(optimizer: str, device: str) -> str:
    """What transformers calls an optimizer; AdamW on a GPU is fused: the same update in one pass over the weights.

    Args:
        optimizer: key of ``vlmtrain.keys.OPTIMIZERS``.
        device: ``cpu`` or ``cuda``.
    """
    return OPTIMIZERS["adamw_fused" if optimizer == "adamw" and device == "cuda" else optimizer]
