"""``filter``: the rows of a dataset that fulfil conditions, as a new dataset. No image is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmdata.derive import DROPPED, DatasetWriter, Derived, Drop, copy_rows, write_manifest
from vlmdata.errors import ConfigError, DataError, choices
from vlmdata.expression import parse
from vlmdata.manifest import add_counts
from vlmdata.progress import Progress
from vlmdata.publish import check_output, publishing
from vlmdata.row_fields import Values, columns_of
from vlmdata.shards import Shards, open_shards, shard_schema
from vlmdata.sizes import DEFAULT_SHARD_SIZE, parse_size
from vlmdata.tables import row_groups

__all__ = ["Conditions", "filter_rows"]

# Option to the field it looks at and the reason it gives.
_LIMITS = {
    "min_side": ("min_side", "filtered_size"),
    "max_side": ("max_side", "filtered_size"),
    "min_pixels": ("min_pixels", "filtered_size"),
    "max_pixels": ("max_pixels", "filtered_size"),
    "max_aspect": ("aspect", "filtered_size"),
    "min_turns": ("turns", "filtered_turns"),
    "max_turns": ("turns", "filtered_turns"),
    "min_answer_chars": ("answer_chars", "filtered_answer"),
    "max_answer_chars": ("answer_chars", "filtered_answer"),
}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a row must fulfil; what is None or empty is not asked.

    Attributes:
        licences: patterns as in file names, case aside; one of them fits.
        no_non_commercial: the licence does not forbid commercial use.
        min_side: shortest side of every image, at least.
        max_side: longest side of every image, at most.
        min_pixels: pixels of every image, at least.
        max_pixels: pixels of every image, at most.
        max_aspect: long side / short side of every image, at most.
        min_turns: answers, at least.
        max_turns: answers, at most.
        min_answer_chars: characters of the answers together, at least.
        max_answer_chars: characters of the answers together, at most.
        labels: class names; the label is one of them.
        where: an expression of ``vlmdata.expression``.
    """

    licences: tuple[str, ...] = ()
    no_non_commercial: bool = False
    min_side: int | None = None
    max_side: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_aspect: float | None = None
    min_turns: int | None = None
    max_turns: int | None = None
    min_answer_chars: int | None = None
    max_answer_chars: int | None = None
    labels: tuple[str, ...] = ()
    where: str | None = None


class _Test(NamedTuple):
    """One condition: the reason it gives, its columns, and what is wrong with a row, or None."""

    reason: str
    columns: set[str]
    fault: Callable[[Values], str | None]


def filter_rows(
    path: str | Path,
    out: str | Path,
    conditions: Conditions,
    *,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    progress: bool = False,
) -> Derived:
    """Keep the rows that fulfil all conditions; the others stand in ``rejects.jsonl`` with the first that fails.

    Args:
        path: folder of a converted dataset.
        out: folder to write.
        conditions: at least one.
        shard_size: bytes of one shard, as a number or like "100MB".
        overwrite: replace a dataset in ``out``.
        progress: show progress on stderr.

    Raises:
        VlmError: a condition, the input or the output is not as it must be; or not one row is left.
    """
    limit = parse_size(shard_size)
    shards = open_shards(Path(path))
    tests = _tests(conditions, shards)
    check_output(Path(out), [shards.path], overwrite=overwrite)
    parts = np.zeros(len(shards), np.int16)
    drops: list[Drop] = []
    with Progress("filter", len(shards), shown=progress) as bar:
        for drop in _drops(shards, tests, bar.advance):
            parts[drop.row] = DROPPED
            drops.append(drop)
    if len(drops) == len(shards):
        counts: dict[str, int] = {}
        for drop in drops:
            add_counts(counts, {drop.reason: 1})
        told = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        raise DataError(f"not one of {len(drops)} rows is left ({told}); the first, {drops[0].id}: {drops[0].detail}")
    with publishing(Path(out), [shards.path], overwrite=overwrite) as folder:
        with DatasetWriter(folder, [shards], limit) as writer, Progress("write", len(shards), shown=progress) as bar:
            copy_rows(shards, parts, [writer], bar.advance)
            written = writer.finish()
        options = {**asdict(conditions), "shard_bytes": limit}
        taken = len(shards) - len(drops)
        manifest = write_manifest(folder, "filter", [(shards, taken)], written, options, drops)
    return Derived(Path(out), manifest)


