"""The order of the rows: decided by seed and epoch alone, whatever reads them and on however many devices.

Rows are shuffled, cut into runs, sorted by length inside each run and cut into optimizer steps, whose order is shuffled
again: as random as it can be at nearly no padding. The unit is the optimizer step, not the batch, so that a step has
the same rows however it is divided into devices and accumulated batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmdata.errors import DataError
from vlmtrain.image_order import pack
from vlmtrain.mixing import Rows, take

__all__ = ["Batches", "EpochOrder", "Grouped", "Part", "random_of", "shuffled", "whole"]

RUN = 50
# Gives the lengths of rows in tokens; a row that is not to be used has none.
Measure = Callable[[Rows], Sequence[int | None]]


@dataclass(frozen=True, slots=True)
class Part:
    """One dataset in an epoch.

    Attributes:
        size: rows it has.
        count: rows of it in an epoch.
        passes: the order of its rows in pass 0, 1, 2 ... over it, in pieces.
    """

    size: int
    count: int
    passes: Callable[[int], Iterator[Rows]]


def whole(rows: Rows, seed: int, salt: int = 0) -> Callable[[int], Iterator[Rows]]:
    """Passes over these rows, each in an order of its own."""

    def passes(number: int) -> Iterator[Rows]:
        yield rows[random_of(seed, number, salt).permutation(len(rows))]

    return passes


def shuffled(groups: Sequence[int], seed: int, first: int = 0, salt: int = 0) -> Callable[[int], Iterator[Rows]]:
    """Passes over rows that are stored in groups: the groups in random order, the rows of a group as they stand.

    Args:
        groups: rows of each group, in the order they are stored.
        seed: of the order.
        first: number of the first row.
        salt: tells datasets of one run apart.
    """
    starts = first + np.concatenate([[0], np.cumsum(groups)])

    def passes(number: int) -> Iterator[Rows]:
        for group in random_of(seed, number, salt).permutation(len(groups)):
            yield np.arange(starts[group], starts[group + 1], dtype=np.int64)

    return passes


class Grouped(Sampler[int]):
    """Row numbers of an epoch; see the module.

    A last step that is not full stays last. An epoch has as many rows as its parts say; where ``measure`` leaves rows
    out, the first rows of the same epoch come again in their place, so that its length is known before it is read.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        step: int,
        batch: int,
        seed: int,
        measure: Measure | None = None,
        *,
        run: int | None = None,
        group: bool = True,
        together: Rows | None = None,
    ) -> None:
        """Take rows by number.

        Args:
            parts: the datasets.
            step: rows of an optimizer step, over all devices and accumulated batches.
            batch: rows of one forward.
            seed: of the order.
            measure: tells the rows' lengths; None is a plain shuffle.
            run: rows among which it is shuffled and sorted; that many rows, with their images, may have to be held
                where they are read from disk.
            group: rows of like length stand together.
            together: of each row a number; rows of the same one, which the parts give one after the other, share
                batches.
        """
        self.parts, self.step, self.batch, self.seed, self.measure = parts, step, batch, seed, measure
        self.run, self.group, self.together, self.epoch = run or RUN * step, group, together, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order is to come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Rows in an epoch."""
        return sum(part.count for part in self.parts)

    def __iter__(self) -> Iterator[int]:
        """Row numbers."""
        left = len(self)
        while left:
            before = left
            for row in self._once(self.epoch):
                yield row
                left -= 1
                if not left:
                    return
            if left == before:
                raise DataError(f"no row of {len(self):,} can be trained on")

    def _once(self, epoch: int) -> Iterator[int]:
        rest: list[tuple[int, int]] = []
        for number, chunk in enumerate(self._chunks(epoch)):
            draws = random_of(self.seed, epoch, 1 << 20, number)
            mixed = chunk if self.together is not None else chunk[draws.permutation(len(chunk))]
            lengths = self.measure(mixed) if self.measure else [0] * len(mixed)
            rest += [(row, length) for row, length in zip(mixed.tolist(), lengths, strict=True) if length is not None]
            if self.together is not None:
                packed, loose = pack(rest, self.together, self.batch, sort=self.group)
                full = len(packed) // self.step
                now, rest = packed[: full * self.step], [*packed[full * self.step :], *loose]
            else:
                full = len(rest) // self.step
                # What is left over goes first with the next run, while its rows are still at hand.
                now, rest = rest[: full * self.step], rest[full * self.step :]
            if self.measure and self.group and self.together is None:
                now.sort(key=lambda pair: pair[1], reverse=True)
            for place in draws.permutation(full).tolist():
                yield from (row for row, _ in now[place * self.step : (place + 1) * self.step])
        if self.together is None:
            rest.sort(key=lambda pair: pair[1], reverse=self.group)
        yield from (row for row, _ in rest)

    def _chunks(self, epoch: int) -> Iterator[Rows]:
        waiting: list[Rows] = []
        held = 0
        for piece in self._merged(epoch):
            waiting.append(piece)
            held += len(piece)
            while held >= self.run:
                joined = np.concatenate(waiting)
                yield joined[: self.run]
                waiting, held = [joined[self.run :]], held - self.run
        if held:
            yield np.concatenate(waiting)

    def _merged(self, epoch: int) -> Iterator[Rows]:
        """The parts' rows, interleaved at random in their shares, a stretch at a time."""
        streams = [_Stream(take(p.passes, p.size, epoch * p.count, p.count)) for p in self.parts]
        if len(streams) == 1:
            yield from streams[0].pieces
            return
        draws = random_of(self.seed, epoch, 1 << 21)
        left = np.array([part.count for part in self.parts])
        while total := int(left.sum()):
            size = min(total, 1 << 14)
            exact = left * (size / total)
            drawn = exact.astype(np.int64)
            # What rounding leaves goes to the largest remainders.
            drawn[np.argsort(drawn - exact, kind="stable")[: size - int(drawn.sum())]] += 1
            left -= drawn
            joined = np.concatenate([stream.next(int(n)) for stream, n in zip(streams, drawn, strict=True)])
            labels = draws.permutation(np.repeat(np.arange(len(streams)), drawn))
            order = np.empty(size, np.int64)
            order[np.argsort(labels, kind="stable")] = np.arange(size)
            yield joined[order]


