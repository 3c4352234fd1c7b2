"""A run's configuration as keyword arguments of transformers' and TRL's trainers."""

from __future__ import annotations

import math
import os
from typing import Any

from vlmtrain.job import Job

__all__ = ["arguments"]


def arguments(job: Job) -> dict[str, Any]:
    """Keyword arguments for TRL's SFTConfig and DPOConfig."""
    t = job.config.training
    cpu = job.device == "cpu"
    dtype = str(job.loaded.model.dtype).removeprefix("torch.")
    per_epoch = math.ceil(math.ceil(len(job.rows) / t.batch_size) / t.accumulate)
    total = t.max_steps or max(1, math.ceil(per_epoch * t.epochs))
    workers = t.workers if t.workers is not None else (0 if cpu else min(4, max(1, (os.cpu_count() or 1) - 1)))
    if workers:
        # Workers are forked after the tokenizer was used; its threads would not survive that.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    checkpointing = t.gradient_checkpointing if t.gradient_checkpointing is not None else not cpu
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
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "optim": {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit"}[t.optimizer],
        "activation_checkpointing": checkpointing,
        "seed": t.seed,
        "use_cpu": cpu,
        "bf16": not cpu and (dtype == "bfloat16" or job.config.base.quantize != "none"),
        "fp16": not cpu and dtype == "float16" and job.config.base.quantize == "none",
        "eval_strategy": evaluate,
        "eval_steps": t.eval_steps,
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
