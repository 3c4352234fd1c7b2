"""How many tokens the rows of a dataset take, from stored image sizes: what a budget for images saves."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmdata.errors import ConfigError
from vlmtrain.config import Config
from vlmtrain.planning.batches import Load
from vlmtrain.planning.shapes import Shape

__all__ = ["Budget", "Repeats", "Visual", "count_rows"]

Size = tuple[int, int]
PERCENTILES = (5, 50, 95, 100)
# A tokenizer of letters counts bytes; English text of the usual vocabularies has about four of them in a token.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens of a dataset under one budget for each image.

    Attributes:
        most: tokens an image may take; None is the processor's own limit.
        image_tokens: of all rows.
        tokens: of all rows, text too.
        too_long: rows longer than the limit.
        longest: tokens of the longest row.
    """

    most: int | None
    image_tokens: int
    tokens: int
    too_long: int
    longest: int


@dataclass(frozen=True, slots=True)
class Repeats:
    """What images that come more than once let a run save.

    Attributes:
        images: different ones.
        features: bytes of what the tower makes of them, which ``cache_vision`` keeps; marks that some families set
            around an image count with its tokens, so that it may be less.
        groups: rows whose images are the same count once; rows without an image are left out.
        rows: rows with an image.
        shared: image tokens that ``group_by_image`` does not read again, if every group fits into a batch.
    """

    images: int
    features: int
    groups: int
    rows: int
    shared: int


@dataclass(slots=True)
class Visual:
    """What the rows of a dataset take.

    Attributes:
        rows: how many; ``unreadable`` ones are left out of all other figures.
        images: how many pictures in all rows.
        percentiles: 5, 50, 95 and 100 percent of: ``image`` tokens of a picture, ``row`` tokens of a row's pictures,
            ``text`` tokens of a row.
        limit: longest row that is trained on; None is unlimited.
        exact: texts were counted by the model's tokenizer; else they are guessed by their bytes.
        budgets: the one that is set, and smaller ones.
        fixed: every image takes the same, whatever its size.
        repeats: of images.
        longest: rows for a batch, the longest first; as the dataset gives them.
    """

    rows: int
    unreadable: int
    images: int
    percentiles: dict[str, dict[int, int]]
    limit: int | None
    exact: bool
    budgets: list[Budget]
    fixed: bool
    repeats: Repeats
    load: Load
    longest: Any = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "rows": self.rows,
            "unreadable": self.unreadable,
            "images": self.images,
            "tokens": {name: {f"p{k}": v for k, v in at.items()} for name, at in self.percentiles.items()},
            "max_length": self.limit,
            "tokenizer": self.exact,
            "budgets": [dataclasses.asdict(budget) for budget in self.budgets],
            "repeats": dataclasses.asdict(self.repeats),
        }


