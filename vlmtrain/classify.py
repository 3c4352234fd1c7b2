"""Image classification: transformers' Trainer on labelled shards, LoRA and a head, accuracy and F1 while it trains.

Follows PEFT's image classification guide (https://huggingface.co/docs/peft/main/en/task_guides/
image_classification_lora). Deviations: ``vlmtrain.pixels`` on pictures; the loss is the mean over all pictures of an
optimizer step, however they are spread over batches and devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional

from vlmdata.atomic import write_json
from vlmdata.errors import ConfigError, DataError, choices
from vlmtrain import classifiers
from vlmtrain.arguments import arguments
from vlmtrain.auto_batch import attempts
from vlmtrain.caches.head_features import obstacle, use_features
from vlmtrain.caches.kept_activations import Shelf, use_activations
from vlmtrain.checkpoints import writable
from vlmtrain.data import Opened, hold_out
from vlmtrain.job import Job, Opening, open_run, start
from vlmtrain.lean.recompute import can_recompute
from vlmtrain.model import load, quiet
from vlmtrain.pixels import PassOrder, PictureCollator, Pictures, RandomView, crop_centre
from vlmtrain.rows import order
from vlmtrain.runs import RunResult
from vlmtrain.training import attach, run
from vlmtrain.trl_seam import TrainerSeam
from vlmtrain.tuning import adapter_config, weights_dtype

__all__ = ["Trainer", "begin", "make_trainer", "train"]

TOP = 5


class Trainer(TrainerSeam, transformers.Trainer):
    """transformers' Trainer behind the seam; what it sees are pictures, not tokens.

    Attributes:
        shelf: what enters the first trained block of rows that come without their pixels.
    """

    shelf: Shelf | None = None

    def tokens_of(self, inputs: Mapping[str, Any]) -> int:
        """Pictures."""
        return len(inputs["labels"])

    def with_features(self, inputs: Mapping[str, Any], sides: int | None = None) -> dict[str, Any]:
        """The pixels as they are, or what is kept in their place."""
        return dict(inputs) if self.shelf is None else self.shelf.given(inputs)


def train(
    data: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    eval_data: Sequence[str | Path] = (),
    recipe: str | None = None,
    sets: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> RunResult:
    """Train an image classifier on labelled shards; everything ``vlmtrain classify`` does.

    Args:
        data: shards folders whose rows have a ``label``.
        out: the run folder.
        eval_data: shards folders to evaluate on; or use the option ``eval_fraction``.
        recipe: packaged recipe or YAML file to start from.
        sets: ``key=value`` strings, as on the command line.
        resume: go on with a run that was killed.
        overwrite: replace a run that is there.
        progress: show what goes on, on stderr.
        options: configuration keys (``vlmtrain.config``): model, epochs, learning_rate, lora_r, augment ...

    Raises:
        VlmError: anything the caller can put right, before training starts.
    """
    sets = tuple(sets)

    def prepare(batch: tuple[int, int] | None) -> Job | RunResult:
        return begin(
            data=[data] if isinstance(data, str | Path) else data,
            out=out,
            eval_data=eval_data,
            recipe=recipe,
            sets=sets,
            resume=resume and batch is None,
            overwrite=overwrite or batch is not None,
            progress=progress,
            batch=batch,
            options=options,
        )

    return attempts(prepare, lambda job: run(make_trainer(job), job))


def begin(**given: Any) -> Job | RunResult:
    """Check everything, cheapest first, then load and prepare; a finished run that is resumed is given back.

    Args:
        given: as :func:`vlmtrain.job.open_run` takes them.

    Raises:
        VlmError: anything that cannot work, before training starts.
    """
    opening = open_run("classify", **given)
    if isinstance(opening, RunResult):
        return opening
    config, base, labels = opening.config, opening.config.base, opening.data.labels
    opening.reporter.unit = "images"
    assert config.classification is not None
    _check_classes(opening)
    loaded = load(
        base.model,
        base.adapter,
        dtype=weights_dtype(config),
        quantize=base.quantize,
        image_processor=base.image_processor,
        trust_remote_code=base.trust_remote_code,
        trainable=True,
        task="classify",
        labels=labels,
    )
    if config.classification.center_crop:
        crop_centre(loaded.processor)
    if loaded.new_head:
        classifiers.initialize_head(loaded.model, loaded.family, config.training.seed)
    lora = None if base.adapter else adapter_config(config, loaded)
    rows, dropped = _usable(opening.data, 0)
    counts = _counts(opening.data, dropped)
    eval_rows = None
    if opening.eval_data:
        eval_rows, more = _usable(opening.eval_data, len(opening.data.rows))
        counts["eval"] = _counts(opening.eval_data, more)
        dropped += more
    elif config.training.eval_fraction:
        kept, held = hold_out(rows, config.training.eval_fraction, config.training.seed)
        rows, eval_rows = rows.select(kept), rows.select(held)
        counts["held_out"] = len(held)
    job = start(opening, loaded, rows, eval_rows, counts, lora=lora, dropped=dropped)
    _announce(job, labels)
    return job


def make_trainer(job: Job) -> Trainer:
    """The trainer of a prepared job, ready to ``train``."""
    from peft import get_peft_model

    settings = job.config.classification
    assert settings is not None
    seed = job.config.training.seed
    processor = job.loaded.processor
    args = _arguments(job)
    view = RandomView(processor, seed, crop_scale=settings.crop_scale) if settings.augment == "crop_flip" else None
    with quiet():
        transformers.set_seed(seed)
        if job.lora is not None:
            job.loaded.model = get_peft_model(job.loaded.model, job.lora)
        for parameter in job.loaded.model.parameters():
            # Steps of a 16-bit weight are lost in its rounding, and its gradients cannot be unscaled.
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        trainer = Trainer(
            model=job.loaded.model,
            args=transformers.TrainingArguments(**args),
            train_dataset=Pictures(job.rows),
            eval_dataset=job.eval_rows,
            data_collator=PictureCollator(processor, view),
            processing_class=processor,
            preprocess_logits_for_metrics=_likeliest,
        )
        trainer.compute_loss_func = _loss(trainer, job)
        trainer.compute_metrics = _metrics(trainer, job)
        attach(trainer, job, order=PassOrder(order(job), len(job.rows)))
        _compute_once(trainer, job)
    return trainer


def _sees_rows_again(job: Job) -> bool:
    """Whether the same views of pictures are wanted more than once."""
    training, settings = job.config.training, job.config.classification
    assert settings is not None
    step = training.batch_size * training.accumulate * job.processes
    passes = training.max_steps * step / len(job.rows) if training.max_steps else training.epochs
    return settings.augment == "none" and passes > 1


def _compute_once(trainer: Trainer, job: Job) -> None:
    """Keep what is the same in every pass, where that is wanted."""
    config, settings = job.config, job.config.classification
    assert settings is not None
    if settings.cache_features and _sees_rows_again(job):
        with writable(job.folder.path):
            (_cache_features if settings.head_only else use_activations)(trainer, job)
    elif config.asked & {"cache_in", "cache_gb"}:
        job.reporter.say("activations are not kept: each picture is seen once")
    elif settings.cache_features and config.lora.lora_last_layers and settings.augment != "none":
        job.reporter.say(f"activations are computed in every pass: augment={settings.augment} shows a new view")


def _cache_features(trainer: Trainer, job: Job) -> None:
    if reason := obstacle(trainer, job.loaded.family.head):
        job.reporter.say(f"features are computed in every pass: {reason}")
    else:
        use_features(trainer, job)


def _check_classes(opening: Opening) -> None:
    data, evaluated = opening.data, opening.eval_data
    if evaluated is not None and evaluated.labels != data.labels:
        strange = sorted({*evaluated.labels} ^ {*data.labels})
        what = f"not in both: {choices(strange[:3])}" if strange else "in another order"
        raise DataError(
            f"--eval-data has {len(evaluated.labels)} classes, --data has {len(data.labels)}; {what}: convert both "
            "with the same classes, or split one dataset"
        )


def _usable(opened: Opened, first: int) -> tuple[Any, list[dict[str, Any]]]:
    """Rows of one picture with a label, numbered from ``first``; and what is wrong with the others."""
    kept: list[int] = []
    dropped: list[dict[str, Any]] = []
    known = range(len(opened.labels))
    columns = (opened.rows[name] for name in ("id", "label", "image_size"))
    for place, (ident, label, sizes) in enumerate(zip(*columns, strict=True)):
        if len(sizes) != 1:
            dropped.append({"id": ident, "reason": "image_count", "detail": f"{len(sizes)} images, expected one"})
        elif label not in known:
            dropped.append({"id": ident, "reason": "no_label", "detail": f"its label is {label}"})
        else:
            kept.append(place)
    if not kept:
        reasons = choices(f"{why} {n}" for why, n in Counter(row["reason"] for row in dropped).items())
        raise DataError(f"no row of {len(opened.rows)} can be used: {reasons}")
    rows = opened.rows.add_column("row", list(range(first, first + len(opened.rows))))
    return rows if len(kept) == len(rows) else rows.select(kept), dropped


def _counts(opened: Opened, dropped: Sequence[dict[str, Any]]) -> dict[str, Any]:
    reasons = Counter(row["reason"] for row in dropped)
    read = len(opened.rows)
    return {"read": read, "kept": read - len(dropped), "dropped": dict(sorted(reasons.items()))}


def _announce(job: Job, labels: Sequence[str]) -> None:
    say, seen = job.reporter.say, Counter(job.rows["label"])
    head = "new head" if job.loaded.new_head else "head kept: the base tells the same classes apart"
    if job.config.base.adapter:
        head = "head of the adapter"
    say(f"classes {len(labels)}; {head}")
    absent = [name for index, name in enumerate(labels) if not seen[index]]
    if absent:
        more = " ..." if len(absent) > 5 else ""
        say(f"        {len(absent)} of them have no picture to train on: {', '.join(absent[:5])}{more}")


def _arguments(job: Job) -> dict[str, Any]:
    """The shared arguments, less what is TRL's; half precision by autocast, as what is trained stays in 32 bits."""
    args = arguments(job)
    args.pop("max_length")
    half = getattr(torch, job.config.base.dtype, job.loaded.model.dtype)
    if half == torch.float16 and job.device == "cpu":
        raise ConfigError("float16 training needs a GPU: use --dtype bfloat16 or float32")
    args["activation_checkpointing"] &= can_recompute(job.loaded.model, job.loaded.base, job.config.training)
    args |= {"bf16": half == torch.bfloat16, "fp16": half == torch.float16}
    args |= {"prediction_loss_only": False, "label_names": ["labels"]}
    return args


