"""What SFT and DPO have in common: from options to a prepared job, and from a trained model to a run folder."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vlmdata.atomic import sha256_file, write_json
from vlmdata.errors import ConfigError, DependencyError, choices
from vlmdata.licences import non_commercial
from vlmtrain import config as configs
from vlmtrain.adapters import adapter_folder, read_run
from vlmtrain.card import card
from vlmtrain.config import Config
from vlmtrain.data import Grouped, Opened, hold_out, open_data
from vlmtrain.lengths import Fit, context_length, fit
from vlmtrain.model import Loaded, load, quiet, save
from vlmtrain.progress import Reporter, peak_memory
from vlmtrain.runs import RunFolder, RunResult
from vlmtrain.trl_seam import compact_lm_head

__all__ = ["Job", "arguments", "attach", "begin", "run", "sampler"]

KINDS = {"sft": "messages", "dpo": "preference"}


@dataclass(slots=True)
class Job:
    """Everything a trainer needs.

    Attributes:
        rows: training rows with their lengths; ``eval_rows`` the held-out ones.
        checkpoint: to go on from.
        identity: what the run is, for ``--resume`` and ``vlmtrain.json``.
        counts: rows read, kept, shrunk, dropped.
    """

    config: Config
    folder: RunFolder
    loaded: Loaded
    reporter: Reporter
    rows: Any
    eval_rows: Any
    checkpoint: Path | None
    identity: dict[str, Any]
    counts: dict[str, Any]
    lora: Any = None
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return str(self.loaded.model.device.type)


def begin(
    method: str,
    *,
    data: Sequence[str | Path],
    out: str | Path,
    eval_data: Sequence[str | Path] = (),
    recipe: str | None = None,
    sets: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    options: Mapping[str, Any],
) -> Job | RunResult:
    """Check everything, cheapest first, then load and prepare; a finished run that is resumed is given back.

    Raises:
        VlmError: anything that cannot work, before training starts.
    """
    config = configs.resolve(method, options, recipe=recipe, sets=sets)
    if config.base.adapter and Path(config.base.adapter).resolve() == Path(out).resolve():
        raise ConfigError(f"--out {out} is the adapter that is to be trained further: choose another folder")
    if config.training.eval_fraction and eval_data:
        raise ConfigError("--eval-data and --eval-fraction exclude each other")
    folder = RunFolder(out, overwrite=overwrite, resume=resume)
    recorded = _recorded(config)
    done = folder.finished(recorded)
    if done:
        return done
    _check_optimizer(config)
    kind = KINDS[method]
    opened = open_data(data, kind)
    opened_eval = open_data(eval_data, kind) if eval_data else None
    base = config.base
    loaded = load(
        base.model,
        base.adapter,
        dtype=base.dtype,
        quantize=base.quantize,
        max_image_tokens=base.max_image_tokens,
        trust_remote_code=base.trust_remote_code,
        trainable=True,
    )
    lora = None if base.adapter else _lora(config, loaded)
    reporter = Reporter(folder.log, show=progress)
    for entry in opened.origin:
        if non_commercial(entry["licence"]):
            reporter.say(f"{entry['name']}: licence {entry['licence']}, NOT for commercial use")
    limit = config.length.max_length or context_length(loaded.model, loaded.processor)
    fitted = [
        _fit(rows, kind, config, loaded, limit, reporter, first)
        for rows, first in ((opened, 0), (opened_eval, len(opened.rows)))
        if rows is not None
    ]
    rows, eval_rows, counts = _split(fitted, config)
    identity = {
        "config": recorded,
        "base": loaded.base,
        "base_hash": loaded.base_hash,
        "adapter": _adapter_identity(base.adapter),
        "data": opened.origin,
        "eval_data": opened_eval.origin if opened_eval else [],
    }
    checkpoint = folder.start(identity, torch.get_num_threads())
    # Sums come out bit by bit the same with the same number of threads only.
    torch.set_num_threads(folder.threads())
    dropped = [{"id": row, "reason": why, "detail": what} for fit in fitted for row, why, what in fit.dropped]
    if dropped:
        write_json(folder.path / "dropped.json", dropped)
    job = Job(config, folder, loaded, reporter, rows, eval_rows, checkpoint, identity, counts, lora)
    _announce(job)
    return job


def _fit(
    opened: Opened, kind: str, config: Config, loaded: Loaded, limit: int | None, reporter: Reporter, first: int
) -> Fit:
    reporter.open("rows", len(opened.rows))
    try:
        return fit(
            opened.rows,
            kind,
            loaded.processor,
            loaded.family,
            max_length=limit,
            on_long=config.length.on_long,
            first=first,
            progress=reporter.advance,
        )
    finally:
        reporter.close()


def _split(fitted: Sequence[Fit], config: Config) -> tuple[Any, Any, dict[str, Any]]:
    """Rows to train and to evaluate on, and the counts of both."""
    rows, counts = fitted[0].rows, fitted[0].summary()
    if len(fitted) > 1:
        return rows, fitted[1].rows, {**counts, "eval": fitted[1].summary()}
    if not config.training.eval_fraction:
        return rows, None, counts
    train, held = hold_out(rows, config.training.eval_fraction, config.training.seed)
    return rows.select(train), rows.select(held), {**counts, "held_out": len(held)}


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


def run(trainer: Any, job: Job) -> RunResult:
    """Train to the end and write the run folder; ``vlmtrain.json`` last.

    Args:
        trainer: an SFTTrainer or DPOTrainer behind ``TrainerSeam``.
        job: what it was made from.
    """
    try:
        with quiet(), compact_lm_head(job.config.training.compact_head):
            outcome = trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
            evaluated = job.reporter.last("eval_loss")
            if job.eval_rows is not None and evaluated.get("step") != outcome.global_step:
                trainer.evaluate()
    except KeyboardInterrupt:
        job.reporter.close()
        job.reporter.say(f"stopped at step {trainer.state.global_step}: --resume goes on from the last checkpoint")
        raise
    finally:
        job.reporter.close()
    out = job.folder.path
    model = trainer.accelerator.unwrap_model(trainer.model)
    save(model, job.loaded.processor, out, job.loaded.base)
    seconds = time.monotonic() - job.started
    trained = outcome.metrics["train_runtime"]
    metrics = {
        "steps": outcome.global_step,
        "loss": outcome.training_loss,
        "final": _figures(job.reporter.last("loss")),
        "eval": _figures(job.reporter.last("eval_loss")),
        "seconds": round(seconds, 2),
        "train_seconds": round(trained, 2),
        "tokens_per_second": round(trainer.tokens_seen / max(trained, 1e-9), 1),
        "peak_memory_bytes": peak_memory(),
        "device": _device_name(job.device),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in job.loaded.model.parameters()),
        "rows": job.counts,
        "resumed_from_step": int(job.checkpoint.name.rpartition("-")[2]) if job.checkpoint else None,
    }
    write_json(out / "metrics.json", metrics)
    packages = ("torch", "transformers", "trl", "peft", "vlm-toolkit")
    versions = {name: metadata.version(name) for name in packages}
    about = {"schema": 1, "method": job.config.method, "family": job.loaded.family.name, **job.identity}
    about["versions"] = versions
    (out / "README.md").write_text(card(about, metrics), encoding="utf-8")
    write_json(out / "vlmtrain.json", about)
    return RunResult(out, metrics, job.identity["config"])


def sampler(job: Job) -> Grouped:
    """The training rows' order."""
    t = job.config.training
    lengths = list(job.rows["length"]) if t.group_by_length else None
    return Grouped(len(job.rows), t.batch_size, t.seed, lengths)


