"""A classifier of which the head alone is trained: what the head sees is computed once, all later passes are a matmul.

Exact where a picture gives the same features every time: no random view, no dropout below the head. The features of
all rows are computed before the first step, by the same collator and the same model; they stay in memory, ``D`` numbers
a row, and next to the checkpoints, so that a run that is resumed finds them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers.modeling_outputs import ImageClassifierOutput

from vlmtrain import distributed
from vlmtrain.caches.feature_cache import HEAD
from vlmtrain.dropout import drops

if TYPE_CHECKING:
    from vlmtrain.job import Job

__all__ = ["FeatureRows", "collate", "head_takes_features", "obstacle", "use_features"]


class FeatureRows(torch.utils.data.Dataset[dict[str, Any]]):
    """What the head sees of each row, and the row's label; numbered on from pass to pass as the pictures are."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Take ``features`` ``[N, ...]`` and ``labels`` ``[N]``."""
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        """Rows of one pass."""
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Row ``number % len``."""
        row = int(number) % len(self.labels)
        return {"features": self.features[row], "labels": self.labels[row]}


def collate(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of :class:`FeatureRows` to ``features`` ``[B, ...]`` and ``labels`` ``[B]``."""
    return {key: torch.stack([row[key] for row in rows]) for key in ("features", "labels")}


def obstacle(trainer: Any, head: str) -> str | None:
    """Why the features of a picture would not be the same in every pass, in a few words; None where they are.

    Args:
        trainer: behind ``TrainerSeam``.
        head: name of the module that tells classes apart.
    """
    net = trainer.net
    if trainer.is_sharded:
        return "processes hold the weights in parts"
    inside = set(net.get_submodule(head).parameters())
    if any(weight.requires_grad and weight not in inside for weight in net.parameters()):
        return "more than the head is trained"
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            return "batch normalization counts along"
        if why := drops(module):
            return why
    return None


def head_takes_features(net: Any, head: str) -> None:
    """Make a classifier's forward take ``features`` in place of pictures; pictures it takes as before.

    The forward, not a function beside it: whatever wraps the model to join the gradients of processes sees it run.

    Args:
        net: the transformers model.
        head: name of the module that tells classes apart.
    """
    plain = net.forward

    def forward(*args: Any, features: torch.Tensor | None = None, **inputs: Any) -> Any:
        if features is None:
            return plain(*args, **inputs)
        return ImageClassifierOutput(logits=net.get_submodule(head)(features))

    net.forward = forward


def use_features(trainer: Any, job: Job) -> None:
    """Compute the features of all rows, or find them, and train and evaluate on them from here on.

    Args:
        trainer: of a prepared job, ready to ``train``; its datasets and its collator change.
        job: what it was made from.
    """
    head = job.loaded.family.head
    parts = [rows for rows in (job.rows, job.eval_rows) if rows is not None]
    found = _kept(job, parts)
    if found is None:
        found = _computed(trainer, job, parts, head)
        if found is None:
            job.reporter.say("features are computed in every pass: the head is not the model's last step")
            return
        _keep(job, parts, found)
    head_takes_features(trainer.net, head)
    datasets = [FeatureRows(found[f"features.{part}"], found[f"labels.{part}"]) for part in range(len(parts))]
    trainer.train_dataset = datasets[0]
    if job.eval_rows is not None:
        trainer.eval_dataset = datasets[1]
    trainer.data_collator = collate
    # Nothing is left for workers to do.
    trainer.args.dataloader_num_workers = 0
    job.identity["features"] = "computed once"


def _computed(trainer: Any, job: Job, parts: Sequence[Any], head: str) -> dict[str, torch.Tensor] | None:
    """Features and labels of each part; None where logits are not what the head makes of its input."""
    model, net, seen = trainer.model, trainer.net, []
    hook = net.get_submodule(head).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    training = model.training
    model.eval()
    job.reporter.open("features", sum(map(len, parts)))
    mine: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    last = True
    try:
        for part, rows in enumerate(parts):
            for places, batch in _batches(trainer, job, rows):
                if job.ledger is not None:
                    job.ledger.take(batch)
                labels = batch.pop("labels")
                with torch.no_grad(), trainer.accelerator.autocast():
                    logits = model(**send_to_device(batch, trainer.args.device)).logits
                    features = seen.pop()
                    seen.clear()
                    if not mine:
                        last = torch.equal(net.get_submodule(head)(features), logits)
                features = features.cpu()
                mine |= {(part, place): (features[at], labels[at]) for at, place in enumerate(places)}
                job.reporter.advance(len(mine))
    finally:
        hook.remove()
        model.train(training)
        job.reporter.close()
    if not all(distributed.gathered(last)):
        return None
    joined = {key: value for share in distributed.gathered(mine) for key, value in share.items()}
    found: dict[str, torch.Tensor] = {}
    for part, rows in enumerate(parts):
        both = [joined[part, place] for place in range(len(rows))]
        found[f"features.{part}"] = torch.stack([features for features, _ in both])
        found[f"labels.{part}"] = torch.stack([label for _, label in both])
    return found


def _batches(trainer: Any, job: Job, rows: Any) -> Any:
    """Places of rows and their batch; each process has its own."""
    size = job.config.training.batch_size
    batches = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
    mine = batches[distributed.rank() :: job.processes]
    loader = DataLoader(
        rows,
        batch_sampler=mine,
        collate_fn=trainer.worker_collator,
        num_workers=trainer.args.dataloader_num_workers,
    )
    yield from zip(mine, loader, strict=True)


def _key(job: Job, parts: Sequence[Any]) -> str:
    said = json.dumps(
        [job.identity, job.loaded.processor.to_json_string(), [list(rows["row"]) for rows in parts]], sort_keys=True
    )
    return hashlib.sha256(said.encode()).hexdigest()


def _kept(job: Job, parts: Sequence[Any]) -> dict[str, torch.Tensor] | None:
    """What a killed run had computed."""
    from safetensors import SafetensorError, safe_open

    file, key = job.folder.checkpoints / HEAD, _key(job, parts)
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("key") != key:
                return None
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError:
        return None


def _keep(job: Job, parts: Sequence[Any], found: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    if distributed.is_first():
        file = job.folder.checkpoints / HEAD
        part = file.with_suffix(".part")
        save_file(dict(found), part, {"key": _key(job, parts)})
        part.replace(file)
