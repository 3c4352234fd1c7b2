"""Every recipe from raw data to report, on a tiny random model of its own architecture and the sample world."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_models
from click.testing import CliRunner

from vlmdata.errors import ConfigError, VlmError
from vlmdata.sample.write import write_sample
from vlmdata.shards import open_shards
from vlmtrain.cli import main
from vlmtrain.config import resolve
from vlmtrain.recipe import load_recipe, recipe_names
from vlmtrain.recipe_steps import Places, StepFailed, run_steps, script, steps

# Recipe -> family of its model, raw data in the sample world, options its data needs there.
WORLD: dict[str, tuple[str, str, dict[str, Any]]] = {
    "blip2-football": ("blip2", "football", {}),
    "dpo-llava15": ("llava", "rlaif_v", {"limit": 8}),
    "dpo-paligemma": ("paligemma", "rlaif_v", {"limit": 8}),
    "idefics2-rlaifv-dpo": ("idefics2", "rlaif_v", {"limit": 8}),
    "llama32-vision-geomverse": ("mllama", "the_cauldron", {"config": "shapes", "limit": 10}),
    "qwen2vl-ocr": ("qwen2_vl", "ocr_json/plates.json", {}),
    "vit-food101": ("vit", "food101", {"limit": 30}),
}
# What a random model of 30,000 parameters on a CPU cannot or need not do as the recipe says.
SMALLER = ("max_steps=2", "batch_size=2", "accumulate=2", "gradient_checkpointing=false", "workers=0")
PARTS = {"dpo": "train=rest,validation=2", "classify": "train=rest,validation=6,test=6", "sft": "train=rest,test=2"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "raw"
    write_sample(out, rows=60, test_scenes=2)
    return out


def with_data() -> list[str]:
    return [name for name in recipe_names() if load_recipe(name).data is not None]


def places(name: str, raw: Path, out: Path, model: Path) -> Places:
    recipe, (_, folder, convert) = load_recipe(name), WORLD[name]
    report: dict[str, Any] = {"max-new-tokens": 4, "dtype": "float32"}
    if recipe.report is not None and recipe.report.part is None:
        report |= {"data": str(raw / "amber"), "limit": 12, "max-answer-tokens": 2}
    sets = (*SMALLER, "dtype=float32")
    return Places(out, (str(raw / folder),), str(model), convert, PARTS[recipe.method], sets, report)


def test_every_recipe_with_data_is_in_this_test() -> None:
    assert with_data() == sorted(WORLD)


@pytest.mark.parametrize("name", recipe_names())
def test_every_key_of_a_recipe_is_one(name: str) -> None:
    recipe = load_recipe(name)
    config = resolve(recipe.method, {}, recipe=name)
    assert config.given == set(recipe.values) and not config.asked
    assert recipe.follows and 20 < len(recipe.summary) < 90


@pytest.mark.parametrize("name", sorted(WORLD))
def test_from_raw_data_to_report(name: str, raw: Path, tmp_path: Path) -> None:
    recipe, out = load_recipe(name), tmp_path / "work"
    model = tiny_models.make(WORLD[name][0], tmp_path / "base", **({"width": 64} if "blip2" in name else {}))
    found = steps(recipe, places(name, raw, out, model))
    for step in found:
        program, *arguments = step.command
        command = importlib.import_module(f"{program}.cli").main
        result = CliRunner().invoke(command, arguments, prog_name=program, catch_exceptions=False)
        assert result.exit_code == 0, (shlex.join(step.command), result.output)
        assert step.done.is_file()
    about = json.loads((out / "run" / "vlmtrain.json").read_text())
    assert about["family"] == WORLD[name][0] and about["config"]["recipe"] == name
    assert json.loads((out / "run" / "metrics.json").read_text())["steps"] == 2
    assert str(tmp_path) not in (out / "run" / "vlmtrain.json").read_text()
    report = json.loads((out / "tuned" / "report.json").read_text())
    assert report["coverage"]["answered"] == report["coverage"]["expected"] or report["coverage"]["answered"] == 12
    assert recipe.data is not None and recipe.report is not None
    assert not ids_of(out / "data" / "train") & ids_of(out / "data" / (recipe.data.evaluate or recipe.report.part))


def ids_of(folder: Path) -> set[str]:
    tables = [pq.read_table(file, columns=["id"]) for file in open_shards(folder).files]
    return {name for table in tables for name in table["id"].to_pylist()}


def test_show_prints_commands_that_parse_and_the_yaml() -> None:
    for name in with_data():
        result = CliRunner().invoke(main, ["recipes", "show", name])
        assert result.exit_code == 0, result.output
        lines = [line for line in result.output.splitlines() if line.startswith("vlm")]
        assert [shlex.split(line)[1] for line in lines][:2] == ["convert", "split"]
        for line in lines:
            program, *arguments = shlex.split(line)
            command = importlib.import_module(f"{program}.cli").main
            sub = command.get_command(None, arguments[0])
            sub.make_context(arguments[0], arguments[1:], resilient_parsing=False)
        assert "method: " + load_recipe(name).method in result.output


def test_the_list_has_a_line_and_the_reference_of_each() -> None:
    result = CliRunner().invoke(main, ["recipes"])
    for name in recipe_names():
        assert name in result.output
    assert "Unsloth" in result.output and max(map(len, result.output.splitlines())) <= 80


def test_run_stops_where_a_step_fails_and_resume_goes_on(raw: Path, tmp_path: Path) -> None:
    """Real processes, as the command starts them."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "method: sft\nmodel: vlmtrain:tiny\nbatch_size: 4\nmax_steps: 1\n"
        "data: {source: football, parts: 'train=rest,test=2'}\nreport: {task: caption, part: test, base: false}\n"
    )
    out = tmp_path / "work"
    given = {"report": {"max-new-tokens": 4}}
    broken = Places(out, (str(raw / "football"),), sets=("target_modules=nowhere",), **given)
    with pytest.raises(StepFailed, match="vlmtrain sft failed with exit status 2"):
        run_steps(steps(load_recipe(str(mine)), broken), out)
    assert not (out / "run").exists()
    good = steps(load_recipe(str(mine)), Places(out, (str(raw / "football"),), **given))
    with pytest.raises(ConfigError, match="is not empty: --resume goes on with it"):
        run_steps(good, out)
    said: list[str] = []
    run_steps(good, out, resume=True, say=said.append)
    assert [line.split()[2] for line in said] == ["convert", "sft", "caption"], "the split was complete"
    assert all(step.done.is_file() for step in good)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: sft\ndata: 3\n", "data is a int, expected keys: .*source"),
        ("method: sft\ndata: {options: {}}\n", "data needs a source, got None"),
        ("method: sft\ndata: {source: pairs, shuffle: 1}\n", "data has no key 'shuffle'; valid: .*source"),
        ("method: sft\ndata: {source: pairs, options: 1}\n", "data.options is 1, expected flags and values"),
        ("method: sft\nmerge: 3\n", "merge is 3, expected options"),
        ("method: sft\nreport: {task: 7}\n", "report needs a task, got 7"),
    ],
)
def test_blocks_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(VlmError, match=message):
        load_recipe(str(path))


