"""Several adapters on one base in memory: the answers of each are those it gives when it is loaded by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image

from vlmdata.errors import ConfigError, MissingError
from vlmeval.models.local import Local, several
from vlmeval.models.questions import folder_names
from vlmeval.task import Item
from vlmtrain import model as loading

OPTIONS: dict[str, Any] = {"batch_size": 4, "max_new_tokens": {"text": 8, "answer": 8}, "device": "cpu"}
ITEMS = [
    Item(place, f"What colour is it{'?' * (1 + place % 3)}", (f"{place % 3}.png",), "", ("all",), "text")
    for place in range(6)
]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for place, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (40, 40), colour).save(folder / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """An adapter folder by its configuration, weights drawn at random."""
    import peft

    root = tmp_path_factory.mktemp("adapters")

    def make(name: str, seed: int = 0, kind: str = "LoraConfig", processor: bool = False, **options: Any) -> Path:
        out = root / name
        if out.is_dir():
            return out
        loaded = loading.load(str(base), device="cpu")
        torch.manual_seed(seed)
        chosen = {"target_modules": ["q_proj", "v_proj"], "r": 4, **options}
        net = peft.get_peft_model(loaded.model, getattr(peft, kind)(**chosen))
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        loading.save(net, loaded.processor, out, "llava")
        if not processor:
            for file in out.iterdir():
                if not file.name.startswith("adapter_"):
                    file.unlink()
        return out

    return make


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The bases that were loaded."""
    seen: list[str] = []
    plain = loading.load_base

    def counting(base: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(base.name)
        return plain(base, *args, **kwargs)

    monkeypatch.setattr(loading, "load_base", counting)
    yield seen


def answers(local: Local) -> dict[Any, Any]:
    return {response.id: response.text for batch in local.answer(ITEMS) for response in batch}


def alone(base: Path, adapter: Path | None, pictures: Path, **options: Any) -> dict[Any, Any]:
    return answers(Local(str(base), adapter, images=pictures, **{**OPTIONS, **options}))


def test_shared_answers_are_those_of_each_alone(base: Path, made: Make, pictures: Path, loads: list[str]) -> None:
    adapters = [
        made("plain"),
        made("wide", 1, r=16, use_rslora=True, processor=True),
        made("dora", 2, use_dora=True, target_modules=["q_proj", "up_proj"]),
        made("saved", 3, modules_to_save=["multi_modal_projector"]),
        made("saved2", 4, modules_to_save=["multi_modal_projector"], target_modules=r".*language_model.*\.k_proj"),
        made("head", 5, modules_to_save=["lm_head"]),
    ]
    loads.clear()
    found = several(str(base), adapters, True, images=pictures, **OPTIONS)
    assert [name for name, _ in found] == ["base", "plain", "wide", "dora", "saved", "saved2", "head"]
    shared = {name: answers(local) for name, local in found}
    again = {name: answers(local) for name, local in reversed(found)}
    assert len(loads) == 1 and shared == again
    assert len({json.dumps(own) for own in shared.values()}) == 7, "every adapter changes the answers"
    for (name, _), adapter in zip(found, [None, *adapters], strict=True):
        assert shared[name] == alone(base, adapter, pictures), name
    described = dict(found)["dora"].describe()
    assert (
        described["adapter_sha256"]
        == Local(str(base), adapters[2], images=None, **OPTIONS).describe()["adapter_sha256"]
    )
    assert dict(found)["base"].describe()["adapter"] is None


def test_taking_turns_question_by_question(base: Path, made: Make, pictures: Path, loads: list[str]) -> None:
    adapters = [made("plain"), made("saved", 3, modules_to_save=["multi_modal_projector"])]
    loads.clear()
    found = several(str(base), adapters, True, images=pictures, **OPTIONS)
    turns = zip(*(local.answer(ITEMS) for _, local in found), strict=True)
    texts: list[dict[Any, Any]] = [{}, {}, {}]
    for batch in turns:
        for place, responses in enumerate(batch):
            texts[place] |= {response.id: response.text for response in responses}
    assert len(loads) == 1
    assert texts == [alone(base, adapter, pictures) for adapter in (None, *adapters)]


def test_those_that_cannot_share_are_loaded_alone(
    base: Path, made: Make, pictures: Path, loads: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "template"
    shutil.copytree(made("wide", 1, r=16, use_rslora=True, processor=True), other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "helper"))
    whole = tmp_path / "whole"
    tiny_models.make("llava", whole, head_gain=20.0, seed=3)
    adapters = [
        made("plain"),
        made("bias", 6, bias="lora_only"),
        made("pissa", 7, init_lora_weights="pissa"),
        made("loha", 8, kind="LoHaConfig"),
        made("within", 9, target_modules=["q_proj", "linear_1"]),
        made("saved", 3, modules_to_save=["multi_modal_projector"]),
        other,
        whole,
    ]
    loads.clear()
    found = several(str(base), adapters, True, images=pictures, **OPTIONS)
    shared = {name: answers(local) for name, local in found}
    # plain shares with the base and within; base, bias, pissa, loha, plain's again, saved, template, whole.
    assert len(loads) == 8
    said = capsys.readouterr().err
    for name, reason in {
        "bias": "it trains biases of the base",
        "pissa": "its first weights came out of the base (pissa)",
        "loha": "a LOHA adapter beside LORA ones",
        "saved": "train the same modules in different ways",
        "template": "another chat template",
        "whole": "a whole model",
    }.items():
        (line,) = [line for line in said.splitlines() if f"/{name} does not share" in line]
        assert reason in line
    assert said.count("does not share") == 6
    for (name, _), adapter in zip(found, [None, *adapters], strict=True):
        assert shared[name] == alone(base, adapter, pictures), name
    assert [local.loaded is None for _, local in found] == [True] * 8 + [False], "one model in memory"


def test_two_of_another_kind_share_too(base: Path, made: Make, pictures: Path, loads: list[str]) -> None:
    adapters = [made("loha", 8, kind="LoHaConfig"), made("loha2", 9, kind="LoHaConfig", r=2)]
    loads.clear()
    found = several(str(base), adapters, True, images=pictures, **OPTIONS)
    shared = [answers(local) for _, local in found]
    assert len(loads) == 1
    assert shared == [alone(base, adapter, pictures) for adapter in (None, *adapters)]


def test_added_tokens_are_seen_before_anything_is_loaded(made: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from vlmtrain.companions import loads_alone

    assert loads_alone(made("plain")) is None
    grown = tmp_path / "grown"
    shutil.copytree(made("plain"), grown)
    weights = load_file(grown / "adapter_model.safetensors")
    weights["base_model.model.model.language_model.embed_tokens.weight"] = torch.zeros(7, 32)
    save_file(weights, grown / "adapter_model.safetensors")
    assert "embed_tokens of its own, as for added tokens" in str(loads_alone(grown))
    rounded = tmp_path / "rounded"
    shutil.copytree(made("plain"), rounded)
    save_file({"x": torch.zeros(1)}, rounded / "loftq.safetensors")
    assert loads_alone(rounded) == "its first weights came out of the base (loftq)"


def test_merged_ones_follow_each_other(base: Path, made: Make, pictures: Path, loads: list[str]) -> None:
    adapters = [made("plain"), made("dora", 2, use_dora=True, target_modules=["q_proj", "up_proj"])]
    loads.clear()
    found = several(str(base), adapters, True, images=pictures, merged=True, **OPTIONS)
    merged = [answers(local) for _, local in found]
    assert len(loads) == 3
    assert merged == [alone(base, adapter, pictures) for adapter in (None, *adapters)]
    assert [local.describe()["merged"] for _, local in found] == [False, True, True]


def test_adapters_of_different_bases_are_refused_before_loading(
    base: Path, made: Make, tmp_path: Path, loads: list[str]
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, name, digest in ((ours, "org/one", "1" * 64), (theirs, "org/two", "2" * 64)):
        shutil.copytree(made("plain"), folder)
        (folder / "vlmtrain.json").write_text(json.dumps({"base": name, "base_hash": digest}))
    with pytest.raises(ConfigError, match=r"theirs was trained on org/two, .*ours on org/one: expected one base"):
        several(None, [ours, theirs], True, images=None, **OPTIONS)
    with pytest.raises(ConfigError, match=r"ours was trained on org/one, the base is llava"):
        several(str(base), [ours], True, images=None, **OPTIONS)
    with pytest.raises(MissingError, match="no adapter folder"):
        several(str(base), [tmp_path / "nothing"], True, images=None, **OPTIONS)
    with pytest.raises(ConfigError, match="given twice"):
        several(str(base), [ours, theirs / ".." / "ours"], False, images=None, **OPTIONS)
    (theirs / "vlmtrain.json").write_text(json.dumps({"base": "org/two", "base_hash": "1" * 64}))
    names = [name for name, _ in several("org/one", [ours, theirs], False, images=None, **OPTIONS)]
    assert names == ["ours", "theirs"] and not loads


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/a/final", "runs/b/final", "runs/c"], ["a-final", "b-final", "c"]),
        (
            ["x/checkpoints/checkpoint-1", "y/checkpoints/checkpoint-1"],
            ["x-checkpoints-checkpoint-1", "y-checkpoints-checkpoint-1"],
        ),
        (["runs/base"], ["runs-base"]),
        (["org/adapter", "other/adapter"], ["org-adapter", "other-adapter"]),
        (["runs/a/"], ["a"]),
    ],
)
def test_folder_names(paths: list[str], names: list[str]) -> None:
    assert folder_names(paths, ("base",)) == names