def _loss(trainer: Trainer, job: Job) -> Callable[..., torch.Tensor]:
    """Cross entropy, with the smoothing and weights of the run in training and plain in evaluation.

    Weighted losses are divided by the number of pictures, not by the sum of their weights as torch does: the mean
    weight over the training data is 1, and batches of an optimizer step add up.
    """
    settings = job.config.classification
    assert settings is not None
    weights = None
    if settings.class_weights == "balanced":
        seen = torch.bincount(torch.tensor(job.rows["label"]), minlength=job.loaded.model.config.num_labels)
        weights = (seen.sum() / (seen > 0).sum() / seen.clamp(min=1)).float()

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        training = trainer.model.training
        total = functional.cross_entropy(
            outputs["logits"].float(),
            labels,
            weight=weights.to(labels.device) if training and weights is not None else None,
            label_smoothing=settings.label_smoothing if training else 0.0,
            reduction="sum",
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def _likeliest(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The likeliest classes of each picture, ``[B, 5]`` or fewer; whole logits of an evaluation would not be small."""
    return logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices


def _metrics(trainer: Trainer, job: Job) -> Callable[[Any], dict[str, float]]:
    names = classifiers.classes(job.loaded.model.config)

    def metrics(seen: Any) -> dict[str, float]:
        from vlmtrain.evaluate import classified

        figures, details = classified(np.asarray(seen.predictions).tolist(), np.asarray(seen.label_ids).tolist(), names)
        args, best = trainer.args, trainer.state.best_metric
        # Details of the weights the run would end with.
        better = best is None or not args.load_best_model_at_end or figures[args.metric_for_best_model] > best
        if trainer.is_world_process_zero() and better:
            entry = {"step": trainer.state.global_step, "n": len(seen.label_ids), **figures, **details}
            write_json(job.folder.path / "eval.json", entry)
        return figures

    return metrics