def attach(trainer: Any, job: Job) -> Any:
    """Give a trainer behind ``TrainerSeam`` what it needs; returns it."""
    from transformers import PrinterCallback

    trainer.family = job.loaded.family
    trainer.share_features = job.config.training.share_features
    trainer.sampler = sampler(job)
    processor, base = job.loaded.processor, job.loaded.base
    trainer.save_to = lambda out: save(trainer.accelerator.unwrap_model(trainer.model), processor, out, base)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(job.reporter)
    job.reporter.trainer = trainer
    return trainer


def _lora(config: Config, loaded: Loaded) -> Any:
    from peft import LoraConfig

    lora = config.lora
    names = [name for name, _ in loaded.model.named_modules()]
    leaves = {name.rpartition(".")[2] for name in names}
    for key in ("target_modules", "modules_to_save"):
        for wanted in getattr(lora, key):
            if wanted != "all-linear" and not any(name == wanted or name.endswith("." + wanted) for name in names):
                linear = {n.rpartition(".")[2] for n, m in loaded.model.named_modules() if hasattr(m, "in_features")}
                raise ConfigError(f"{key}: no module named {wanted!r}; linear layers: {choices(linear & leaves)}")
    head = loaded.model.get_output_embeddings()
    own = {name.rpartition(".")[2] for name, module in loaded.model.named_modules() if module is head}
    if own & set(lora.target_modules):
        raise ConfigError(f"target_modules: {choices(own)} is the LM head, which takes no LoRA; use modules_to_save")
    if lora.target_modules:
        targets: Any = "all-linear" if "all-linear" in lora.target_modules else list(lora.target_modules)
    else:
        targets = loaded.family.target_regex(*configs.parse_parts(lora.parts))
    return LoraConfig(
        r=lora.lora_r,
        lora_alpha=int(lora.lora_alpha) if lora.lora_alpha == int(lora.lora_alpha) else lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        modules_to_save=list(lora.modules_to_save) or None,
        bias=lora.bias,
        use_rslora=lora.rslora,
        base_model_name_or_path=loaded.base,
    )


