"""What in the numbers of a dataset deserves a look before training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vlmdata.stats import Stats

__all__ = ["Finding", "findings", "percent"]

_LARGE_MEGAPIXELS = 4.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark.

    Attributes:
        level: ``warning`` for what can spoil a model or its use, ``note`` for what is good to know.
        text: one sentence.
    """

    level: Literal["warning", "note"]
    text: str


def findings(stats: Stats) -> list[Finding]:
    """Remarks on licences, rejects, repeats, balance and lengths; warnings first."""
    found = [*_licences(stats), *_rejects(stats), *_labels(stats), *_pairs(stats), *_images(stats), *_answers(stats)]
    return sorted(found, key=lambda finding: finding.level == "note")


def percent(part: float, whole: float) -> str:
    """A share for people; never 0 % or 100 % where it is not exactly that."""
    if not whole or part in (0, whole):
        return "100 %" if part else "0 %"
    share = 100 * part / whole
    if share < 1:
        return "under 1 %"
    return "over 99 %" if share > 99 else f"{share:.0f} %"


def _licences(stats: Stats) -> Iterator[Finding]:
    from vlmdata.licences import non_commercial

    bound = sum(count for licence, count in stats.licences.items() if non_commercial(licence))
    if bound:
        names = ", ".join(name for name in stats.licences if non_commercial(name))
        yield Finding("warning", f"{percent(bound, stats.records)} of the rows may not be used commercially ({names}).")
    unknown = sum(count for licence, count in stats.licences.items() if licence in ("unknown", "(not stated)", ""))
    if unknown:
        yield Finding("note", f"No licence is known for {percent(unknown, stats.records)} of the rows.")


def _rejects(stats: Stats) -> Iterator[Finding]:
    lost = stats.read - stats.kept
    if not lost:
        return
    level: Literal["warning", "note"] = "warning" if lost > 0.05 * stats.read and not stats.derived else "note"
    reason, count = next(iter(stats.rejected.items()), ("", 0))
    most = f", most often for {reason} ({count:,})" if reason else ""
    rows, word = ("rows", "dropped") if stats.derived else ("raw rows", "rejected")
    yield Finding(level, f"{lost:,} of {stats.read:,} {rows} ({percent(lost, stats.read)}) were {word}{most}.")


def _labels(stats: Stats) -> Iterator[Finding]:
    ratio = stats.imbalance
    if ratio is None:
        return
    empty = sum(not count for count in stats.labels.values())
    if empty:
        yield Finding("warning", f"{empty:,} of {len(stats.labels):,} classes have no row.")
    elif ratio >= 3:
        largest, *_, smallest = stats.labels
        yield Finding("warning", f"Classes are uneven: {largest} has {ratio:.1f} times the rows of {smallest}.")


def _pairs(stats: Stats) -> Iterator[Finding]:
    if not stats.longer:
        return
    pairs = sum(stats.longer.values())
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        share = stats.longer.get(side, 0) / pairs
        if share >= 0.65:
            text = f"The {side} answer is longer than the {other} one in {100 * share:.0f} % of the pairs"
            yield Finding("warning", f"{text}: a model may learn length instead of content.")


def _images(stats: Stats) -> Iterator[Finding]:
    if stats.repeated_rows:
        share = percent(stats.repeated_rows, stats.records)
        yield Finding(
            "note",
            f"{stats.images:,} image places hold {stats.distinct_images:,} different images; {share} of the rows share "
            "one with another row, so split by image.",
        )
    size = stats.distributions.get("megapixels")
    if size is not None and size.p95 > _LARGE_MEGAPIXELS:
        text = f"5 % of the images have more than {size.p95:.1f} megapixels"
        yield Finding("note", f"{text}: convert --max-side makes training cheaper.")
    if stats.images == 0:
        yield Finding("note", "No row has an image.")


def _answers(stats: Stats) -> Iterator[Finding]:
    spread = stats.distributions.get("answer_characters")
    if spread is None or not stats.short_answers or stats.labels:
        return
    answer, count = next(iter(stats.short_answers.items()))
    if count >= 0.3 * spread.count and spread.count >= 20:
        yield Finding(
            "note",
            f"{percent(count, spread.count)} of the answers are \N{LEFT DOUBLE QUOTATION MARK}"
            f"{answer}\N{RIGHT DOUBLE QUOTATION MARK}.",
        )