def count_rows(config: Config, shape: Shape, folders: Sequence[str | Path]) -> Visual:
    """Count all rows.

    Args:
        config: of the run: its method says what kind of rows, its length keys which are too long.
        shape: of the model, image budget set.
        folders: converted datasets.

    Raises:
        VlmError: data that cannot be opened, or of which no row can be trained on.
    """
    from vlmtrain.data import open_data
    from vlmtrain.job import KINDS
    from vlmtrain.lengths import fit

    labelled = config.unpaired is not None and config.unpaired.label_by
    kind = "messages" if labelled else KINDS[config.method]
    opened = open_data(folders, kind)
    fitted = fit(opened.rows, kind, shape.processor, shape.family, max_length=None, on_long="drop")
    rows = fitted.rows
    sizes = [[(s["width"], s["height"]) for s in row] for row in rows["image_size"]]
    counter = _Counter(shape)
    pictures = [counter.row(row) for row in sizes]
    texts = [length - image for length, image in zip(rows["length"], pictures, strict=True)]
    if not shape.real_tokenizer:
        texts = [-(-text // BYTES_PER_TOKEN) for text in texts]
    limit = _limit(config, shape)
    whole = [text + image for text, image in zip(texts, pictures, strict=True)]
    singles = [counter.image(size) for row in sizes for size in row]
    top = max(range(len(rows)), key=whole.__getitem__)
    smaller = list(_smaller(shape, sizes, singles, texts, limit))
    size = _feature(config, shape)
    load = Load(
        length=max(2, whole[top] if limit is None else min(whole[top], limit)),
        answer=_answer(rows[top], kind, shape),
        images=len(sizes[top]),
        size=max(sizes[top], key=lambda size: size[0] * size[1], default=(1, 1)),
    )
    return Visual(
        rows=fitted.read,
        unreadable=len(fitted.dropped),
        images=len(singles),
        percentiles={
            "image": _percentiles(singles),
            "row": _percentiles(pictures),
            "text": _percentiles(texts),
        },
        limit=limit,
        exact=shape.real_tokenizer,
        budgets=[_budget(config.base.max_image_tokens, texts, pictures, limit), *smaller],
        fixed=not smaller,
        repeats=_repeats(rows["image_sha256"], [[counter.image(one) for one in row] for row in sizes], size),
        load=load,
        longest=_longest(config, shape, opened.rows, kind, limit) if shape.real_tokenizer else None,
    )


def _longest(config: Config, shape: Shape, rows: Any, kind: str, limit: int | None) -> Any:
    """The rows of the largest batch, brought to the length that is trained on."""
    from vlmtrain.lengths import fit

    assert config.length is not None
    policy = "shrink" if config.length.on_long == "shrink" else "drop"
    kept = fit(rows, kind, shape.processor, shape.family, max_length=limit, on_long=policy).rows
    lengths = kept["length"]
    order = sorted(range(len(kept)), key=lambda row: lengths[row], reverse=True)
    return kept.select(order[: config.training.batch_size])


def _repeats(digests: Sequence[Sequence[str]], tokens: Sequence[Sequence[int]], feature: int) -> Repeats:
    """Of rows' images, by their digests; ``feature`` is the bytes of one token's."""
    shown = [(tuple(row), many) for row, many in zip(digests, tokens, strict=True) if row]
    of_image = {digest: own for row, many in shown for digest, own in zip(row, many, strict=True)}
    of_group = {row: sum(many) for row, many in shown}
    return Repeats(
        images=len(of_image),
        features=sum(of_image.values()) * feature,
        groups=len(of_group),
        rows=len(shown),
        shared=sum(sum(many) for _, many in shown) - sum(of_group.values()),
    )


def _feature(config: Config, shape: Shape) -> int:
    """Bytes of what takes the place of an image's token, 0 where it is not kept; Qwen3-VL's has layers more."""
    import torch

    from vlmtrain.tuning import weights_dtype

    if shape.family.features is not None:
        return 0
    kind = weights_dtype(config)
    dtype = getattr(torch, shape.dtype if kind == "auto" else kind)
    layers = 1 + len(getattr(getattr(shape.config, "vision_config", None), "deepstack_visual_indexes", None) or ())
    return int(shape.config.get_text_config().hidden_size * layers * dtype.itemsize)


class _Counter:
    """Tokens of images by size, each size computed once."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.known: dict[Size, int] = {}

    def image(self, size: Size) -> int:
        from vlmtrain.planning.batches import tokens_of

        if size not in self.known:
            self.known[size] = tokens_of(self.shape, size)
        return self.known[size]

    def row(self, sizes: Sequence[Size]) -> int:
        return sum(map(self.image, sizes))


def _smaller(
    shape: Shape, sizes: Sequence[Sequence[Size]], singles: Sequence[int], texts: Sequence[int], limit: int | None
) -> Iterator[Budget]:
    """Three quarters, half and a quarter of what the largest images take, where the family can have it."""
    from vlmtrain.model import set_budget

    most, seen = max(singles, default=0), {sum(singles)}
    for share in (0.75, 0.5, 0.25):
        budget = int(most * share)
        lesser = copy.copy(shape)
        lesser.processor = copy.deepcopy(shape.processor)
        try:
            set_budget(lesser.processor, shape.family, budget)
        except ConfigError:
            return
        counter = _Counter(lesser)
        pictures = [counter.row(row) for row in sizes]
        if sum(pictures) not in seen:
            seen.add(sum(pictures))
            yield _budget(budget, texts, pictures, limit)


def _budget(most: int | None, texts: Sequence[int], pictures: Sequence[int], limit: int | None) -> Budget:
    whole = [text + image for text, image in zip(texts, pictures, strict=True)]
    too_long = sum(limit is not None and row > limit for row in whole)
    return Budget(most, sum(pictures), sum(whole), too_long, max(whole))


def _limit(config: Config, shape: Shape) -> int | None:
    from types import SimpleNamespace

    from vlmtrain.lengths import context_length

    assert config.length is not None
    given = config.length.max_length
    known = context_length(SimpleNamespace(config=shape.config), shape.processor)
    return given or known


def _answer(row: Mapping[str, Any], kind: str, shape: Shape) -> int:
    """About how many tokens of a row are learned."""
    columns = ("messages",) if kind == "messages" else ("chosen", "rejected")
    turns = [[turn for turn in row[name] if turn["role"] == "assistant"] for name in columns]
    words = [json.dumps([part["text"] for turn in side for part in turn["content"]]) for side in turns]
    longest = max(words, key=len)
    if shape.real_tokenizer:
        return max(1, len(shape.processor.tokenizer(longest)["input_ids"]))
    return max(1, len(longest.encode()) // BYTES_PER_TOKEN)


def _percentiles(values: Sequence[int]) -> dict[int, int]:
    found = np.percentile(values, PERCENTILES, method="inverted_cdf") if len(values) else [0] * len(PERCENTILES)
    return {share: int(value) for share, value in zip(PERCENTILES, found, strict=True)}
