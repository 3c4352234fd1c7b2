from __future__ import annotations

from pathlib import Path

import pytest

from vlmdata.errors import ConfigError, MissingError
from vlmtrain.config import parse_parts, resolve


def test_defaults_are_complete() -> None:
    sft, dpo = resolve("sft", {}), resolve("dpo", {})
    assert sft.preference is None and dpo.preference is not None
    assert sft.training.learning_rate == 2e-4 and dpo.training.learning_rate == 2e-5
    assert "beta" in dpo.to_json() and "beta" not in sft.to_json()
    assert not {"model", "adapter"} & sft.to_json().keys(), "names of models are recorded without their paths"


def test_flag_beats_recipe_beats_default(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: sft\nsummary: mine\nlora_r: 4\nepochs: 3\nlearning_rate: 1e-3\n")
    config = resolve("sft", {"lora_r": 8, "epochs": None}, recipe=str(recipe), sets=["warmup=0.1", "bias=all"])
    assert (config.lora.lora_r, config.training.epochs, config.training.learning_rate) == (8, 3.0, 1e-3)
    assert (config.training.warmup, config.lora.bias, config.recipe) == (0.1, "all", "mine")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("learning_rate=2e-4", "learning_rate", 2e-4),
        ("batch-size=2", "batch_size", 2),
        ("epochs=2", "epochs", 2.0),
        ("gradient_checkpointing=true", "gradient_checkpointing", True),
        ("gradient_checkpointing=null", "gradient_checkpointing", None),
        ("target_modules=[q_proj, v_proj]", "target_modules", ("q_proj", "v_proj")),
        ("target_modules=q_proj,v_proj", "target_modules", ("q_proj", "v_proj")),
        ("target_modules=all-linear", "target_modules", ("all-linear",)),
        ("parts=vision:mlp", "parts", "vision:mlp"),
        ("loss_weights=[2]", "loss_weights", (2.0,)),
    ],
)
def test_values_of_set(text: str, key: str, value: object) -> None:
    config = resolve("dpo", {}, sets=[text])
    found = next(getattr(group, key) for group in config.groups() if hasattr(group, key))
    assert found == value and type(found) is type(value)


def test_parts() -> None:
    assert parse_parts("language") == (("language",), ("attention", "mlp"))
    assert parse_parts("vision, projector:mlp,mlp") == (("vision", "projector"), ("mlp",))
    for wrong in ("", ":mlp", "eyes", "vision:ears", "vision;language"):
        with pytest.raises(ConfigError, match=r"expected PART\[,PART\]:KIND\[,KIND\], parts vision, projector, lang"):
            parse_parts(wrong)


def test_paths_are_texts() -> None:
    assert resolve("sft", {"model": Path("models/a")}).base.model == "models/a"


def test_all_faults_at_once_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        sets = ["lora_r=many", "warmup", "speed=9", "seed=1.5"]
        resolve("sft", {"epochs": -1, "quantize": "2bit", "beta": 0.1}, sets=sets)
    line = str(caught.value)
    assert line.startswith("7 faults: ") and "\n" not in line
    for part in (
        "epochs is -1.0, expected at least 0.001",
        "quantize is '2bit'; valid: none, 8bit, 4bit",
        "lora_r is 'many', expected a whole number",
        "--set 'warmup': expected key=value",
        "unknown key 'speed'; valid: accumulate, adam_beta1",
        "unknown key 'beta'",
        "seed is 1.5, expected a whole number",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["lora_dropout=1"], "expected from 0 to 0.999"),
        (["learning_rate=nan"], "expected at least 0"),
        (["learning_rate=.inf"], "infinite"),
        (["batch_size=true"], "expected a whole number"),
        (["trust_remote_code=maybe"], "expected true or false"),
        (["model=3"], "expected a text"),
        (["on_long=cut"], "valid: shrink, drop, fail"),
        (["loss_type=[sigmoid, magic]"], "loss_type is 'magic'; valid: sigmoid, hinge"),
        (["loss_weights=[1,2]"], "loss_weights has 2 numbers for 1 losses"),
        (["loss_type=[]"], "loss_type is empty; valid: sigmoid"),
        (["loss_type=exo_pair"], "loss_type exo_pair needs label_smoothing above 0"),
        (["epochs=null"], "epochs is None, expected a number"),
        (["batch_size=1e400"], "expected a whole number"),
    ],
)
def test_values_that_cannot_be(sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("dpo", {}, sets=sets)


def test_flag_and_set_may_not_contradict() -> None:
    with pytest.raises(ConfigError, match="lora_r is given by its flag and by --set"):
        resolve("sft", {"lora_r": 8}, sets=["lora_r=4"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "is a list, expected keys and values"),
        ("method: fly\n", "method is 'fly'; valid: classify, dpo, kto, sft"),
        ("method: [\n", "not valid YAML"),
        ("method: dpo\n", "is for vlmtrain dpo, not sft"),
        ("method: sft\nlearning: 1\n", "unknown key 'learning'"),
    ],
)
def test_recipes_that_cannot_be(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        resolve("sft", {}, recipe=str(path))


def test_unknown_recipe_names_the_others() -> None:
    with pytest.raises(MissingError, match="no recipe 'fly': .*tiny-dpo, tiny-sft"):
        resolve("sft", {}, recipe="fly")
