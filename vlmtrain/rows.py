"""From opened data to rows that are trained on: checked for length, held out, and in the order they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vlmdata.atomic import write_json
from vlmdata.errors import DataError
from vlmtrain import distributed
from vlmtrain.data import Opened, hold_out, shared_images
from vlmtrain.image_order import by_image, image_keys
from vlmtrain.job import Job, Opening
from vlmtrain.lengths import Fit, Refusal, fit, policy
from vlmtrain.mixing import Rows, epoch_counts
from vlmtrain.model import Loaded
from vlmtrain.ordering import Grouped, Part, random_of, shuffled, whole
from vlmtrain.streaming import Fitting

__all__ = ["Chosen", "choose", "finish_counts", "order", "sources", "stream_counts"]


class Chosen:
    """Rows to train and to evaluate on.

    Attributes:
        rows: to train on; ``eval_rows`` to evaluate on, or None.
        counts: rows read, kept, shrunk, dropped.
        dropped: id, reason and detail of each row that is left out.
        fitting: the length policy where rows are streamed.
    """

    def __init__(self, opening: Opening, loaded: Loaded, limit: int | None, refuse: Refusal | None) -> None:
        """Apply the length policy and hold rows out, as the configuration says."""
        config = opening.config
        self.fitting: Fitting | None = None
        self.eval_rows: Any = None
        self.counts: dict[str, Any]
        fitted: list[Fit] = []
        if opening.data.stream is None:
            fitted.append(_fit(opening, opening.data, loaded, limit, 0, refuse))
            self.rows, self.counts = fitted[0].rows, fitted[0].summary()
        else:
            self.fitting = _stream(opening, loaded, limit, refuse)
            self.rows, self.counts = self.fitting.rows(), stream_counts(self.fitting)
        if opening.eval_data:
            fitted.append(_fit(opening, opening.eval_data, loaded, limit, len(opening.data.rows), refuse))
            self.eval_rows = fitted[-1].rows
            self.counts["eval"] = fitted[-1].summary()
            _warn_of_shared_images(opening, self.eval_rows, self.counts)
        elif config.training.eval_fraction:
            train, held = hold_out(self.rows, config.training.eval_fraction, config.training.seed)
            self.rows, self.eval_rows = self.rows.select(train), self.rows.select(held)
            self.counts["held_out"] = len(held)
        self.dropped = [{"id": row, "reason": why, "detail": what} for one in fitted for row, why, what in one.dropped]


def choose(opening: Opening, loaded: Loaded, limit: int | None, refuse: Refusal | None) -> Chosen:
    """Rows to train and to evaluate on.

    Args:
        opening: the data, and how it is to be used.
        loaded: the model and its processor.
        limit: most tokens of a row.
        refuse: gives (reason, detail) for a row the method cannot use.

    Raises:
        DataError: no row is left, or one does not fit and that is to be an error.
    """
    return Chosen(opening, loaded, limit, refuse)


def order(job: Job) -> Grouped:
    """The order of the training rows; see ``vlmtrain.ordering``."""
    t, data = job.config.training, job.config.rows
    step = t.batch_size * t.accumulate * job.processes
    if job.fitting is not None:
        parts = _stream_parts(job, job.fitting)
        run = max(step, data.shuffle_buffer)
        return Grouped(parts, step, t.batch_size, t.seed, job.fitting, run=run, group=t.group_by_length)
    keys = image_keys(job.rows["image_sha256"]) if job.config.groups_images else None
    parts = _parts(job, keys)
    if not t.group_by_length or job.config.length is None:
        return Grouped(parts, step, t.batch_size, t.seed, group=False, together=keys)
    lengths = np.asarray(job.rows["length"])
    return Grouped(parts, step, t.batch_size, t.seed, lambda rows: lengths[rows].tolist(), together=keys)


def sources(job: Job) -> list[tuple[Any, Any]]:
    """The datasets of a run with the numbers of their rows, as ``vlmtrain.bad_rows`` takes them."""
    train = None if job.fitting is not None else np.asarray(job.rows["row"])
    held = [(job.eval_rows, np.asarray(job.eval_rows["row"]))] if job.eval_rows is not None else []
    # A streamed row's number is its place; those to evaluate on have higher ones.
    return [(job.rows, train), *held]


def finish_counts(job: Job) -> None:
    """Bring the counts of a run that is over up to date; for all processes to call.

    read = kept + dropped + unreadable; a streamed row that was never reached counts as kept.
    """
    if job.fitting is not None:
        job.counts |= stream_counts(job.fitting)
        if distributed.is_first() and job.fitting.dropped:
            found = [job.fitting.dropped[number] for number in sorted(job.fitting.dropped)]
            dropped = [{"id": row, "reason": why, "detail": what} for row, why, what in found]
            write_json(job.folder.path / "dropped.json", dropped)
            reasons = ", ".join(f"{why} {number:,}" for why, number in job.counts["dropped"].items())
            job.reporter.say(f"       {len(dropped):,} rows dropped: {reasons} (dropped.json)")
    # Every process has finished its batches before the file is put in order.
    distributed.gathered(None)
    bad = distributed.first(job.ledger.close) if job.ledger is not None else []
    # Rows of --eval-data are numbered on from those of --data.
    mine = sum(number < sum(job.sizes) for number in bad)
    for counts, number in ((job.counts, mine), (job.counts.get("eval"), len(bad) - mine)):
        if counts is not None:
            counts["unreadable"] = number
            counts["kept"] -= number
    if bad:
        job.reporter.say(f"{len(bad):,} rows could not be read, others took their places (bad_rows.jsonl)")


def stream_counts(fitting: Fitting) -> dict[str, Any]:
    """Counts of a stream's rows as far as they were looked at: read = kept + dropped."""
    reasons = Counter(reason for _, reason, _ in fitting.dropped.values())
    read = len(fitting.stream)
    return {
        "read": read,
        "kept": read - len(fitting.dropped),
        "shrunk": len(fitting.shrunk),
        "dropped": dict(sorted(reasons.items())),
        "looked_at": int(fitting.seen.sum()),
    }


