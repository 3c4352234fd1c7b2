"""What is asked of a loaded model, and adapters put beside each other on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import colour_rows as rows
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vlmdata.errors import ConfigError
from vlmtrain.adapters import add_adapter
from vlmtrain.bases import spread
from vlmtrain.model import Loaded, load, save
from vlmtrain.questions import Questions


def test_lengths_are_known_before_anything_is_opened(loaded: Loaded) -> None:
    """Prompts of every family, with one and two pictures and none, alone and with answers to rank."""
    questions = Questions(loaded, own=True)
    sizes = [(40, 40), (64, 30)]
    pictures = [Image.new("RGB", size, "red") for size in sizes]
    most = loaded.family.max_images or 2
    for count in range(most + 1):
        turns = [rows.user(*[rows.PLACE] * count, "What colour is it?")]
        batch = questions.prompts([turns], [pictures[:count]])
        assert questions.length(turns, sizes[:count]) == batch["input_ids"].shape[1]
        if count:
            ranked = questions.rows([turns], [pictures[:count]], [["red", "It is a blue circle."]])
            # The end of the turn comes on top, and what a template writes around it.
            assert (
                0
                <= ranked[1]["input_ids"].shape[1] - questions.length(turns, sizes[:count], ["It is a blue circle."])
                < 4
            )


def test_what_cannot_be_asked_is_said(loaded: Loaded) -> None:
    questions = Questions(loaded)
    one = [rows.user(rows.PLACE, "What is it?")]
    assert questions.fault(one, 1) is None and questions.fault(one, 1, ["red", "blue"]) is None
    assert questions.fault(one, 2) == "1 image parts and 2 images"
    assert questions.fault(one, 1, ["red", "\n"]) == "one of the answers is blank"
    if (mark := getattr(loaded.processor, "image_token", None)) is not None:
        assert "image token" in str(questions.fault([rows.user(rows.PLACE, f"{mark}?")], 1))
        assert "image token" in str(questions.fault(one, 1, [f"{mark}"]))


def test_the_format_of_prompts_is_seen_to_change(loaded: Loaded) -> None:
    own = Questions(loaded, own=True)
    before = json.dumps(own.prompt_format())
    assert before == json.dumps(Questions(loaded).prompt_format())
    own.processor.chat_template = own.processor.chat_template.replace("assistant", "helper") + " "
    assert json.dumps(own.prompt_format()) != before


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("one", "two")):
        fresh = load(str(base), device="cpu")
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2 + seed, target_modules=r".*language_model.*\.q_proj", init_lora_weights=False)
        save(peft.get_peft_model(fresh.model, config), fresh.processor, root / name, "llava")
    return root / "one", root / "two"


def logits(net: Any) -> torch.Tensor:
    with torch.no_grad():
        return net(input_ids=torch.arange(5, 12)[None], attention_mask=torch.ones(1, 7, dtype=torch.long)).logits


def test_an_adapter_beside_another_is_off_until_it_is_wanted(base: Path, pair: tuple[Path, Path]) -> None:
    first, second = (load(str(base), adapter, device="cpu") for adapter in pair)
    before = logits(first.model)
    found = add_adapter(first.model, pair[1], "llava", first.family, "slot")
    assert found.adapted and not found.whole and all(name.endswith("q_proj") for name in found.adapted)
    assert torch.equal(logits(first.model), before) and first.model.active_adapter == "default"
    first.model.set_adapter("slot", inference_mode=True)
    assert torch.equal(logits(first.model), logits(second.model))


def test_one_that_does_not_fit_leaves_no_trace(base: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    first = load(str(base), pair[0], device="cpu")
    before, names = logits(first.model), set(first.model.state_dict())
    for number, change in enumerate((lambda w: w[:, :-1].contiguous(), None)):
        broken = tmp_path / f"broken{number}"
        shutil.copytree(pair[1], broken)
        weights = load_file(broken / "adapter_model.safetensors")
        key = min(weights)
        if change is None:
            del weights[key]
        else:
            weights[key] = change(weights[key])
        save_file(weights, broken / "adapter_model.safetensors")
        with pytest.raises(ConfigError, match="made for another base|lacks 1 of the weights") as caught:
            add_adapter(first.model, broken, "llava", first.family, "slot")
        assert "\n" not in str(caught.value)
        assert set(first.model.state_dict()) == names and list(first.model.peft_config) == ["default"]
        assert torch.equal(logits(first.model), before)
    add_adapter(first.model, pair[1], "llava", first.family, "slot")


@pytest.mark.parametrize("given", [None, "auto", "sequential", '{"": "cpu"}', {"model": "cpu", "lm_head": "cpu"}])
def test_maps_that_can_be(given: Any) -> None:
    found = spread(given, None)
    assert found == (json.loads(given) if isinstance(given, str) and given.startswith("{") else given)


@pytest.mark.parametrize("given", ["", "gpu", "[1]", "{", "0", {}, {"": None}, {"": 1.5}, {"": "disk"}, {"": "cpu:x"}])
def test_maps_that_cannot_be(given: Any) -> None:
    with pytest.raises(ConfigError, match="device_map") as caught:
        spread(given, None)
    assert "\n" not in str(caught.value)