class Batches(Sampler[list[int]]):
    """Rows of an order in batches: those of a step one after the other, a round for each accumulated batch.

    A last step that is not full is divided evenly, so that it has the same rows on any number of processes. Where
    they are no multiple of these, its first rows fill it up: each process must have as many.
    """

    def __init__(self, order: Sampler[int], step: int, batch: int, processes: int = 1) -> None:
        """Cut ``order``.

        Args:
            order: row numbers of an epoch.
            step: rows of an optimizer step, over all devices and accumulated batches.
            batch: rows of one forward on one device.
            processes: how many there are; each takes one batch of a round.
        """
        self.order, self.step, self.batch, self.processes = order, step, batch, processes
        # Batches differ in size; accelerate is not to fill them up.
        self.batch_size, self.drop_last = None, False

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order is to come next."""
        self.order.set_epoch(epoch)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        """Batches in an epoch, of all processes together."""
        full, rest = divmod(len(self.order), self.step)  # type: ignore[arg-type]
        return full * (self.step // self.batch) + self._rounds(rest) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        """Row numbers of each batch."""
        rows: list[int] = []
        for row in self.order:
            rows.append(row)
            if len(rows) == self.step:
                yield from (rows[start : start + self.batch] for start in range(0, self.step, self.batch))
                rows = []
        if not rows:
            return
        lacking = -len(rows) % self.processes
        rows += (rows * lacking)[:lacking]
        for part in np.array_split(np.arange(len(rows) // self.processes), self._rounds(len(rows))):
            for process in range(self.processes):
                # Neighbours in length share a round.
                yield [rows[int(at) * self.processes + process] for at in part]

    def _rounds(self, rows: int) -> int:
        return -(-rows // (self.batch * self.processes))


class EpochOrder(TrainerCallback):
    """Tells a sampler which epoch comes.

    upstream bug: neither accelerate 1.15 nor transformers 5.23 reaches a sampler through the shards of a run with
    several processes once batches are skipped, as at ``--resume``.
    """

    def __init__(self, sampler: Any) -> None:
        """Take anything with ``set_epoch``."""
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before an epoch's first row is asked for."""
        # An epoch that is gone on with counts as the one it belongs to; sums of step fractions may fall short of it.
        self.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


class _Stream:
    """Pieces of any size from pieces as they come."""

    def __init__(self, pieces: Iterator[Rows]) -> None:
        self.pieces = pieces
        self._rest: Rows = np.empty(0, np.int64)

    def next(self, count: int) -> Rows:
        found = [self._rest]
        have = len(self._rest)
        while have < count:
            found.append(next(self.pieces))
            have += len(found[-1])
        joined = np.concatenate(found)
        self._rest = joined[count:]
        return joined[:count]


def random_of(*key: int) -> np.random.Generator:
    """What is random about one thing of a run, told apart by the key."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
