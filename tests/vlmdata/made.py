"""Small converted datasets for the tests of what is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rawfiles import CAULDRON, RLAIF, cauldron_rows, food_schema, image, pairs, rlaif_row, write_parquet

from vlmdata.convert import convert
from vlmdata.shards import open_shards
from vlmdata.validate import validate


def messages(folder: Path, rows: Sequence[dict[str, Any]] | int, name: str = "geo", **options: Any) -> Path:
    held = cauldron_rows(rows) if isinstance(rows, int) else rows
    raw = write_parquet(folder / f"raw-{name}" / f"{name}.parquet", held, CAULDRON)
    return convert("the_cauldron", raw, folder / name, **options).out


def preferences(folder: Path, rows: int, name: str = "pairs") -> Path:
    raw = write_parquet(folder / f"raw-{name}" / f"{name}.parquet", [rlaif_row(n) for n in range(rows)], RLAIF)
    return convert("rlaif_v", raw, folder / name).out


def labelled(folder: Path, labels: Sequence[int], names: Sequence[str], name: str = "food") -> Path:
    rows = [{"image": image(number, size=(24 + number, 16)), "label": label} for number, label in enumerate(labels)]
    raw = write_parquet(folder / f"raw-{name}" / f"{name}.parquet", rows, food_schema(names))
    return convert("food101", raw, folder / name).out


def row(*seeds: int, question: str = "What?", answer: str = "That.", **how: Any) -> dict[str, Any]:
    """A raw row on the images of these seeds."""
    return {"images": [image(seed, **how) for seed in seeds], "texts": pairs((question, answer))}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of a dataset, with their image bytes."""
    return [held for file in open_shards(folder).files for held in pq.read_table(file).to_pylist()]


def ids_of(folder: Path) -> list[str]:
    return [held["id"] for held in rows_of(folder)]


def assert_valid(folder: Path) -> None:
    assert [str(problem) for problem in validate(folder)] == []
