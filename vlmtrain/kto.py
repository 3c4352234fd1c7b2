"""Kahneman-Tversky optimization: TRL's KTOTrainer on good and bad answers that need not come in pairs.

Paper: https://arxiv.org/abs/2402.01306; ``apo_zero_unpaired``: https://arxiv.org/abs/2408.06266

Preference shards give a good and a bad answer a row, on the same images, which are seen once for both; messages
shards one answer a row, good or bad as the entry ``label_by`` of the row's ``meta`` says. ``batch_size`` counts rows.

The KL term compares policy and reference on questions with answers that belong to others. TRL takes the answers of
the same batch; here every row has a partner for the whole run, by seed, that asks something else
(:class:`Partners`), so that the reference's log-probabilities can be computed before training, as for DPO, whatever
rows share a batch. TRL refuses to do that for images, and its own pass for it leaves the images out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from trl import KTOConfig, KTOTrainer

from vlmtrain.arguments import arguments
from vlmtrain.auto_batch import attempts
from vlmtrain.forwards import Recorder
from vlmtrain.job import Job
from vlmtrain.keys import Unpaired
from vlmtrain.lengths import context_length
from vlmtrain.model import quiet
from vlmtrain.reference import precompute
from vlmtrain.runs import RunResult
from vlmtrain.training import attach, begin, run
from vlmtrain.trl_seam import (
    TrainerSeam,
    answer_log_probs,
    compact_lm_head,
    drop_reference_copy,
    no_reference_model,
    reference_is_precomputed,
)
from vlmtrain.unpaired import KL, Partners, UnpairedCollator
from vlmtrain.weights import read_labels

__all__ = ["Trainer", "make_trainer", "train"]

# What TRL takes of the mismatched rows; the rest of what belongs to their tokens goes to the model past it.
_KNOWN = (f"{KL}input_ids", f"{KL}attention_mask", f"{KL}completion_mask")
_NOT_FOR_MODELS = ("label", "ref_logps", "ref_KL_logps")


class Trainer(TrainerSeam, KTOTrainer):
    """KTOTrainer behind the seam.

    Attributes:
        live: whether the reference is asked in every step.
    """

    live: bool = False

    def reference_columns(self, batch: dict[str, Any]) -> list[torch.Tensor]:
        """Log-probabilities under the reference: of each side's answers, then of its mismatched ones; each ``[B]``."""
        found = self._reference(self.with_features(batch))
        return [column for summed in found.values() for column in summed.chunk(self.sides)]

    def reference_inputs(self, row: Mapping[str, Any]) -> list[Any]:
        """What the reference's figures of a row depend on besides weights and images."""
        collator: UnpairedCollator = self.data_collator.collate
        return collator.said(row)

    def loss_of(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; for pairs the share of those in order is logged, too."""
        if self.live:
            inputs |= self._reference(inputs)
        kl = {key: inputs[key] for key in inputs if key.startswith(KL)}
        plain = {key: value for key, value in inputs.items() if key not in kl or key in _KNOWN}

        def change(given: dict[str, Any]) -> dict[str, Any]:
            mismatched = kl and _is_mismatched(given["input_ids"], plain)
            others = (key for key in kl if key not in _KNOWN)
            return {**given, **{key.removeprefix(KL): kl[key] for key in others}} if mismatched else given

        recorder = Recorder(model, change)
        loss = super().loss_of(recorder, plain, *args, **kwargs)
        if self.sides == 2:
            rewards = recorder.outputs[-1].log_probs.detach().sum(1) - inputs["ref_logps"]
            chosen, rejected = rewards.chunk(2)
            self.record({"rewards/accuracies": (chosen > rejected).float()})
        return loss

    def _reference(self, prepared: dict[str, Any]) -> dict[str, torch.Tensor]:
        kl = {key.removeprefix(KL): value for key, value in prepared.items() if key.startswith(KL)}
        rest = {key: value for key, value in prepared.items() if not key.startswith(KL) and key not in _NOT_FOR_MODELS}
        with self.as_reference() as net:
            found = {"ref_logps": answer_log_probs(net, rest)}
            if kl:
                found["ref_KL_logps"] = answer_log_probs(net, {**rest, **kl})
        return found


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
    """Train on good and bad answers; everything ``vlmtrain kto`` does.

    Args:
        data: shards folders of kind preference, or of kind messages with the option ``label_by``.
        out: the run folder.
        eval_data: shards folders to evaluate on; or use the option ``eval_fraction``.
        recipe: packaged recipe or YAML file to start from.
        sets: ``key=value`` strings, as on the command line.
        resume: go on with a run that was killed.
        overwrite: replace a run that is there.
        progress: show what goes on, on stderr.
        options: configuration keys (``vlmtrain.config``): model, adapter, beta, desirable_weight, label_by ...

    Raises:
        VlmError: anything the caller can put right, before training starts.
    """
    sets = tuple(sets)

    def prepare(batch: tuple[int, int] | None) -> Job | RunResult:
        return begin(
            "kto",
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


def make_trainer(job: Job) -> Trainer:
    """The trainer of a prepared job, ready to ``train``; reference log-probabilities are computed here."""
    unpaired = job.config.unpaired
    assert unpaired is not None
    live = unpaired.reference == "live"
    whole = job.config.lora.tuner == "full"
    collator = _collator(job, unpaired)
    with quiet(), no_reference_model():
        trainer = Trainer(
            model=job.loaded.model,
            ref_model=copy.deepcopy(job.loaded.model).requires_grad_(False) if whole and live else None,
            args=KTOConfig(
                **arguments(job),
                beta=unpaired.beta,
                loss_type=unpaired.loss_type,
                desirable_weight=unpaired.desirable_weight,
                undesirable_weight=unpaired.undesirable_weight,
            ),
            train_dataset=_without_pairs(job.rows),
            eval_dataset=None if job.eval_rows is None else _without_pairs(job.eval_rows),
            data_collator=collator,
            processing_class=job.loaded.processor,
            peft_config=job.lora,
        )
        attach(trainer, job)
        trainer.live, trainer.sides = live, len(collator.sides)
        if not live:
            with compact_lm_head(job.config.training.compact_head):
                collator.reference = precompute(trainer, job)
            drop_reference_copy(trainer)
        # With live, our own pass gives TRL the same figures: its own knows nothing of a family's inputs.
        reference_is_precomputed(trainer)
    if unpaired.label_by:
        _tell_balance(job, unpaired)
    return trainer


def _collator(job: Job, unpaired: Unpaired) -> UnpairedCollator:
    length, loaded = job.config.length, job.loaded
    assert length is not None
    partners = None
    if unpaired.loss_type == "kto":
        partners = Partners([rows for rows in (job.rows, job.eval_rows) if rows is not None], job.config.training.seed)
    limit = length.max_length or context_length(loaded.model, loaded.processor)
    return UnpairedCollator(loaded.processor, loaded.family, partners, limit=limit, label_by=unpaired.label_by)


def _is_mismatched(ids: torch.Tensor, batch: Mapping[str, Any]) -> bool:
    """Whether a forward is that of the mismatched answers."""
    mine, other = batch["input_ids"], batch[f"{KL}input_ids"]
    if ids is mine or ids is other:
        return ids is other
    # TRL handed over copies; where both are equal it does not matter which is meant.
    return torch.equal(ids, other.to(ids.device))


def _without_pairs(rows: Any) -> Any:
    """TRL refuses images in rows with these columns, lest it unpairs them; our collator reads the rendered ones."""
    return rows.remove_columns([name for name in ("chosen", "rejected") if name in rows.column_names])


def _tell_balance(job: Job, unpaired: Unpaired) -> None:
    """What the paper recommends (section 4.2): both sides' weights times rows are to be alike, within a third."""
    assert unpaired.label_by is not None
    labels = read_labels(job.rows, unpaired.label_by)
    good, bad = sum(labels), len(labels) - sum(labels)
    line = f"labels {good:,} good, {bad:,} bad"
    if good and bad:
        ratio = unpaired.desirable_weight * good / max(unpaired.undesirable_weight * bad, 1e-9)
        if not 1 <= ratio <= 4 / 3 and not 1 <= 1 / ratio <= 4 / 3:
            name, value = ("undesirable_weight", good / bad) if good > bad else ("desirable_weight", bad / good)
            line += f"; the paper would set {name} to about {value:.2g}"
    job.reporter.say(line)
