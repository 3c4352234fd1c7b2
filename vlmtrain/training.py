"""What SFT, DPO and KTO have in common: from options to a prepared job, and from a trained model to a run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

from vlmdata.atomic import write_json
from vlmtrain.card import card
from vlmtrain.config import Config
from vlmtrain.data import Grouped, Opened, hold_out
from vlmtrain.job import Job, Opening, open_run, start
from vlmtrain.lengths import Fit, context_length, fit
from vlmtrain.model import Loaded, load, quiet, save
from vlmtrain.progress import peak_memory
from vlmtrain.runs import RunResult
from vlmtrain.trl_seam import compact_lm_head
from vlmtrain.tuning import adapter_config

__all__ = ["attach", "begin", "run", "sampler"]


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
    loaded = load(
        base.model,
        base.adapter,
        dtype=base.dtype,
        quantize=base.quantize,
        max_image_tokens=base.max_image_tokens,
        trust_remote_code=base.trust_remote_code,
        trainable=True,
    )
    lora = None if base.adapter else adapter_config(config, loaded)
    limit = config.length.max_length or context_length(loaded.model, loaded.processor)
    first = len(opening.data.rows)
    fitted = [_fit(opening, opening.data, loaded, limit, 0)]
    fitted += [_fit(opening, opening.eval_data, loaded, limit, first)] if opening.eval_data else []
    rows, eval_rows, counts = _split(fitted, config)
    dropped = [{"id": row, "reason": why, "detail": what} for fit in fitted for row, why, what in fit.dropped]
    return start(opening, loaded, rows, eval_rows, counts, lora=lora, dropped=dropped)


def _fit(opening: Opening, opened: Opened, loaded: Loaded, limit: int | None, first: int) -> Fit:
    reporter, length = opening.reporter, opening.config.length
    assert length is not None
    reporter.open("rows", len(opened.rows))
    try:
        return fit(
            opened.rows,
            opening.kind,
            loaded.processor,
            loaded.family,
            max_length=limit,
            on_long=length.on_long,
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


def _figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("step", "epoch", "seconds")}


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
