"""What SFT, DPO and KTO have in common: from options to a prepared job, and from a trained model to a run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vlmdata.atomic import write_json
from vlmtrain import distributed
from vlmtrain.bad_rows import Tolerant
from vlmtrain.caches.feature_cache import discard, feature_cache
from vlmtrain.card import card
from vlmtrain.checkpoints import check_space, step_of, writable
from vlmtrain.dropout import no_dropout
from vlmtrain.hub import push
from vlmtrain.job import Job, open_run, start
from vlmtrain.lean.compiling import compile_layers
from vlmtrain.lean.last_layer import skip_unread
from vlmtrain.lean.lora_product import fuse_products
from vlmtrain.lean.recompute import choose_layers
from vlmtrain.lengths import context_length
from vlmtrain.model import load, quiet, save
from vlmtrain.narrow import worker_dtype
from vlmtrain.ordering import EpochOrder
from vlmtrain.rows import choose, finish_counts, sources
from vlmtrain.rows import order as row_order
from vlmtrain.runs import RunResult
from vlmtrain.settle import save_trained, settle
from vlmtrain.supervision import refusal
from vlmtrain.trl_seam import compact_lm_head, wrap_layers
from vlmtrain.tuning import adapter_config, weights_dtype
from vlmtrain.watching.memory import peak_memory
from vlmtrain.watching.watch import Watch, sections

__all__ = ["attach", "begin", "best_step", "run"]


def begin(method: str, **given: Any) -> Job | RunResult:
    """Check everything, cheapest first, then load and prepare; a finished run that is resumed is given back.

    Args:
        method: ``sft``, ``dpo`` or ``kto``.
        given: as :func:`vlmtrain.job.open_run` takes them.

    Raises:
        VlmError: anything that cannot work, before training starts.
    """
    opening = open_run(method, **given)
    if isinstance(opening, RunResult):
        return opening
    config, base = opening.config, opening.config.base
    assert config.length is not None
    refuse = refusal(config, [data.rows for data in (opening.data, opening.eval_data) if data])
    loaded = load(
        base.model,
        base.adapter,
        dtype=weights_dtype(config),
        quantize=base.quantize,
        quantize_parts=base.quantize_parts,
        max_image_tokens=base.max_image_tokens,
        image_processor=base.image_processor,
        trust_remote_code=base.trust_remote_code,
        trainable=True,
        task="text",
    )
    lora = None if base.adapter else adapter_config(config, loaded)
    limit = config.length.max_length or context_length(loaded.model, loaded.processor)
    chosen = choose(opening, loaded, limit, refuse)
    job = start(
        opening,
        loaded,
        chosen.rows,
        chosen.eval_rows,
        chosen.counts,
        lora=lora,
        dropped=chosen.dropped,
        fitting=chosen.fitting,
    )
    if base.adapter and base.quantize != "none":
        job.exact = {name: p.detach().clone() for name, p in loaded.model.named_parameters() if p.requires_grad}
    return job


def run(trainer: Any, job: Job) -> RunResult:
    """Train to the end and write the run folder; ``vlmtrain.json`` last.

    Args:
        trainer: an SFTTrainer or DPOTrainer behind ``TrainerSeam``.
        job: what it was made from.
    """
    watch = Watch(trainer, job)
    try:
        with watch, writable(job.folder.path), quiet(), compact_lm_head(job.config.training.compact_head):
            outcome = trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
            evaluated = job.reporter.last("eval_loss")
            if job.eval_rows is not None and evaluated.get("step") != outcome.global_step:
                trainer.evaluate()
            watch.trained(best_step(trainer) or outcome.global_step)
    except KeyboardInterrupt:
        job.reporter.close()
        job.reporter.say(f"stopped at step {trainer.state.global_step}: --resume goes on from the last checkpoint")
        raise
    finally:
        job.reporter.close()
    out = job.folder.path
    model = trainer.accelerator.unwrap_model(trainer.model)
    finish_counts(job)
    state, tokens = trainer.whole_state(), sum(distributed.gathered(trainer.tokens_seen))
    memory = max(distributed.gathered(peak_memory()))
    seconds = time.monotonic() - job.started
    trained = outcome.metrics["train_runtime"]
    best = best_step(trainer)
    metrics = {
        "steps": outcome.global_step,
        "loss": outcome.training_loss,
        "final": _figures(job.reporter.last("loss")),
        "eval": _figures(job.reporter.last("eval_loss") if best is None else job.reporter.evaluation(best)),
        "best_step": best,
        "seconds": round(seconds, 2),
        "train_seconds": round(trained, 2),
        f"{job.reporter.unit}_per_second": round(tokens / max(trained, 1e-9), 1),
        "peak_memory_bytes": memory,
        "device": _device_name(job.device),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in job.loaded.model.parameters()),
        "rows": job.counts,
        "processes": job.processes,
        "batch_size": job.config.training.batch_size,
        "accumulate": job.config.training.accumulate,
        "asked_batch": job.identity.get("asked_batch"),
        "resumed_from_step": int(job.checkpoint.name.rpartition("-")[2]) if job.checkpoint else None,
        **({"vision_cache": trainer.cache.figures()} if trainer.cache is not None else {}),
        **watch.figures(best),
    }
    if distributed.is_first():
        with writable(out):
            save_trained(model, job, out, state)
            watch.finish(metrics)
            _describe(job, metrics)
            discard(job.folder.checkpoints)
        watch.close(out)
        if job.config.watching.push_to_hub:
            watching = job.config.watching
            job.reporter.say(f"pushed to {push(out, str(watching.push_to_hub), private=watching.hub_private)}")
    # A launcher that sees one process end may end the others.
    distributed.gathered(None)
    return RunResult(out, metrics, job.identity["config"])


def best_step(trainer: Any) -> int | None:
    """The step whose weights a run ends with, where the best of its evaluations are kept; else None."""
    found = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return step_of(Path(found)) if found else None


def _describe(job: Job, metrics: dict[str, Any]) -> None:
    """What a run folder says about itself; ``vlmtrain.json`` last."""
    out = job.folder.path
    write_json(out / "metrics.json", metrics)
    packages = ("torch", "transformers", "trl", "peft", "vlm-toolkit")
    versions = {name: metadata.version(name) for name in packages}
    about = {"schema": 1, "method": job.config.method, "family": job.loaded.family.name, **job.identity}
    about["versions"] = versions
    (out / "README.md").write_text(card(about, metrics) + sections(out, metrics), encoding="utf-8")
    write_json(out / "vlmtrain.json", about)


def attach(trainer: Any, job: Job, *, order: Any = None) -> Any:
    """Give a trainer behind ``TrainerSeam`` what it needs; returns it.

    Args:
        trainer: of transformers or TRL.
        job: what it was made from.
        order: of the rows; None takes :func:`vlmtrain.rows.order`.
    """
    from transformers import PrinterCallback

    trainer.family = job.loaded.family
    trainer.share_features = job.config.training.share_features
    trainer.sampler = order or row_order(job)
    processor, base = job.loaded.processor, job.loaded.base
    trainer.save_to = lambda out, state: save(
        trainer.accelerator.unwrap_model(trainer.model), processor, out, base, checkpoint=True, state=state
    )
    trainer.ledger = job.ledger
    trainer.data_collator = Tolerant(trainer.data_collator, sources(job))
    trainer.add_callback(EpochOrder(trainer.sampler))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(job.reporter)
    job.reporter.trainer = trainer
    wrap_layers(trainer)
    settle(trainer, job)
    if getattr(trainer.args, "disable_dropout", False):
        no_dropout(trainer.model)
    trainer.narrow = worker_dtype(trainer, job)
    trainer.cache = feature_cache(trainer, job)
    if trainer.cache is not None:
        trainer.data_collator.collate.known = trainer.cache.known
    fuse_products(trainer, job)
    skip_unread(trainer, job)
    choose_layers(trainer, job)
    compile_layers(trainer, job)
    check_space(trainer.model, job.folder.path, job.config.training.keep_checkpoints, job.reporter.say)
    return trainer


def _figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("step", "epoch", "seconds")}


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
