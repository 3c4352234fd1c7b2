"""The command line: what users type, and what they get told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import colour_rows as rows
import pytest
from click.testing import CliRunner, Result

from vlmtrain.cli import main
from vlmtrain.config import keys
from vlmtrain.keys import METHODS
from vlmtrain.recipe import recipe_names


def vlmtrain(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="vlmtrain", catch_exceptions=False)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(16))


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "pairs", rows.pairs(8))


def test_sft_dpo_merge(base: Path, colours: Path, preferences: Path, tmp_path: Path) -> None:
    sft, dpo, merged = tmp_path / "sft", tmp_path / "dpo", tmp_path / "merged"
    flags = ["--batch-size", 4, "--learning-rate", "1e-2", "--epochs", 2, "--eval-fraction", 0.25, "--lora-r", 4]
    result = vlmtrain("sft", "--data", colours, "--model", base, "--out", sft, *flags, "--set", "warmup=0.1")
    assert result.exit_code == 0, result.output
    assert "model  llava (llava, cpu, float32)" in result.stderr
    assert "step 1/" in result.stderr and "tok/s" in result.stderr and "ETA" in result.stderr
    assert all(len(line) <= 100 for line in result.stderr.splitlines())
    assert result.stdout.startswith(f"{sft}: ") and "eval loss" in result.stdout
    config = json.loads((sft / "vlmtrain.json").read_text())["config"]
    assert (config["warmup"], config["lora_r"], config["epochs"]) == (0.1, 4, 2.0)
    result = vlmtrain("dpo", "--data", preferences, "--model", base, "--adapter", sft, "--out", dpo, "--max-steps", 2)
    assert result.exit_code == 0, result.output
    assert "acc " in result.stderr and "margin " in result.stderr
    result = vlmtrain("merge", dpo, "--model", base, "--out", merged)
    assert result.exit_code == 0 and (merged / "model.safetensors").is_file()
    result = vlmtrain("sft", "--data", colours, "--model", base, "--out", sft, *flags)
    assert result.exit_code == 2
    assert result.stderr == f"vlmtrain: {sft} holds a run: --resume goes on with it, --overwrite replaces it\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "BASE", "--epochs", "0", "--set", "speed=1"], "2 faults: epochs is 0.0, expected at least 0.001"),
        (["--model", "BASE", "--set", "lora_r=4", "--lora-r", "8"], "lora_r is given by its flag and by --set"),
        (["--model", "BASE", "--parts", "eyes:mlp"], "parts is 'eyes:mlp', expected PART[,PART]:KIND[,KIND], parts"),
        (["--model", "BASE", "--parts", "projector:attention"], "the projector of this model has no attention layers"),
        (["--model", "BASE", "--quantize", "3bit"], "quantize is '3bit'; valid: none, 8bit, 4bit"),
        (["--model", "BASE", "--recipe", "fly"], "no recipe 'fly': expected a YAML file or one of "),
        (["--model", "BASE", "--recipe", "tiny-dpo"], "recipe tiny-dpo is for vlmtrain dpo, not sft"),
        (["--model", "BASE", "--max-image-tokens", "2"], "an image always takes 4 tokens here; --max-image-tokens 2"),
        (["--model", "no/where/at/all"], "no model 'no/where/at/all': expected vlmtrain:tiny, a model folder or"),
        (["--adapter", "nowhere"], "no adapter folder nowhere"),
        ([], "no model given: expected --model vlmtrain:tiny, a model folder or a hub id, or --adapter"),
        (["--model", "BASE", "--set", "max_length=8"], "no row of 16 can be trained on: too_long 16; the first: "),
        (["--model", "BASE", "--set", "target_modules=query"], "target_modules: no module named 'query'; linear"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, base: Path, colours: Path, tmp_path: Path) -> None:
    arguments = [str(base) if word == "BASE" else word for word in arguments]
    result = vlmtrain("sft", "--data", colours, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"vlmtrain: {message}"), result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists(), "nothing is written for a run that cannot be"


def test_wrong_kind_of_data(base: Path, preferences: Path, tmp_path: Path) -> None:
    result = vlmtrain("sft", "--data", preferences, "--model", base, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "holds preference rows, expected messages: train on it with vlmtrain dpo" in result.stderr


def test_recipes_are_listed_and_shown() -> None:
    listed = vlmtrain("recipes").stdout.splitlines()
    assert [line.split()[0] for line in listed if not line.startswith(" ")] == recipe_names()
    assert vlmtrain("recipes", "show", "tiny-sft", "--yaml").stdout.startswith("method: sft\n")
    assert vlmtrain("recipes", "show", "fly").exit_code == 2
    assert vlmtrain("recipes", "show").exit_code == 2


def test_keys_of_every_method_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for method in METHODS:
        shown = vlmtrain("keys", method).stdout
        assert not [key for key in keys(method) if not re.search(rf"^{key} ", shown, re.MULTILINE)]
        assert max(map(len, shown.splitlines())) <= 80
    assert vlmtrain("keys", "fly").exit_code == 2
