"""An adapter on the last blocks alone: which layers these are, in every family; trained, loaded, taken up again."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import colour_rows as rows
import labelled_rows
import peft
import pytest
import torch
from run_files import weights
from torch import nn
from tuned import begun, logits, plain

from vlmdata.errors import ConfigError
from vlmtrain import dpo, sft
from vlmtrain import family as families
from vlmtrain.family import KINDS, Family
from vlmtrain.last_blocks import blocks_of, only_last
from vlmtrain.merge import merge
from vlmtrain.model import load
from vlmtrain.parts import matched

QUICK: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "lora_r": 4, "progress": False, "max_steps": 2}
TEXT = [(name, None) for name in families.names() if families.load(name).task == "text"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(8))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "pairs", rows.pairs(8))


@pytest.mark.parametrize(("name", "kind"), [*TEXT, *labelled_rows.kinds()])
def test_every_family_has_blocks(name: str, kind: str | None) -> None:
    """All its vision and language layers stand in one; the last one's are chosen."""
    family = families.load(name)
    model, _ = importlib.import_module(f"tiny_models.{name}").make(**({"kind": kind} if kind else {}))
    modules = dict(model.named_modules())
    parts = tuple(part for part in family.targets if part != "projector")
    regex = family.target_regex(parts, KINDS)
    layers, blocks = matched(regex, list(modules)), blocks_of(family, modules)
    assert set(blocks) == set(parts) and all(len(row) > 1 for row in blocks.values())
    for part in parts:
        mine = matched(family.target_regex((part,), KINDS), list(modules))
        assert mine and all(any(one.startswith(f"{block}.") for block in blocks[part]) for one in mine)
    last = tuple(f"{row[-1]}." for row in blocks.values())
    chosen = matched(only_last(regex, 1, family, modules), list(modules))
    assert chosen == [one for one in layers if one.startswith(last)] and 0 < len(chosen) < len(layers)
    one = family.target_regex(parts[-1:], KINDS)
    assert matched(only_last(one, len(blocks[parts[-1]]), family, modules), layers) == matched(one, layers)
    with pytest.raises(
        ConfigError, match=rf"lora_last_layers is 99, expected at most \d+, the blocks of the {parts[0]}"
    ):
        only_last(regex, 99, family, modules)
    linear = {one for one, module in modules.items() if isinstance(module, nn.Linear)}
    found = set(matched(only_last("all-linear", 1, family, modules), list(modules)))
    assert found == {one for one in linear if one.startswith(last)}
    if "projector" in family.targets:
        joined = family.target_regex(("projector",), KINDS)
        with pytest.raises(ConfigError, match="counts blocks of vision and language, and .* is in none"):
            only_last(joined, 1, family, modules)


class Tower(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)}) for _ in range(depth))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eyes, self.text, self.q = Tower(3), Tower(12), nn.Linear(2, 2)


def toy() -> tuple[Family, dict[str, Any]]:
    targets = {
        "vision": {"attention": r"eyes\.layers\.\d+\.q"},
        "language": {"attention": r"text\.layers\.\d+\.q", "mlp": r"text\.layers\.\d+\.mlp"},
    }
    family = Family("toy", ("toy",), "", "", targets, ("eyes.",), "")
    return family, dict(Model().named_modules())


def test_names_and_expressions_are_the_same_layers() -> None:
    """The last two of towers of different depth; number 1 is not taken for 11, nor the other way round."""
    family, modules = toy()
    by_regex = only_last(family.target_regex(("vision", "language"), ("attention",)), 2, family, modules)
    found = matched(by_regex, list(modules))
    assert found == ["eyes.layers.1.q", "eyes.layers.2.q", "text.layers.10.q", "text.layers.11.q"]
    del modules["q"]
    assert matched(only_last(["q"], 2, family, modules), list(modules)) == found
    mlp = [name for name in modules if re.fullmatch(r"(eyes.layers.[12]|text.layers.1[01])\.mlp", name)]
    assert set(matched(only_last(["q", "mlp"], 2, family, modules), list(modules))) == {*found, *mlp}
    assert set(matched(only_last("all-linear", 2, family, modules), list(modules))) == {*found, *mlp}
    # The tower that nothing is chosen of may be shorter.
    text = matched(only_last(family.target_regex(("language",), ("mlp",)), 12, family, modules), list(modules))
    assert text == [f"text.layers.{number}.mlp" for number in range(12)]