def _parts(job: Job, keys: Rows | None = None) -> list[Part]:
    weights, seed = job.config.rows.data_weights, job.config.training.seed

    def passes(rows: Rows, salt: int = 0) -> Callable[[int], Iterator[Rows]]:
        if keys is None:
            return whole(rows, seed, salt)
        return by_image(rows, keys, lambda number: random_of(seed, number, salt))

    if not weights:
        size = len(job.rows)
        return [Part(size, size, passes(np.arange(size)))]
    homes = np.searchsorted(np.cumsum(job.sizes), np.asarray(job.rows["row"]), side="right")
    members = [np.flatnonzero(homes == number) for number in range(len(job.sizes))]
    counts = _counts(job, [len(rows) for rows in members])
    return [
        Part(len(rows), count, passes(rows, number))
        for number, (rows, count) in enumerate(zip(members, counts, strict=True))
    ]


def _stream_parts(job: Job, fitting: Fitting) -> list[Part]:
    stream, seed = fitting.stream, job.config.training.seed
    if not job.config.rows.data_weights:
        return [Part(len(stream), len(stream), shuffled(stream.groups, seed))]
    starts = [0, *np.cumsum(job.sizes).tolist()]
    counts = _counts(job, job.sizes)
    return [
        Part(size, count, shuffled(stream.groups_of(starts[number], size), seed, starts[number], number))
        for number, (size, count) in enumerate(zip(job.sizes, counts, strict=True))
    ]


def _counts(job: Job, sizes: Sequence[int]) -> list[int]:
    names = [entry["name"] for entry in job.identity["data"]]
    empty = [name for name, size in zip(names, sizes, strict=True) if not size]
    if empty:
        raise DataError(f"no row of {empty[0]} is left to train on: leave it out of --data and data_weights")
    counts = epoch_counts(sizes, job.config.rows.data_weights, job.config.rows.mix_stop)
    job.counts["mixture"] = [
        {"name": name, "rows": size, "in_an_epoch": count}
        for name, size, count in zip(names, sizes, counts, strict=True)
    ]
    return counts


def _stream(opening: Opening, loaded: Loaded, limit: int | None, refuse: Refusal | None) -> Fitting:
    stream, length = opening.data.stream, opening.config.length
    assert stream is not None and length is not None
    stream.buffer = opening.config.rows.shuffle_buffer
    stream.parts = len(opening.data.sizes)
    on_long = "drop" if length.on_long == "fail" else length.on_long
    rule = policy(opening.kind, loaded.processor, loaded.family, max_length=limit, on_long=on_long, refuse=refuse)
    return Fitting(stream, rule, fail=length.on_long == "fail")


def _fit(
    opening: Opening, opened: Opened, loaded: Loaded, limit: int | None, first: int, refuse: Refusal | None
) -> Fit:
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
            refuse=refuse,
        )
    finally:
        reporter.close()


def _warn_of_shared_images(opening: Opening, held: Any, counts: dict[str, Any]) -> None:
    hashes = opening.data.stream.digests() if opening.data.stream else opening.data.rows["image_sha256"]
    shared = shared_images(hashes, held["image_sha256"])
    if shared:
        counts["eval_rows_on_training_images"] = shared
        opening.reporter.say(
            f"{shared:,} of {len(held):,} rows to evaluate on show images that are trained on: vlmdata dedup --against"
        )
