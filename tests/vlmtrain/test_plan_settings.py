"""What ``vlmtrain plan`` says of settings: as training takes them, and which of them would be faster."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from rich.console import Console

from benchmarks.plan_accuracy import make_model
from vlmdata.errors import ConfigError
from vlmtrain.plan import plan
from vlmtrain.planning import advice
from vlmtrain.planning.shapes import find_shape
from vlmtrain.planning.show import show
from vlmtrain.recipe import recipe_names


def test_fewer_layers_recompute_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cards here have room for what so many of two layers take."""
    options: dict[str, Any] = {
        "model": str(make_model("llava", tmp_path / "llava", width=128, layers=2)),
        "checkpoint_layers": 2,
        "images": 0,
        "length": 1500,
    }

    def peak(**keys: Any) -> int:
        return plan("sft", advice=False, **{**options, **keys}).memory.peak

    one, none = peak(checkpoint_layers=1), peak(checkpoint_layers=None, gradient_checkpointing=False)
    rooms = {24: peak(), 48: one, 80: none}
    assert rooms[24] < one < none
    monkeypatch.setattr(advice, "usable", lambda card: rooms[card])
    monkeypatch.setattr(advice, "FRAGMENTS", 1.0)
    found = plan("sft", **options)
    faster = ["", "--set checkpoint_layers=1", "--set gradient_checkpointing=false"]
    assert [(card.fits, card.faster, card.faster_peak) for card in found.cards] == [
        (True, text, at) for text, at in zip(faster, (0, one, none), strict=True)
    ]
    console = Console(width=80, file=io.StringIO())
    show(found, console)
    assert f"faster: --set checkpoint_layers=1, {one / 1e9:.1f} GB" in console.file.getvalue()
    assert not any(card.faster for card in plan("sft", **{**options, "checkpoint_layers": 1}).cards[:2])


# The chain of tiny recipes goes on with its own adapter, which is not there before it.
RECIPES = [name for name in recipe_names() if not name.startswith("tiny")]


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=() if name == "blip2-football" else pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_is_rehearsed(recipe: str) -> None:
    """BLIP-2's: pixels in float16 under autocast to bfloat16, on a base in 8 bits."""
    found = plan(recipe=recipe, advice=False)
    assert found.memory.items["activations"] > 0 and found.memory.recomputed > 0


def test_a_head_alone_is_planned_alone() -> None:
    options: dict[str, Any] = {"model": "vit-base-patch16-224-in21k", "head_only": True}
    found = plan("classify", **options)
    assert found.memory.trained == 77_669, "weights and biases of its 101 classes"
    assert not any("lora" in knob.text for knob in found.knobs)


def test_a_model_that_cannot_recompute(tmp_path: Path) -> None:
    """As in training: on a GPU it does not, and says so where it was asked to."""
    base = tiny_models.make("convnext", tmp_path / "convnext")
    options: dict[str, Any] = {"model": str(base), "parts": "vision:mlp", "advice": False}
    assert plan("classify", **options).memory.recomputed == 0
    with pytest.raises(ConfigError, match="cannot recompute activations: leave checkpoint_layers out"):
        plan("classify", checkpoint_layers=1, **options)


def test_a_model_that_is_published_again() -> None:
    assert find_shape("unsloth/Llama-3.2-11B-Vision-Instruct").name == "meta-llama/Llama-3.2-11B-Vision-Instruct"
