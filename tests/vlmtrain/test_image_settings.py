"""Settings of the image processor as configuration keys."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest

from vlmdata.errors import ConfigError
from vlmtrain.collate import Collator
from vlmtrain.config import resolve
from vlmtrain.image_settings import change_images
from vlmtrain.model import Loaded, load
from vlmtrain.sft import train
from vlmtrain.trl_seam import image_tokens

ROW = rows.sample("a", [rows.user(rows.PLACE), rows.assistant("Red.")], [rows.picture("red", (120, 60))])


def test_settings_are_used_and_saved(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """From ``--set`` to the adapter's processor, which whoever loads it gets."""
    sets = ["image_processor={do_image_splitting: false, size: {longest_edge: 28, shortest_edge: 14}}"]
    data = rows.write(tmp_path / "data", [ROW])
    base = model_folder("idefics2")
    train(data, tmp_path / "run", model=str(base), max_steps=1, progress=False, sets=sets)
    plain, kept = load(str(base), device="cpu"), load(str(base), tmp_path / "run", device="cpu")
    for loaded, tokens, size in ((plain, 26, (5, 3, 28, 56)), (kept, 6, (1, 3, 14, 28))):
        batch = Collator(loaded.processor, loaded.family)([ROW])
        assert batch["pixel_values"].shape[1:] == size
        assert image_tokens(loaded.processor, [(120, 60)], loaded.family) == [tokens]
    about = json.loads((tmp_path / "run" / "vlmtrain.json").read_text())
    assert about["config"]["image_processor"]["do_image_splitting"] is False


def test_nothing_else_changes(loaded: Loaded) -> None:
    processor = copy.deepcopy(loaded.processor)
    before = processor.image_processor.to_dict()
    change_images(processor, {"do_normalize": False})
    assert processor.image_processor.to_dict() == {**before, "do_normalize": False}
    collate = Collator(processor, loaded.family)
    pixels = collate([ROW])["pixel_values"]
    assert 0 <= pixels.min() and pixels.max() <= 1, "not normalized"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"do_image_spliting": False},
            "no setting do_image_spliting; Idefics2ImageProcessor has: .*do_image_splitting",
        ),
        ({"do_image_splitting": "no"}, "do_image_splitting is 'no', expected true or false like True"),
        ({"rescale_factor": True}, "rescale_factor is True, expected a number like 0.0039"),
        ({"size": {"longest": 3}}, r"cannot work with \{'size': \{'longest': 3\}\}: "),
        ({"size": 3.5}, "cannot work with"),
    ],
)
def test_settings_that_cannot_be(model_folder: Callable[[str], Path], settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load(str(model_folder("idefics2")), device="cpu", image_processor=settings)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("paligemma", {"size": {"height": 84, "width": 84}}),
        ("llava", {"crop_size": {"height": 14, "width": 14}}),
        ("qwen2_vl", {"patch_size": 7}),
        ("idefics3", {"size": {"height": 84, "width": 84}}),
        ("vit", {"size": {"height": 84, "width": 84}}),
    ],
)
def test_sizes_that_the_model_does_not_take(
    family: str, settings: dict[str, Any], model_folder: Callable[[str], Path]
) -> None:
    """A processor makes pictures of any size; what the tower takes is known before the first step."""
    with pytest.raises(ConfigError, match=r"image_processor: the model cannot work with \{'"):
        load(str(model_folder(family)), device="cpu", image_processor=settings)


def test_a_mapping_is_expected() -> None:
    with pytest.raises(ConfigError, match="image_processor is 5, expected settings like"):
        resolve("sft", {}, sets=["image_processor=5"])
    with pytest.raises(ConfigError, match="image_processor is .*expected settings like"):
        resolve("dpo", {}, sets=["image_processor={1: 2}"])
    assert resolve("kto", {"image_processor": {"do_resize": False}}).base.image_processor == {"do_resize": False}
    assert resolve("sft", {}).base.image_processor is None
