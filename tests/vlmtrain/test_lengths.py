"""What happens to rows that do not fit, before training starts."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
from PIL import Image

from vlmdata.errors import DataError
from vlmtrain.collate import Collator, PreferenceCollator, decode
from vlmtrain.data import open_data
from vlmtrain.lengths import Fit, context_length, fit
from vlmtrain.model import Loaded, load
from vlmtrain.sft import train


@pytest.fixture(scope="module", params=["llava", "qwen2_vl", "idefics3"])
def loaded(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Loaded:
    return load(str(bases[request.param]), device="cpu")


@pytest.fixture(scope="module")
def qwen(bases: dict[str, Path]) -> Loaded:
    return load(str(bases["qwen2_vl"]), device="cpu")


MIXED = [
    *rows.colours(6, size=(120, 90)),
    rows.sample(
        "many",
        [
            rows.user(rows.PLACE, rows.PLACE, "Compare."),
            rows.assistant("Red, blue."),
            rows.user("And?"),
            rows.assistant("-"),
        ],
        [rows.picture("red", (200, 40)), rows.picture("blue", (33, 95))],
    ),
    rows.sample("text", [rows.user("Say yes. " * 9), rows.assistant("Yes.")], []),
]


def fitted(loaded: Loaded, folder: Path, made: list[dict[str, Any]], **options: Any) -> Fit:
    kind = "messages" if "messages" in made[0] else "preference"
    opened = open_data([rows.write(folder, made)], kind)
    options = {"max_length": None, "on_long": "shrink", **options}
    return fit(opened.rows, kind, loaded.processor, loaded.family, **options)


def test_lengths_are_those_of_the_batch(loaded: Loaded, tmp_path: Path) -> None:
    found = fitted(loaded, tmp_path / "a", MIXED)
    collate = Collator(loaded.processor, loaded.family)
    for row, raw in zip(found.rows, MIXED, strict=True):
        batch = collate([row])
        assert row["length"] == batch["input_ids"].shape[1]
        plain = collate([raw])
        assert batch["input_ids"].equal(plain["input_ids"]) and batch["labels"].equal(plain["labels"])
    image = sum(int((collate([raw])["input_ids"] == loaded.model.config.image_token_id).sum()) for raw in MIXED)
    assert found.tokens == sum(found.rows["length"])
    if loaded.family.name != "idefics3":  # whose images also bring tokens that mark rows and columns
        assert found.images_tokens == image


def test_pair_lengths_are_those_of_the_longer_side(loaded: Loaded, tmp_path: Path) -> None:
    found = fitted(loaded, tmp_path / "a", [*rows.pairs(3), rows.preference("t", [rows.user("a")], "b" * 40, "c", [])])
    collate = PreferenceCollator(loaded.processor, loaded.family)
    for row in found.rows:
        assert row["length"] == collate([row])["input_ids"].shape[1]


def test_context_length(loaded: Loaded) -> None:
    assert context_length(loaded.model, loaded.processor) == 2048


def test_shrink_makes_images_smaller_until_they_fit(qwen: Loaded, tmp_path: Path) -> None:
    made = [{**row, "id": str(i)} for i, row in enumerate(rows.colours(1, size=(112, 112)) * 4)]
    full = fitted(qwen, tmp_path / "full", made).rows[0]["length"]
    collate = Collator(qwen.processor, qwen.family)
    for less in (1, 5, 10, 15):
        found = fitted(qwen, tmp_path / str(less), made, max_length=full - less)
        assert found.shrunk == 4 and not found.dropped
        batch = collate(list(found.rows))
        assert full - less - 8 <= batch["input_ids"].shape[1] <= full - less
        assert batch["input_ids"].shape[1] == max(found.rows["length"])
        assert decode(found.rows[0])[0].size < (112, 112)
    with pytest.raises(DataError, match="too_long 4; the first: 35 text and 16 image tokens, limit 35"):
        fitted(qwen, tmp_path / "none", made, max_length=full - 16)


def test_rows_that_cannot_shrink_are_dropped_and_counted(loaded: Loaded, tmp_path: Path) -> None:
    limit = max(fitted(loaded, tmp_path / "whole", MIXED).rows["length"]) - 1
    found = fitted(loaded, tmp_path / "a", MIXED, max_length=limit, on_long="drop")
    summary = found.summary()
    assert summary["read"] == len(MIXED) == summary["kept"] + sum(summary["dropped"].values())
    assert all(length <= limit for length in found.rows["length"])
    assert {row["id"] for row in found.rows} | {row for row, _, _ in found.dropped} == {row["id"] for row in MIXED}
    assert [row["row"] for row in found.rows] == [i for i, raw in enumerate(MIXED) if raw["id"] in found.rows["id"]]
    assert found.dropped and found.dropped[0][1] == "too_long"


def test_fail_names_the_rows(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 8 rows do not fit: text \(too_long: \d+ text and 0 image tokens, limit"):
        fitted(loaded, tmp_path / "a", [*rows.colours(7), MIXED[-1]], max_length=90, on_long="fail")


def test_nothing_left_is_an_error(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of 2 can be trained on: too_long 2; the first: "):
        fitted(loaded, tmp_path / "a", rows.colours(2), max_length=8)


def test_rows_no_model_can_read_are_dropped_by_reason(loaded: Loaded, tmp_path: Path) -> None:
    mark = rows.sample("mark", [rows.user(f"What is {loaded.processor.image_token}?"), rows.assistant("A mark.")], [])
    thin = rows.sample("thin", [rows.user(rows.PLACE), rows.assistant("A line.")], [rows.picture("red", (900, 2))])
    found = fitted(loaded, tmp_path / "a", [*rows.colours(2), mark, thin])
    reasons = {row: reason for row, reason, _ in found.dropped}
    assert reasons["mark"] == "image_mark"
    if loaded.family.name == "qwen2_vl":
        assert reasons["thin"] == "image_shape"
    Collator(loaded.processor, loaded.family)(list(found.rows))


def test_more_images_than_the_family_takes(loaded: Loaded, tmp_path: Path) -> None:
    found = fitted(replace(loaded, family=replace(loaded.family, max_images=1)), tmp_path / "a", MIXED)
    assert found.dropped == [("many", "too_many_images", "2 images, this family takes 1")]


def test_conversations_the_template_refuses(loaded: Loaded, tmp_path: Path) -> None:
    picky = copy.deepcopy(loaded.processor)
    picky.chat_template = "{% if messages[0]['content'] | length > 2 %}{{ raise_exception('too many') }}{% endif %}" + (
        loaded.processor.chat_template
    )
    found = fitted(replace(loaded, processor=picky), tmp_path / "a", MIXED)
    assert found.dropped == [("many", "template", "the chat template refuses the conversation: too many")]


def test_dropped_rows_are_listed_in_the_run_folder(base: Path, tmp_path: Path) -> None:
    mark = rows.sample("mark", [rows.user("What is <image>?"), rows.assistant("A mark.")], [])
    long = rows.sample("long", [rows.user("so " * 900), rows.assistant("Yes.")], [])
    data = rows.write(tmp_path / "data", [mark, *rows.colours(8), long])
    result = train(data, tmp_path / "run", model=str(base), progress=False, max_length=256)
    assert result.metrics["rows"]["dropped"] == {"image_mark": 1, "too_long": 1}
    listed = json.loads((tmp_path / "run" / "dropped.json").read_text())
    assert [(row["id"], row["reason"]) for row in listed] == [("mark", "image_mark"), ("long", "too_long")]
    assert result.metrics["steps"] == 2


def test_image_scale_is_of_the_stored_picture() -> None:
    row = {"id": "a", "images": [{"bytes": rows.picture("red", (64, 33))}], "image_scale": 0.5}
    (image,) = decode(row)
    assert image.size == (32, 16) and image.mode == "RGB"
    row["images"][0]["bytes"] = _grey()
    assert decode(row)[0].mode == "RGB"


def _grey() -> bytes:
    import io

    stream = io.BytesIO()
    Image.new("L", (10, 10)).save(stream, "PNG")
    return stream.getvalue()
