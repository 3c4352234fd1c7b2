"""Batches on their way to the device: one at a time, copied while it computes, and counted before they leave.

transformers collects the batches of an optimizer step before the first of them is used, and accelerate has moved each
by then: the pixels of all are on the device at once. Here they stay in memory until their turn; where nothing has to be
known of all of them, they are not even made before. What is read of a batch for the user is read before it is moved,
and figures of the loss stay on the device until they are logged: to read one any earlier makes the host wait for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmtrain.ordering import Batches

if TYPE_CHECKING:
    import torch

__all__ = ["Feeding", "InTurn"]


class InTurn:
    """So many batches, each made when it is asked for."""

    def __init__(self, first: Any, rest: Iterator[Any], count: int) -> None:
        """Take the first batch, an iterator that goes on behind it, and how many there are with the first."""
        self._first, self._rest, self.count = [first], rest, count

    def __len__(self) -> int:
        """Batches, made or not."""
        return self.count

    def __iter__(self) -> Iterator[Any]:
        """The batches; once."""
        yield self._first.pop()
        yield from itertools.islice(self._rest, self.count - 1)


class Feeding:
    """Put before a trainer of transformers: its batches in our order, and what is counted of them.

    Attributes:
        sampler: order of the rows of each epoch.
        narrow: precision in which workers hand pixels over; None is as they are made (``vlmtrain.narrow``).
        tokens_seen: what the batches of training held so far, for the speed that is shown.
    """

    sampler: torch.utils.data.Sampler[int]
    narrow: torch.dtype | None = None
    tokens_seen: int = 0
    _fed: Any = None

    def get_train_dataloader(self) -> Any:
        """The rows of ``sampler`` in batches that make the same steps on any number of processes; none is moved."""
        import torch
        from torch.utils.data import DataLoader

        trainer: Any = self
        args = trainer.args
        processes, batch = args.world_size, args.per_device_train_batch_size
        step = processes * batch * args.gradient_accumulation_steps
        loader = DataLoader(
            trainer.train_dataset,
            batch_sampler=Batches(self.sampler, step, batch, processes),
            collate_fn=self.worker_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_num_workers > 0 and not self.workers_learn,
            # Workers that stay draw their seed once, others in every epoch: not from what dropout draws from.
            generator=torch.Generator(),
        )
        self._fed = trainer.accelerator.prepare(loader)
        # accelerate refuses to leave a batch where it is for one loader alone under DeepSpeed.
        self._fed.device = None
        return self._fed

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, whose workers narrow pixels as those of training do."""
        trainer: Any = self
        plain, trainer.data_collator = trainer.data_collator, self.worker_collator
        try:
            return super().get_eval_dataloader(*args, **kwargs)  # type: ignore[misc]
        finally:
            trainer.data_collator = plain

    @property
    def worker_collator(self) -> Any:
        """What workers make batches with: the trainer's collator, its pixels in the precision of ``narrow``."""
        from vlmtrain.narrow import Narrow

        collate = self.data_collator  # type: ignore[attr-defined]
        return collate if self.narrow is None else Narrow(collate, self.narrow)

    @property
    def workers_learn(self) -> bool:
        """Whether a pass finds out what the workers of the next one have to know, so that none outlives its pass."""
        return getattr(self, "cache", None) is not None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's training; its workers, which stay from pass to pass, go with it."""
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self._fed is not None:
                self._fed.base_dataloader._iterator = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[Any, Any]:
        """The batches of an optimizer step, and by how many labels the loss is divided; None where there are none."""
        state = self.state  # type: ignore[attr-defined]
        # A run that was killed behind its last step has none left, though its epoch is not over.
        first = next(epoch_iterator, None) if state.global_step < state.max_steps else None
        if first is None:
            return [], None
        batches = InTurn(first, epoch_iterator, num_batches)
        if "labels" not in first:
            return batches, None
        plain: Any = super()
        found: tuple[Any, Any] = plain.get_batch_samples(iter(batches), num_batches, device)
        return found

    def _get_num_items_in_batch(self, batch_samples: Sequence[Mapping[str, Any]], device: Any) -> Any:
        """Counted where the loss is: the host would wait for a number to come over, not for labels."""
        plain: Any = super()
        names = ("labels", "shift_labels")
        kept = [{name: batch[name] for name in names if name in batch} for batch in batch_samples]
        return plain._get_num_items_in_batch([self.moved(labels) for labels in kept], device)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The trainer's step on one batch, which is counted before it is moved."""
        self.tokens_seen += self.tokens_of(inputs)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def tokens_of(self, inputs: Mapping[str, Any]) -> int:
        """How much a batch holds."""
        return int(inputs["attention_mask"].sum())

    def _prepare_inputs(self, inputs: Any) -> Any:
        """A batch on the device."""
        return super()._prepare_inputs(self.moved(inputs))  # type: ignore[misc]

    def moved(self, inputs: Any) -> Any:
        """A batch, or part of one, on the device; from pinned memory the host does not wait for the copy."""
        from accelerate.utils import send_to_device

        return send_to_device(inputs, self.args.device, non_blocking=True)  # type: ignore[attr-defined]

    def record(self, figures: Mapping[str, torch.Tensor], where: torch.Tensor | None = None) -> None:
        """Averages of this batch over all processes, logged with TRL's own figures; of no value there is none.

        Args:
            figures: names and values, each ``[B]``.
            where: ``[B]``, which of the values count; None is all.
        """
        import torch

        trainer: Any = self
        mode = "train" if trainer.model.training else "eval"
        waiting: list[tuple[str, str, torch.Tensor]] = trainer.__dict__.setdefault("_waiting", [])
        for name, values in figures.items():
            values = values.detach().float()
            kept = torch.ones_like(values, dtype=torch.bool) if where is None else where
            sums = torch.stack([values.where(kept, 0.0).sum(), kept.sum().float()])
            waiting.append((mode, name, sums))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with what was recorded since."""
        import torch

        trainer: Any = self
        if waiting := trainer.__dict__.pop("_waiting", None):
            joined = torch.stack([sums for _, _, sums in waiting])[None]
            for (mode, name, _), (total, count) in zip(
                waiting, trainer.accelerator.gather(joined).sum(0).tolist(), strict=True
            ):
                if count:
                    trainer._metrics[mode][name].append(total / count)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