def test_recipes_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora_r is 'x', expected a whole number"):
        steps(load_recipe("qwen2vl-ocr"), Places(tmp_path, sets=("lora_r=x",)))
    with pytest.raises(ConfigError, match="tiny-sft has no data block"):
        steps(load_recipe("tiny-sft"), Places(tmp_path))
    with pytest.raises(ConfigError, match="is scored by amber: give its data as --report data=FOLDER"):
        steps(load_recipe("dpo-llava15"), Places(tmp_path))
    result = CliRunner().invoke(main, ["recipes", "run", "qwen2vl-ocr", "--out", str(tmp_path), "--convert", "limit"])
    assert result.exit_code == 2 and "expected FLAG=VALUE" in result.output


def test_dry_run_prints_what_would_run(tmp_path: Path) -> None:
    arguments = ["recipes", "run", "qwen2vl-ocr", "plates.json", "--out", str(tmp_path / "w"), "--dry-run"]
    result = CliRunner().invoke(main, [*arguments, "--convert", "limit=5", "--set", "epochs=1"])
    same = Places(tmp_path / "w", ("plates.json",), convert={"limit": 5}, sets=("epochs=1",))
    assert result.output == script(steps(load_recipe("qwen2vl-ocr"), same))
    assert "--limit 5" in result.output and "--set epochs=1" in result.output