def _drops(shards: Shards, tests: Sequence[_Test], report: Callable[[int], None]) -> Iterator[Drop]:
    """The rows that fail, in order."""
    names = shards.manifest.label_names
    needed = {"id", *(column for test in tests for column in test.columns)}
    columns = [name for name in shard_schema(shards.kind, names).names if name in needed]
    for start, table in row_groups(shards, columns):
        for row, held in enumerate(table.to_pylist(), start):
            values = Values(held, names)
            for test in tests:
                fault = test.fault(values)
                if fault is not None:
                    yield Drop(row, held["id"], test.reason, fault)
                    break
        report(table.num_rows)


def _tests(conditions: Conditions, shards: Shards) -> list[_Test]:
    """The conditions that were given, in a fixed order.

    Raises:
        ConfigError: there is none, or one cannot work.
    """
    for name in ("side", "pixels", "turns", "answer_chars"):
        least, most = getattr(conditions, f"min_{name}"), getattr(conditions, f"max_{name}")
        if least is not None and most is not None and least > most:
            option = name.replace("_", "-")
            raise ConfigError(f"--min-{option} {least} is above --max-{option} {most}; no row could be kept")
    tests = [*_licence_tests(conditions), *_limit_tests(conditions), *_label_tests(conditions, shards)]
    if conditions.where is not None:
        tests.append(_where_test(conditions.where))
    if not tests:
        raise ConfigError("no condition is given, every row would be kept; vlmdata filter --help lists them")
    return tests


def _licence_tests(conditions: Conditions) -> Iterator[_Test]:
    patterns = [pattern.casefold() for pattern in conditions.licences]
    if patterns:
        wanted = " or ".join(conditions.licences)

        def unlike(values: Values) -> str | None:
            licence = str(values["licence"])
            fits = any(fnmatchcase(licence.casefold(), pattern) for pattern in patterns)
            return None if fits else f"licence {licence}, expected {wanted}"

        yield _Test("filtered_licence", columns_of(["licence"]), unlike)
    if conditions.no_non_commercial:
        from vlmdata.licences import non_commercial

        def forbids(values: Values) -> str | None:
            licence = str(values["licence"])
            return f"licence {licence} forbids commercial use" if non_commercial(licence) else None

        yield _Test("filtered_licence", columns_of(["licence"]), forbids)


def _limit_tests(conditions: Conditions) -> Iterator[_Test]:
    for option, (field, reason) in _LIMITS.items():
        limit = getattr(conditions, option)
        if limit is None:
            continue
        floor = 1 if option == "max_aspect" else 0
        if not floor <= limit < float("inf"):
            raise ConfigError(f"--{option.replace('_', '-')} is {limit}, expected a number of at least {floor}")
        yield _Test(reason, columns_of([field, "images"]), _limit(option, field, limit))


def _limit(option: str, field: str, limit: float) -> Callable[[Values], str | None]:
    least = option.startswith("min_")
    of_images = _LIMITS[option][1] == "filtered_size"

    def fault(values: Values) -> str | None:
        if of_images and not values["images"]:
            return None
        value = values[field]
        if value >= limit if least else value <= limit:
            return None
        shown = f"{value:.2f}" if isinstance(value, float) else str(value)
        return f"{field} {shown}, expected at {'least' if least else 'most'} {limit}"

    return fault


def _label_tests(conditions: Conditions, shards: Shards) -> Iterator[_Test]:
    names = shards.manifest.label_names
    if not conditions.labels:
        return
    if not names:
        raise ConfigError(f"--label is given, and the rows of {shards.path} have no label")
    unknown = sorted(set(conditions.labels) - set(names))
    if unknown:
        raise ConfigError(f"--label {unknown[0]!r} is no class of {shards.path}; valid: {choices(names)}")

    def fault(values: Values) -> str | None:
        return None if values["label"] in conditions.labels else f"label {values['label']}"

    yield _Test("filtered_label", columns_of(["label"]), fault)


def _where_test(text: str) -> _Test:
    expression = parse(text)

    def fault(values: Values) -> str | None:
        return None if expression.holds(values) else f"not {text}"

    return _Test("filtered_expression", set(expression.columns), fault)