def _check_optimizer(config: Config) -> None:
    if config.training.optimizer == "adamw_8bit":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise DependencyError("bitsandbytes", "quant", "optimizer adamw_8bit") from None


def _recorded(config: Config) -> dict[str, Any]:
    """The configuration as a run folder keeps it; an adapter that is trained further brings its own LoRA settings."""
    flat = config.to_json()
    if config.base.adapter is None:
        return flat
    before = read_run(config.base.adapter).get("config", {})
    own = json.loads((adapter_folder(config.base.adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    flat |= {key: own.get(key) for key in ("lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias")}
    return {**flat, "lora_r": own.get("r"), "rslora": own.get("use_rslora"), "parts": before.get("parts")}


def _adapter_identity(adapter: str | None) -> dict[str, str] | None:
    if adapter is None:
        return None
    name = Path(adapter).resolve().name if Path(adapter).is_dir() else adapter
    return {"name": name, "sha256": sha256_file(adapter_folder(adapter) / "adapter_model.safetensors")}


def _announce(job: Job) -> None:
    say, counts = job.reporter.say, job.counts
    say(f"model  {job.loaded.base} ({job.loaded.family.name}, {job.device}, {str(job.loaded.model.dtype)[6:]})")
    more = f", {len(job.eval_rows):,} for evaluation" if job.eval_rows is not None else ""
    say(f"rows   {len(job.rows):,}{more}; {counts['tokens']:,} tokens, {counts['image_tokens']:,} of images")
    if counts["shrunk"]:
        say(f"       {counts['shrunk']:,} rows have their images made smaller to fit")
    for reason, number in counts["dropped"].items():
        say(f"       {number:,} rows dropped: {reason} (dropped.json)")
    if job.checkpoint:
        say(f"resume {job.checkpoint.name}")


def _figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("step", "epoch", "seconds")}


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
