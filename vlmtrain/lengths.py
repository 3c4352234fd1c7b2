"""Row lengths before training: from texts and stored image sizes, no image is opened.

A row that is longer than the model takes, or that it cannot read at all, is found here, not in step 412. Texts are
rendered once; the collator takes them from the dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets

from vlmdata.errors import DataError, choices
from vlmtrain.chat import has_image_mark, image_mark
from vlmtrain.collate import Said, rendered
from vlmtrain.encode import text_length
from vlmtrain.family import Family
from vlmtrain.trl_seam import image_tokens

__all__ = ["Fit", "context_length", "fit", "policy"]

Size = tuple[int, int]
Refusal = Callable[[Mapping[str, Any]], tuple[str, str] | None]
SPANS = List(List(Value("int32")))
_PREFIXES = {"messages": ("",), "preference": ("chosen_", "rejected_")}


@dataclass(slots=True)
class Fit:
    """Rows that can be trained on.

    Attributes:
        rows: with ``row`` number, ``length`` in tokens, ``image_scale``, and the rendered texts and answer spans.
        read: rows looked at.
        shrunk: rows whose images are made smaller to fit.
        dropped: (row id, reason, detail).
        tokens: tokens of all kept rows; ``image`` ones among them.
    """

    rows: Any
    read: int
    shrunk: int = 0
    dropped: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: int = 0
    images_tokens: int = 0

    def summary(self) -> dict[str, Any]:
        """Counts that add up: read = kept + dropped."""
        reasons = Counter(reason for _, reason, _ in self.dropped)
        return {
            "read": self.read,
            "kept": len(self.rows),
            "shrunk": self.shrunk,
            "dropped": dict(sorted(reasons.items())),
            "tokens": self.tokens,
            "image_tokens": self.images_tokens,
        }


def context_length(model: Any, processor: Any) -> int | None:
    """How many tokens a row may have at most, if model or tokenizer say so."""
    text = model.config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None), processor.tokenizer.model_max_length]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known) if known else None


def fit(
    rows: Dataset,
    kind: str,
    processor: Any,
    family: Family,
    *,
    max_length: int | None,
    on_long: str,
    first: int = 0,
    progress: Callable[[int], None] | None = None,
    refuse: Refusal | None = None,
) -> Fit:
    """Render all rows, count their tokens and apply the length policy.

    Args:
        rows: of :func:`vlmtrain.data.open_data`.
        kind: ``messages`` or ``preference``.
        processor: image budget set.
        family: the model's family.
        max_length: most tokens of a row.
        on_long: ``shrink`` makes a row's images smaller until it fits and drops it when that is not enough;
            ``drop`` drops it; ``fail`` raises.
        first: number of the first row, for the ``row`` column.
        progress: told the number of rows done, now and then.
        refuse: gives (reason, detail) for a row, columns without images, that the method cannot use.

    Raises:
        DataError: with ``fail`` the rows that do not fit; else when no row is left.
    """
    count = _Counter(processor, family)
    result = Fit(rows, len(rows))
    kept: list[int] = []
    added: dict[str, list[Any]] = {name: [] for name in _added_features(kind)}
    done = 0
    for batch in rows.remove_columns(["images", "image_sha256"]).iter(batch_size=256):
        for row in _rows(batch):
            fault = refuse(row) if refuse else None
            if fault is not None:
                result.dropped.append((row["id"], *fault))
            entry = None if fault else _fit_row(row, kind, processor, family, count, max_length, on_long, result)
            if entry is not None:
                kept.append(done)
            for name, column in added.items():
                column.append(entry[name] if entry is not None else None)
            added["row"][-1] = first + done
            done += 1
        if progress:
            progress(done)
    if result.dropped and on_long == "fail":
        names = ", ".join(f"{row} ({why}: {detail})" for row, why, detail in result.dropped[:5])
        more = " ..." if len(result.dropped) > 5 else ""
        raise DataError(f"{len(result.dropped)} of {len(rows)} rows do not fit: {names}{more}")
    if not kept:
        reasons = choices(f"{why} {number}" for why, number in result.summary()["dropped"].items())
        raise DataError(f"no row of {len(rows)} can be trained on: {reasons}; the first: {result.dropped[0][2]}")
    extra = Dataset.from_dict(added, features=Features(_added_features(kind)))
    # Joined before rows are left out: joining a selection would copy all images.
    joined = concatenate_datasets([rows, extra], axis=1)
    result.rows = joined if len(kept) == len(rows) else joined.select(kept)
    return result


def policy(
    kind: str,
    processor: Any,
    family: Family,
    *,
    max_length: int | None,
    on_long: str,
    refuse: Refusal | None = None,
) -> Callable[[Mapping[str, Any]], dict[str, Any] | tuple[str, str]]:
    """The same for rows that come one by one: what is added to a row, or (reason, detail) why it is left out.

    Args:
        kind: of the rows, ``messages`` or ``preference``.
        processor: image budget set.
        family: the model's family.
        max_length: most tokens of a row.
        on_long: as for :func:`fit`; ``fail`` is for the caller, who is told of the row.
        refuse: gives (reason, detail) for a row that the method cannot use.
    """
    count = _Counter(processor, family)

    def apply(row: Mapping[str, Any]) -> dict[str, Any] | tuple[str, str]:
        fault = refuse(row) if refuse else None
        if fault is not None:
            return fault
        result = Fit(None, 1)
        entry = _fit_row(row, kind, processor, family, count, max_length, on_long, result)
        return entry if entry is not None else result.dropped[0][1:]

    return apply


def _added_features(kind: str) -> dict[str, Any]:
    common: dict[str, Any] = {"row": Value("int64"), "length": Value("int32"), "image_scale": Value("float64")}
    said = {"text": Value("string"), "answers": SPANS, "begin": Value("int32")}
    return {**common, **{f"{prefix}{name}": kind_ for prefix in _PREFIXES[kind] for name, kind_ in said.items()}}


def _fit_row(
    row: Mapping[str, Any],
    kind: str,
    processor: Any,
    family: Family,
    count: _Counter,
    max_length: int | None,
    on_long: str,
    result: Fit,
) -> dict[str, Any] | None:
    """What the dataset gains for this row, or None when it is dropped."""
    sizes = [(size["width"], size["height"]) for size in row["image_size"]]
    fault = _unreadable(row, kind, processor, family, sizes, count)
    if fault is None:
        try:
            entry, text_tokens = _render(row, kind, processor, family)
        except DataError as error:
            result.dropped.append((row["id"], "template", str(error)))
            return None
        scale = 1.0
        pictures = sum(map(count.image, sizes))
        if max_length is not None and text_tokens + pictures > max_length:
            scale = count.shrink(sizes, max_length - text_tokens) if on_long == "shrink" else 0.0
            if not scale:
                fault = ("too_long", f"{text_tokens} text and {pictures} image tokens, limit {max_length}")
    if fault is not None:
        result.dropped.append((row["id"], *fault))
        return None
    if scale < 1:
        result.shrunk += 1
        pictures = sum(count.image(_scaled(size, scale)) for size in sizes)
    result.tokens += text_tokens + pictures
    result.images_tokens += pictures
    return {**entry, "row": None, "length": text_tokens + pictures, "image_scale": scale}


def _unreadable(
    row: Mapping[str, Any], kind: str, processor: Any, family: Family, sizes: Sequence[Size], count: _Counter
) -> tuple[str, str] | None:
    turns = row["messages"] if kind == "messages" else [*row["prompt"], *row["chosen"], *row["rejected"]]
    if has_image_mark(processor, turns):
        return "image_mark", f"a text contains {image_mark(processor)!r}, this model's image token"
    if family.max_images is not None and len(sizes) > family.max_images:
        return "too_many_images", f"{len(sizes)} images, this family takes {family.max_images}"
    places = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    if places != len(sizes):
        return "image_count", f"{places} image places in the text, {len(sizes)} images"
    for size in sizes:
        try:
            count.image(size)
        except ValueError as error:
            return "image_shape", f"{size[0]} x {size[1]}: {error}"
    return None


def _render(row: Mapping[str, Any], kind: str, processor: Any, family: Family) -> tuple[dict[str, Any], int]:
    """Rendered texts with answer spans, and the longest text's tokens without those of images."""
    entry: dict[str, Any] = {}
    longest = 0
    for prefix in _PREFIXES[kind]:
        said = rendered(processor, row, prefix.removesuffix("_") or None)
        entry |= {f"{prefix}{name}": value for name, value in zip(Said._fields, said, strict=True)}
        longest = max(longest, text_length(processor, family, said.text, len(row["image_size"])))
    return entry, longest


class _Counter:
    """Image tokens by size, each size computed once."""

    def __init__(self, processor: Any, family: Family) -> None:
        self.processor, self.family = processor, family
        self.known: dict[Size, int] = {}

    def image(self, size: Size) -> int:
        if size not in self.known:
            self.known[size] = image_tokens(self.processor, [size], self.family)[0]
        return self.known[size]

    def shrink(self, sizes: Sequence[Size], room: int) -> float:
        """The largest scale in 64ths below 1 at which the images fit into ``room``; 0 when there is none."""

        def fits(step: int) -> bool:
            try:
                smaller = [_scaled(size, step / 64) for size in sizes]
                return sum(image_tokens(self.processor, smaller, self.family)) <= room
            except ValueError:
                return False

        low, high = 0, 64
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low / 64


def _scaled(size: Size, scale: float) -> Size:
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _rows(batch: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    names = list(batch)
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(names, values, strict=True))
