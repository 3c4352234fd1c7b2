"""What cannot work is said in one line, before training starts, with exit status 2."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import tiny_models
import torch
import transformers
from click.testing import CliRunner

from vlmtrain import job, merge, model, sft
from vlmtrain.cli import main
from vlmtrain.sft import train

Prepare = Callable[[Path, Path], list[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(4))


def _text_model(base: Path, tmp_path: Path) -> list[str]:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=8, **size)).save_pretrained(tmp_path / "text")
    return ["--model", str(tmp_path / "text")]


def _unknown_eyes(base: Path, tmp_path: Path) -> list[str]:
    shutil.copytree(base, tmp_path / "eyes")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "eyes" / "config.json").write_text(json.dumps({**config, "model_type": "vipllava"}))
    return ["--model", str(tmp_path / "eyes")]


def _blind_processor(base: Path, tmp_path: Path) -> list[str]:
    shutil.copytree(base, tmp_path / "blind")
    (tmp_path / "blind" / "processor_config.json").unlink()
    return ["--model", str(tmp_path / "blind")]


def _no_config(base: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "empty").mkdir()
    return ["--model", str(tmp_path / "empty")]


def _whole_model(base: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(base), "--adapter", str(base)]


def _other_base(base: Path, tmp_path: Path) -> list[str]:
    other = tiny_models.make("llava", tmp_path / "other", seed=9)
    data = rows.write(tmp_path / "rows", rows.colours(4))
    run = train(data, tmp_path / "tuned", model=str(other), tuner="loha", max_steps=1, progress=False).out
    return ["--model", str(base), "--adapter", str(run)]


def _classifier(base: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(tiny_models.make("vit", tmp_path / "vit"))]


def plain(*words: str) -> Prepare:
    return lambda base, tmp_path: ["--model", str(base), *words]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_text_model, "text is not a vision-language model: its model_type is 'llama'; families: "),
        (
            _unknown_eyes,
            "eyes is a vision-language model of an unknown family: its model_type is 'vipllava'; families:",
        ),
        (_blind_processor, "blind"),
        (_no_config, "empty is not a model folder: it has no config.json"),
        (_whole_model, "llava is a whole model, not an adapter: give it as --model"),
        (_other_base, "tuned was trained on other, not on "),
        (_classifier, "vit is an image classifier (vit): train it with vlmtrain classify"),
        (plain("--set", "target_modules=query"), "no module named 'query'; linear layers: "),
        (plain("--set", "modules_to_save=score"), "no module named 'score'; linear layers: "),
        (plain("--set", "target_modules=lm_head"), "lm_head is the LM head, which takes no LoRA; use modules_to_save"),
        (plain("--parts", "eyes"), "parts is 'eyes', expected PART[,PART]:KIND[,KIND]"),
        (plain("--parts", "projector:attention"), "the projector of this model has no attention layers; it has: mlp"),
        (plain("--set", "tuner=lora2"), "tuner is 'lora2'; valid: lora, dora, loha, lokr, adalora, full"),
        (plain("--set", "tuner=full", "--lora-r", "4"), "tuner full has no lora_r; parts says what is trained"),
        (plain("--dtype", "int4"), "dtype is 'int4'; valid: auto, float32, bfloat16, float16"),
        (plain("--quantize", "3bit"), "quantize is '3bit'; valid: none, 8bit, 4bit"),
        (plain("--push-to-hub", "plates"), "push_to_hub is 'plates', expected ORG/NAME"),
    ],
)
def test_one_line_before_training(prepare: Prepare, message: str, base: Path, data: Path, tmp_path: Path) -> None:
    words = ["sft", "--data", str(data), "--out", str(tmp_path / "run"), *prepare(base, tmp_path)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2, done.output
    (line,) = done.output.strip().splitlines()
    assert line.startswith("vlmtrain: ") and message in line
    assert not (tmp_path / "run").exists()


def test_a_part_the_family_does_not_have(tmp_path: Path) -> None:
    from vlmtrain import family

    vit = family.load("vit")
    with pytest.raises(ValueError, match="no part named 'language' in this model; valid: vision"):
        vit.target_regex(("language",), ("attention",))


def test_no_chat_template_is_no_error(model_folder: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    """The family has one, and the run keeps it."""
    bare = tiny_models.make("llava", tmp_path / "bare", chat_template=False)
    run = train(data, tmp_path / "run", model=str(bare), max_steps=1, progress=False).out
    assert "ASSISTANT" in (run / "chat_template.jinja").read_text()


def test_bfloat16_on_a_device_without_it(base: Path, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *index: "Tesla T4")
    with pytest.raises(ValueError, match="Tesla T4 has no bfloat16: use --dtype float16 or float32"):
        model.load(str(base), dtype="bfloat16", device="cuda")


def test_eight_bit_steps_without_bitsandbytes(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for on the command line: refused. From a recipe: the plain optimizer, and that is said."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    words = ["sft", "--data", str(data), "--model", str(base), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    done = CliRunner().invoke(main, [*words, "--set", "optimizer=adamw_8bit"])
    assert done.exit_code == 2 and "optimizer adamw_8bit needs bitsandbytes, which is not installed" in done.output
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: sft\noptimizer: adamw_8bit\n")
    done = CliRunner().invoke(main, [*words, "--recipe", str(recipe)])
    assert done.exit_code == 0, done.output
    assert "optimizer adamw_8bit needs bitsandbytes, which is not installed: adamw instead" in done.output
    about = json.loads((tmp_path / "run" / "vlmtrain.json").read_text())
    assert about["config"]["optimizer"] == "adamw"


def test_these_are_checked_first(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that cannot be is found without data and without a model."""

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("was called")

    monkeypatch.setattr(job, "open_data", never)
    monkeypatch.setattr(sft, "make_trainer", never)
    for words in (["--set", "tuner=loha", "--set", "bias=all"], ["--set", "init=loftq"]):
        done = CliRunner().invoke(main, ["sft", "--data", "nothing", "--model", "a/b", "--out", str(tmp_path), *words])
        assert done.exit_code == 2 and done.output.count("\n") == 1, done.output
    with pytest.raises(ValueError, match="no dtype"):
        merge.merge(tmp_path, tmp_path / "out", dtype="half")