def test_what_stands_in_no_block_is_refused() -> None:
    family, modules = toy()
    with pytest.raises(ConfigError, match="counts blocks of vision and language, and q is in none: leave it out"):
        only_last(["q"], 2, family, modules)
    one = r"text\.layers\.3\.q"
    with pytest.raises(ConfigError, match="lora_last_layers is 2: no layer that was chosen is in the last blocks"):
        only_last(one, 2, family, modules)
    assert matched(only_last(one, 9, family, modules), list(modules)) == ["text.layers.3.q"]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("sft", {}),
        ("dpo", {}),
        ("sft", {"parts": "vision,language:attention", "tuner": "dora"}),
        pytest.param("sft", {"target_modules": "all-linear"}, marks=pytest.mark.slow),
        pytest.param("sft", {"target_modules": ["q_proj", "fc1"], "tuner": "lokr"}, marks=pytest.mark.slow),
    ],
)
def test_text_models_are_trained_in_their_last_blocks(
    method: str, more: dict[str, Any], base: Path, data: Path, pairs: Path, tmp_path: Path
) -> None:
    """What is trained is there again in our loader, in plain peft, and merged."""
    made = {"sft": sft, "dpo": dpo}[method]
    rows_of = data if method == "sft" else pairs
    job = begun(method, rows_of, tmp_path / "run", **{**QUICK, "model": str(base), "lora_last_layers": 1, **more})
    trainer = made.make_trainer(job)
    free = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert free and all(".layers.1." in name for name in free)
    run = made.run(trainer, job).out
    state = weights(run)
    assert state and all(".layers.1." in key for key in state)
    parts = {"vision_tower" if ".vision_tower." in key else "language_model" for key in state}
    assert parts == ({"language_model"} if not more else {"vision_tower", "language_model"})
    ours = load(str(base), run, device="cpu")
    expected = logits(ours.model, ours)
    assert not torch.equal(expected, logits(load(str(base), device="cpu").model, ours))
    theirs = peft.PeftModel.from_pretrained(plain(base), run)
    torch.testing.assert_close(logits(theirs, ours), expected, atol=1e-5, rtol=1e-5)
    whole = plain(merge(run, tmp_path / "merged", model=str(base)))
    torch.testing.assert_close(logits(whole, ours), expected, atol=1e-4, rtol=1e-4)
    assert ", last blocks: 1" in (run / "README.md").read_text()


def test_an_adapter_keeps_its_blocks_when_it_is_trained_further(base: Path, data: Path, tmp_path: Path) -> None:
    given = {**QUICK, "model": str(base)}
    first = sft.train(data, tmp_path / "first", **given, lora_last_layers=1).out
    given.pop("lora_r")
    with pytest.raises(ConfigError, match="lora_last_layers cannot change: the adapter given has its own"):
        sft.train(data, tmp_path / "no", **given, adapter=str(first), lora_last_layers=2)
    second = sft.train(data, tmp_path / "second", **given, adapter=str(first)).out
    assert json.loads((second / "vlmtrain.json").read_text())["config"]["lora_last_layers"] == 1
    before, after = weights(first), weights(second)
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lora_last_layers": 3}, "lora_last_layers is 3, expected at most 2, the blocks of the language"),
        ({"lora_last_layers": 1, "parts": "projector"}, r"counts blocks of .*linear_1 is in none"),
        ({"lora_last_layers": 1, "target_modules": ["linear_2"]}, r"counts blocks of .*linear_2 is in none"),
        ({"lora_last_layers": 1, "tuner": "full"}, "tuner full has no lora_last_layers"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], match: str, base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        sft.train(data, tmp_path / "run", model=str(base), progress=False, **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
