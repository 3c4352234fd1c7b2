"""Adapters of other makes and other times: every weight finds its place, or it is said which does not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import huggingface_hub
import peft
import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from vlmdata.errors import ConfigError, MissingError
from vlmtrain.collate import Collator
from vlmtrain.legacy import module_of
from vlmtrain.model import load

WEIGHTS = "adapter_model.safetensors"
LAYERS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
KINDS: dict[str, Callable[..., Any]] = {
    "lora": lambda **more: peft.LoraConfig(r=4, **more),
    "dora": lambda **more: peft.LoraConfig(r=4, use_dora=True, **more),
    "patterns": lambda **more: peft.LoraConfig(
        r=4, rank_pattern={"q_proj": 2}, alpha_pattern={"layers.0.self_attn.v_proj": 32}, **more
    ),
    "loha": lambda **more: peft.LoHaConfig(r=4, **more),
    "lokr": lambda **more: peft.LoKrConfig(r=4, **more),
    "adalora": lambda **more: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **more),
}


def logits(model: Any, loaded: Any) -> torch.Tensor:
    batch = Collator(loaded.processor, loaded.family)(rows.colours(2))
    with torch.no_grad():
        return model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits


def made(base: Path, out: Path, config: Any, auto: str = "AutoModelForImageTextToText") -> Path:
    """An adapter with random weights, as plain peft saves it."""
    torch.manual_seed(1)
    net = peft.get_peft_model(getattr(transformers, auto).from_pretrained(base), config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    net.save_pretrained(out)
    return out


def aged(adapter: Path, out: Path, renames: list[tuple[str, str]], targets: Any) -> Path:
    """The adapter as an older transformers would have named it."""
    shutil.copytree(adapter, out)
    weights = {}
    for key, value in load_file(adapter / "adapter_model.safetensors").items():
        bare = key.removeprefix("base_model.model.")
        for pattern, old in renames:
            bare = re.sub(pattern, old, bare)
        weights[f"base_model.model.{bare}"] = value
    save_file(weights, out / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    if config["peft_type"] == "ADALORA" and config["rank_pattern"]:
        raise AssertionError("not made here")
    (out / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
    return out


_LLAVA = [
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.multi_modal_projector", "multi_modal_projector"),
]
_TOWER = (r"^model\.vision_tower\.", "vision_tower.vision_model.")
_QWEN = [(r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")]
# Family -> today's names to those that checkpoints and adapters of 2024 and early 2025 have.
THEN: dict[str, list[tuple[str, str]]] = {
    "llava": [*_LLAVA, _TOWER],
    "llava_next": [*_LLAVA, _TOWER],
    "paligemma": [*_LLAVA, _TOWER],
    "gemma3": [*_LLAVA, _TOWER],
    "pixtral": [*_LLAVA, (r"^model\.vision_tower\.", "vision_tower.")],
    "mllama": [*_LLAVA, (r"^model\.vision_model\.", "vision_model.")],
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
}
SAVED = {"qwen2_vl": "merger.mlp.0", "qwen2_5_vl": "merger.mlp.0", "paligemma": "linear", "mllama": "lm_head"}
SAVED |= {"gemma3": "lm_head"}


@pytest.mark.parametrize(
    ("family", "kind"), [*((name, "lora") for name in THEN), *(("llava", kind) for kind in KINDS if kind != "lora")]
)
def test_an_adapter_with_the_names_of_2024(
    family: str, kind: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Renamed and applied: what it was made to say."""
    base = model_folder(family)
    config = KINDS[kind](target_modules=LAYERS, modules_to_save=[SAVED.get(family, "linear_1")])
    today = made(base, tmp_path / "today", config)
    old = aged(today, tmp_path / "old", THEN[family], LAYERS)
    keys = load_file(old / WEIGHTS).keys()
    assert not any(key.startswith("base_model.model.model.language_model") for key in keys)
    found, wanted = (load(str(base), adapter, device="cpu") for adapter in (old, today))
    bare = load(str(base), device="cpu")
    assert float((logits(wanted.model, wanted) - logits(bare.model, bare)).abs().max()) > 1e-3
    torch.testing.assert_close(logits(found.model, found), logits(wanted.model, wanted), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "regex"),
    [
        ("idefics2", ".*(text_model|modality_projection|perceiver_resampler).*(down|gate|up|k|q|v|o)_proj$"),
        ("blip2", r".*(language_model|qformer).*\.(q_proj|k_proj|query|key)$"),
        ("llava", r".*(language_model\.model|vision_tower\.vision_model).*\.(q_proj|v_proj)"),
    ],
)
def test_names_that_are_the_same_and_those_between(
    family: str, regex: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Idefics2 and BLIP-2 kept their names; in 2025 only the tower of LLaVA still had an old one."""
    targets = regex.replace(r"language_model\.model", "language_model").replace(r"\.vision_model", "")
    today = made(model_folder(family), tmp_path / "today", peft.LoraConfig(r=4, target_modules=targets))
    between = [(r"^model\.vision_tower\.", "model.vision_tower.vision_model.")]
    old = aged(
        today, tmp_path / "old", between, regex if family != "llava" else regex.replace(r"_model\.model", "_model")
    )
    found, wanted = (load(str(model_folder(family)), adapter, device="cpu") for adapter in (old, today))
    assert torch.equal(logits(found.model, found), logits(wanted.model, wanted))


def test_targets_given_as_a_regular_expression_then(bases: dict[str, Path], tmp_path: Path) -> None:
    regex = r".*(language_model|vision_tower).*\.(q_proj|v_proj)"
    today = made(bases["llava"], tmp_path / "today", peft.LoraConfig(r=4, target_modules=regex))
    old = aged(today, tmp_path / "old", THEN["llava"], r"(language_model\.model|vision_tower\.vision_model).*_proj$")
    found, wanted = (load(str(bases["llava"]), adapter, device="cpu") for adapter in (old, today))
    assert torch.equal(logits(found.model, found), logits(wanted.model, wanted))


def test_an_image_classifier_of_2024(tmp_path: Path) -> None:
    """The adapter peft's guide makes: query and value, and the classifier in full."""
    base = tiny_models.make("vit", tmp_path / "vit")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    today = made(base, tmp_path / "today", config, "AutoModelForImageClassification")
    then = [
        (r"^vit\.layers\.(\d+)\.attention\.(q)_proj", r"vit.encoder.layer.\1.attention.attention.query"),
        (r"^vit\.layers\.(\d+)\.attention\.(v)_proj", r"vit.encoder.layer.\1.attention.attention.value"),
    ]
    old = aged(today, tmp_path / "old", then, ["query", "value"])
    assert any("encoder.layer.0.attention.attention.query.lora_A" in k for k in load_file(old / WEIGHTS))
    pixels = torch.rand(2, 3, *_size(base))
    found = []
    for adapter in (old, today):
        model = load(str(base), adapter, device="cpu").model
        with torch.no_grad():
            found.append(model.eval()(pixel_values=pixels).logits)
    assert torch.equal(*found)


def _size(base: Path) -> tuple[int, int]:
    size = json.loads((base / "config.json").read_text())["image_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def test_a_pickled_adapter_and_one_trained_further(base: Path, tmp_path: Path) -> None:
    adapter = made(base, tmp_path / "made", peft.LoraConfig(r=4, target_modules=LAYERS))
    pickled = tmp_path / "pickled"
    shutil.copytree(adapter, pickled)
    torch.save(load_file(pickled / WEIGHTS), pickled / "adapter_model.bin")
    (pickled / WEIGHTS).unlink()
    found, wanted = (load(str(base), folder, device="cpu") for folder in (pickled, adapter))
    assert torch.equal(logits(found.model, found), logits(wanted.model, wanted))
    assert not any(p.requires_grad for p in found.model.parameters())
    again = load(str(base), pickled, device="cpu", trainable=True).model
    assert {n.split(".")[-3] for n, p in again.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_left_over_and_none_is_missing(kind: str, base: Path, tmp_path: Path) -> None:
    config = KINDS[kind](target_modules=LAYERS, modules_to_save=["linear_1"])
    adapter = made(base, tmp_path / "made", config)
    load(str(base), adapter, device="cpu")
    weights = load_file(adapter / WEIGHTS)
    for name, changed, message in _changes(weights):
        folder = tmp_path / name
        shutil.copytree(adapter, folder)
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(ConfigError, match=message):
            load(str(base), folder, device="cpu")


# Weights that do not stand in the module they belong to, as plain peft saves them.
APART: dict[str, Callable[[], Any]] = {
    "new words": lambda: peft.LoraConfig(
        r=4, target_modules=LAYERS, trainable_token_indices={"embed_tokens": [1, 5, 30]}
    ),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "shared": lambda: peft.VeraConfig(r=4, target_modules=r".*language_model.*q_proj"),
}


@pytest.mark.parametrize("kind", APART)
def test_weights_outside_their_modules_find_their_places(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = made(base, tmp_path / "made", APART[kind]())
    found = load(str(base), adapter, device="cpu")
    net = transformers.AutoModelForImageTextToText.from_pretrained(base)
    wanted = logits(peft.PeftModel.from_pretrained(net, adapter), found)
    assert torch.equal(logits(found.model, found), wanted)
    assert not torch.equal(logits(load(str(base), device="cpu").model, found), wanted)
    weights = load_file(adapter / WEIGHTS)
    weights.pop(next(key for key in weights if not key.endswith(("lora_A.weight", "lora_B.weight"))))
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(ConfigError, match="lacks 1 of the weights"):
        load(str(base), adapter, device="cpu")


def _changes(weights: dict[str, torch.Tensor]) -> list[tuple[str, dict[str, torch.Tensor], str]]:
    key = next(k for k in weights if "v_proj" in k)
    saved = next(k for k in weights if "linear_1.weight" in k)
    module = re.escape(module_of(key))
    strange = key.replace("v_proj", "w_proj")
    other = key.replace("v_proj", "o_proj")
    return [
        ("elsewhere", {**weights, strange: weights[key].clone()}, "another base than .*w_proj: no such module"),
        ("more", {**weights, other: weights[key].clone()}, "another base than .*o_proj.*: nothing takes it"),
        ("less", {k: v for k, v in weights.items() if k != key}, rf"lacks 1 of the weights .*{module}"),
        ("unsaved", {k: v for k, v in weights.items() if k != saved}, "lacks 1 of the weights .*linear_1.weight"),
        ("size", {**weights, key: torch.zeros(3, 5)}, f"another base than .*{module}"),
    ]


def test_other_kinds_and_broken_folders(base: Path, tmp_path: Path) -> None:
    adapter = made(base, tmp_path / "made", peft.LoraConfig(r=4, target_modules=LAYERS))
    config = json.loads((adapter / "adapter_config.json").read_text())
    prompt = tmp_path / "prompt"
    shutil.copytree(adapter, prompt)
    made_of = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": None}
    (prompt / "adapter_config.json").write_text(json.dumps(made_of))
    with pytest.raises(ConfigError, match="prompt is a .*PROMPT_TUNING adapter; expected one of weights"):
        load(str(base), prompt, device="cpu")
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    (other / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["nothing"]}))
    with pytest.raises(ConfigError, match="was made for another base than .*: Target modules .*nothing.* not found"):
        load(str(base), other, device="cpu")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(MissingError, match="made has no adapter_model.safetensors"):
        load(str(base), adapter, device="cpu")


def test_the_base_an_adapter_names_is_taken(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain adapter of the hub says what it belongs on."""
    adapter = made(base, tmp_path / "made", peft.LoraConfig(r=4, target_modules=LAYERS))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "some/base"}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="model 'some/base' cannot be loaded"):
        load(None, adapter)
