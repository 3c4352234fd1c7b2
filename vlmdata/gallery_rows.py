"""The rows and the rejects a gallery shows: chosen over the whole dataset, as plain values for its page."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlmdata.errors import DataError
from vlmdata.places import open_parquet
from vlmdata.reasons import REASONS
from vlmdata.rejects import REJECTS, REJECTS_FILE
from vlmdata.shards import Shards
from vlmdata.thumbnails import thumbnails
from vlmdata.word_diff import word_diff

__all__ = ["LONGEST_TEXT", "Pictures", "choose", "rejects", "rows"]

LONGEST_TEXT = 20_000
"""Characters of one text that are shown; how many more there are is said."""


class Pictures:
    """Thumbnails by the hash of their image, each held once.

    Attributes:
        urls: the ``data:`` URLs, in the order they were first seen.
    """

    def __init__(self, side: int) -> None:
        """Thumbnails of at most ``side`` pixels."""
        self.side = side
        self.urls: list[str] = []
        self._known: dict[str, int | None] = {}

    def add(self, images: Iterable[tuple[str, bytes]], report: Callable[[int], None] = lambda count: None) -> None:
        """Make the thumbnails of images, given with their hashes, that are not there yet."""
        order: list[str] = []

        def fresh() -> Iterator[bytes]:
            for key, data in images:
                if key not in self._known:
                    self._known[key] = None
                    order.append(key)
                    yield data

        for index, url in enumerate(thumbnails(fresh(), self.side)):
            if url is not None:
                self._known[order[index]] = len(self.urls)
                self.urls.append(url)
            report(1)

    def index(self, key: str) -> int | None:
        """Which of ``urls`` shows the image; None when it cannot be shown."""
        return self._known.get(key)


class _Raw(NamedTuple):
    """A rejected row as it was: its text, and the keys of the images in it."""

    text: str | None
    keys: list[str]


def choose(total: int, count: int, seed: int) -> list[int]:
    """Row numbers spread over a dataset: one, chosen by the seed, out of each of ``count`` equal stretches."""
    if count >= total:
        return list(range(total))
    draw = random.Random(f"preview {seed}")
    ends = [total * index // count for index in range(count + 1)]
    return [draw.randrange(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]


def rows(shards: Shards, wanted: Sequence[int], pictures: Pictures) -> list[dict[str, Any]]:
    """The wanted rows (ascending numbers) for the page; their thumbnails go to ``pictures``.

    Raises:
        DataError: a shard cannot be read.
    """
    found: list[dict[str, Any]] = []

    def images() -> Iterator[tuple[str, bytes]]:
        for number, row in _read(shards, wanted):
            found.append(_shown(row, number, shards.manifest.label_names))
            for key, image in zip(row["image_sha256"], row["images"], strict=True):
                if image["bytes"] is not None:
                    yield key, image["bytes"]

    pictures.add(images())
    for row in found:
        for image in row["images"]:
            image["thumb"] = pictures.index(image.pop("key"))
    return found


def rejects(shards: Shards, most: int, pictures: Pictures) -> list[dict[str, Any]]:
    """Rejected rows for the page, at most ``most``, every reason in turn; with thumbnails where the raw bytes are kept.

    Raises:
        DataError: ``rejects.jsonl`` cannot be read.
    """
    path = shards.path / REJECTS_FILE
    if not path.is_file():
        return []
    quota = _quotas(shards.manifest.rejected, most)
    taken: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                reject = json.loads(line)
                reason = str(reject["reason"])
                if taken[reason] < quota.get(reason, 0):
                    taken[reason] += 1
                    found.append({**reject, "reason": reason, "why": REASONS.get(reason, "")})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); vlmdata validate tells more") from None
    kept: dict[int, _Raw] = {}
    pictures.add(_raw_images(shards.path, found, kept))
    shown = []
    for index, reject in enumerate(found):
        raw = kept.get(index, _Raw(None, []))
        thumbs = [thumb for key in raw.keys if (thumb := pictures.index(key)) is not None]
        place = [str(reject[name]) for name in ("file", "row") if reject.get(name) is not None]
        shown.append(
            {
                "id": str(reject.get("id", "")),
                "place": ", row ".join(place),
                "reason": reject["reason"],
                "why": reject["why"],
                "detail": _cut(str(reject.get("detail") or "")),
                "raw": None if raw.text is None else _cut(raw.text),
                "thumbs": thumbs,
            }
        )
    return shown


def _quotas(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """A fair share for each reason; what a small one leaves goes to the others."""
    quotas: dict[str, int] = {}
    left = most
    for index, (reason, count) in enumerate(sorted(counts.items(), key=lambda item: (item[1], item[0]))):
        quotas[reason] = min(count, -(-left // (len(counts) - index)))
        left -= quotas[reason]
    return quotas


def _raw_images(folder: Path, found: Sequence[Mapping[str, Any]], kept: dict[int, _Raw]) -> Iterator[tuple[str, bytes]]:
    """The images of rejected rows that were kept raw; what else they hold is noted by the number of the reject."""
    by_id = {reject.get("id"): index for index, reject in enumerate(found)}
    for file in sorted((folder / REJECTS).glob("*.parquet")):
        with open_parquet(file) as parquet:
            for batch in parquet.iter_batches(16, columns=["id", "raw", "blobs"]):
                for at, row_id in enumerate(batch.column("id").to_pylist()):
                    index = by_id.get(row_id)
                    if index is None or index in kept:
                        continue
                    blobs = batch.column("blobs")[at].as_py() or []
                    kept[index] = _Raw(
                        batch.column("raw")[at].as_py(), [f"reject {index} {number}" for number in range(len(blobs))]
                    )
                    yield from zip(kept[index].keys, blobs, strict=True)


def _read(shards: Shards, wanted: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by number; row groups without one are passed over."""
    import numpy as np
    import pyarrow as pa

    numbers = np.asarray(wanted, np.int64)
    start = 0
    for file in shards.files:
        try:
            with open_parquet(file) as parquet:
                for group in range(parquet.num_row_groups):
                    stop = start + parquet.metadata.row_group(group).num_rows
                    here = numbers[(numbers >= start) & (numbers < stop)]
                    if len(here):
                        table = parquet.read_row_group(group)
                        for number in here.tolist():
                            yield number, table.slice(number - start, 1).to_pylist()[0]
                    start = stop
        except (OSError, pa.ArrowException) as error:
            detail = " ".join(str(error).split())[:200]
            raise DataError(f"{file} cannot be read ({detail}); vlmdata validate tells more") from None


def _shown(row: Mapping[str, Any], number: int, label_names: Sequence[str]) -> dict[str, Any]:
    turns = row["messages"] if "messages" in row else row["prompt"]
    label = row.get("label")
    origin = row["provenance"]
    shown: dict[str, Any] = {
        "number": number,
        "id": row["id"],
        "source": row["source"],
        "licence": row["licence"],
        "label": None if label is None else label_names[label] if 0 <= label < len(label_names) else str(label),
        "images": [
            {"key": key, "width": size["width"], "height": size["height"], "path": image["path"]}
            for key, size, image in zip(row["image_sha256"], row["image_size"], row["images"], strict=True)
        ],
        "turns": _turns(turns),
        "characters": sum(_length(row[name]) for name in ("messages", "prompt", "chosen", "rejected") if name in row),
        "origin": {name: str(value) for name, value in origin.items() if value is not None},
        "meta": _meta(row["meta"]),
    }
    if "chosen" in row:
        sides = word_diff(_answer(row["chosen"]), _answer(row["rejected"]))
        shown["chosen"], shown["rejected"] = ([list(piece) for piece in side] for side in sides)
    return shown


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns with their parts: a text, or the number of an image."""
    image = 0
    turns = []
    for message in messages:
        parts: list[str | int] = []
        for part in message["content"]:
            if part["type"] == "image":
                parts.append(image)
                image += 1
            else:
                parts.append(_cut(part["text"] or ""))
        turns.append({"role": message["role"], "parts": parts})
    return turns


def _answer(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of an answer; several turns are told apart by their roles."""
    texts = []
    for message in messages:
        text = "\n".join(part["text"] or "" for part in message["content"])
        texts.append(text if len(messages) == 1 else f"[{message['role']}]\n{text}")
    return _cut("\n\n".join(texts))


def _length(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(part["text"] or "") for message in messages for part in message["content"])


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]} \N{HORIZONTAL ELLIPSIS} [{len(text) - LONGEST_TEXT:,} more characters]"


def _meta(text: str) -> dict[str, str]:
    """The entries of ``meta`` as texts."""
    try:
        values = json.loads(text or "{}")
    except ValueError:
        return {"meta": _cut(text)}
    if not isinstance(values, dict):
        return {"meta": _cut(text)}
    return {
        name: _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in values.items()
    }
