"""Supervised fine-tuning end to end on real TRL trainers, tiny random models, real Parquet."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from PIL import Image
from run_files import logged, same, weights

from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmdata.manifest import Manifest
from vlmtrain.collate import Collator, prompt_batch
from vlmtrain.merge import merge
from vlmtrain.model import load
from vlmtrain.runs import RunResult
from vlmtrain.sft import make_trainer, train
from vlmtrain.training import begin
from vlmtrain.trl_seam import compact_lm_head

QUICK: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-2, "progress": False, "seed": 1}
TEXT = rows.sample("text", [rows.user("Say yes."), rows.assistant("Yes.")], [])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", [*rows.colours(40), TEXT], files=2)


@pytest.fixture(scope="module", params=["llava", "qwen2_vl", "idefics3"])
def trained(
    request: pytest.FixtureRequest, bases: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult]:
    base = bases[request.param]
    out = tmp_path_factory.mktemp("runs") / "run"
    parts = "vision,projector,language:attention,mlp"
    return base, train(data, out, model=str(base), epochs=12, parts=parts, eval_fraction=0.2, **QUICK)


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def test_the_loss_falls(trained: tuple[Path, RunResult]) -> None:
    losses = [entry["loss"] for entry in logged(trained[1].out) if "loss" in entry]
    assert losses[0] > 4
    assert losses[-1] < 0.4 * losses[0]


def test_every_part_has_moved(trained: tuple[Path, RunResult]) -> None:
    moved = {key for key, value in weights(trained[1].out).items() if "lora_B" in key and value.abs().max() > 0}
    family = load(str(trained[0]), device="cpu").family
    in_tower = {key for key in moved if key.removeprefix("base_model.model.").startswith(family.towers)}
    assert in_tower and moved - in_tower


def test_adapter_reloads_and_merges_to_the_same_model(trained: tuple[Path, RunResult], tmp_path: Path) -> None:
    """In plain peft and plain transformers too; merged logits differ by less than 1e-4 of what training changed."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base, result = trained
    ours = load(str(base), result.out, device="cpu")
    batch = Collator(ours.processor, ours.family)(rows.colours(3))
    expected = logits(ours.model, batch)
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), result.out).eval()
    assert torch.equal(logits(plain, batch), expected)
    folder = merge(result.out, tmp_path / "merged", model=str(base))
    merged = AutoModelForImageTextToText.from_pretrained(folder).eval()
    changed = (expected - logits(load(str(base), device="cpu").model, batch)).abs().max()
    difference = (logits(merged, batch) - expected).abs().max()
    assert changed > 1
    assert difference < 1e-4 * changed
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template == ours.processor.chat_template
    assert merged.generation_config.eos_token_id == ours.model.generation_config.eos_token_id
    again = load(str(folder), device="cpu")
    image = Image.open(io.BytesIO(rows.picture("red")))
    ask = prompt_batch(again.processor, again.family, [[rows.user(rows.PLACE, "What colour is it?")]], [[image]])
    assert again.model.generate(**ask, max_new_tokens=3).shape[1] > ask["input_ids"].shape[1]


def test_run_folder(trained: tuple[Path, RunResult]) -> None:
    base, result = trained
    about = json.loads((result.out / "vlmtrain.json").read_text())
    assert about["method"] == "sft"
    assert about["family"] == about["base"] == base.name
    assert about["config"]["learning_rate"] == 0.01 and about["config"]["lora_r"] == 16
    assert about["data"][0]["name"] == "colours" and about["data"][0]["rows"] == 41
    metrics = json.loads((result.out / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["rows"]["read"] == metrics["rows"]["kept"] == 41
    assert metrics["rows"]["held_out"] >= 8
    assert metrics["peak_memory_bytes"] > 1 << 20 and metrics["tokens_per_second"] > 0
    assert metrics["eval"]["eval_loss"] > 0
    entries = logged(result.out)
    assert {"loss", "learning_rate", "tokens_per_second", "step", "epoch"} <= entries[0].keys()
    assert [e["step"] for e in entries if "eval_loss" in e] == sorted({e["step"] for e in entries if "eval_loss" in e})
    assert "supervised fine-tuning" in (result.out / "README.md").read_text()
    assert (result.out / "chat_template.jinja").is_file() and (result.out / "generation_config.json").is_file()


def test_no_file_names_a_path_of_this_machine(trained: tuple[Path, RunResult]) -> None:
    base, result = trained
    needles = [str(result.out.parent).encode(), str(base.parent).encode(), str(Path.home()).encode() + b"/"]
    for path in (p for p in result.out.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert not [needle for needle in needles if needle in content], path.name


def begun(data: Path, base: Path, out: Path, **options: Any) -> Any:
    quick = {key: value for key, value in QUICK.items() if key != "progress"}
    job = begin("sft", data=[data], out=out, progress=False, options={**quick, "model": str(base), **options})
    assert not isinstance(job, RunResult)
    return job


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fast_paths_give_the_plain_loss_and_gradients(
    bases: dict[str, Path], data: Path, tmp_path: Path, checkpointing: bool
) -> None:
    """Shared frozen features and the compact head, alone and together, with and without checkpointing."""
    for name, base in bases.items():
        found = {}
        alone = [(True, False), (False, True)] if name == "llava" else []
        for shared, compact in [(False, False), *alone, (True, True)]:
            out = tmp_path / f"{name}{shared}{compact}"
            options = {"share_features": shared, "compact_head": compact, "gradient_checkpointing": checkpointing}
            trainer = make_trainer(begun(data, base, out, max_steps=2, **options))
            seen: list[bool] = []
            net = trainer.model.get_base_model()
            tower = (module for name, module in net.named_modules() if name.startswith(trainer.family.towers))
            first = next(module for module in tower if not list(module.children()))
            first.register_forward_hook(lambda *_, seen=seen: seen.append(torch.is_grad_enabled()))
            with compact_lm_head(compact):
                trainer.train()
            assert seen and any(seen) is not shared, "a shared tower runs without a graph"
            grown = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
            found[shared, compact] = ([e["loss"] for e in trainer.state.log_history if "loss" in e], grown)
        losses, grown = found[False, False]
        for other_losses, other in found.values():
            assert other_losses == pytest.approx(losses, rel=1e-5)
            for key, value in grown.items():
                torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-5)


def test_a_run_goes_the_same_way_twice(base: Path, data: Path, tmp_path: Path) -> None:
    options = {**QUICK, "model": str(base), "epochs": 2, "lora_dropout": 0.1}
    for name, more in (("a", {}), ("b", {"workers": 1}), ("c", {"seed": 2})):
        train(data, tmp_path / name, **{**options, **more})
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_output_is_never_replaced_unasked(base: Path, data: Path, tmp_path: Path) -> None:
    options = {**QUICK, "model": str(base), "max_steps": 1}
    run = tmp_path / "run"
    train(data, run, **options)
    with pytest.raises(OutputExistsError, match="holds a run: --resume goes on with it, --overwrite replaces it"):
        train(data, run, **options)
    (run / "mark").write_text("")
    assert train(data, run, resume=True, **options).metrics["steps"] == 1, "a finished run is given back"
    with pytest.raises(ConfigError, match="learning_rate was 0.01, is 0.5"):
        train(data, run, resume=True, **{**options, "learning_rate": 0.5})
    assert (run / "mark").exists()
    train(data, run, overwrite=True, **options)
    assert not (run / "mark").exists()
    with pytest.raises(ConfigError, match="exclude each other"):
        train(data, run, overwrite=True, resume=True, **options)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="not a run folder"):
        train(data, other, overwrite=True, **options)


def test_training_goes_on_from_an_adapter(base: Path, data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "a", model=str(base), max_steps=4, lora_r=4, **QUICK)
    train(data, tmp_path / "b", model=str(base), adapter=str(tmp_path / "a"), max_steps=4, **QUICK)
    first, second = ([e["loss"] for e in logged(tmp_path / n) if "loss" in e] for n in "ab")
    assert second[0] < first[0]
    assert not same(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["r"] == 4
    about = json.loads((tmp_path / "b" / "vlmtrain.json").read_text())
    assert about["adapter"]["name"] == "a"
    assert about["config"]["lora_r"] == 4, "what is recorded is what the adapter has"
    with pytest.raises(ConfigError, match="is the adapter that is to be trained further"):
        train(data, tmp_path / "a", model=str(base), adapter=str(tmp_path / "a"), overwrite=True, **QUICK)
    with pytest.raises(ConfigError, match="lora_r cannot change"):
        train(data, tmp_path / "c", model=str(base), adapter=str(tmp_path / "a"), lora_r=8, **QUICK)


def test_target_modules_bias_and_saved_modules(base: Path, data: Path, tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["linear_1"], "bias": "lora_only"}
    train(data, tmp_path / "run", model=str(base), max_steps=1, rslora=True, **options, **QUICK)
    keys = weights(tmp_path / "run")
    assert all("q_proj" in key or "v_proj" in key or "linear_1" in key for key in keys)
    assert any(key.endswith("multi_modal_projector.linear_1.weight") for key in keys)
    ours = load(str(base), tmp_path / "run", device="cpu")
    assert ours.model.peft_config["default"].use_rslora
    with pytest.raises(ConfigError, match="no module named 'query'; linear layers: .*q_proj"):
        train(data, tmp_path / "no", model=str(base), target_modules="query,value", **QUICK)
    with pytest.raises(ConfigError, match="target_modules: lm_head is the LM head, which takes no LoRA"):
        train(data, tmp_path / "no", model=str(base), target_modules="q_proj,lm_head", **QUICK)
    train(data, tmp_path / "all", model=str(base), max_steps=1, target_modules="all-linear", **QUICK)
    assert not [key for key in weights(tmp_path / "all") if "lm_head" in key]


def test_wrong_data_is_said_before_any_model_is_loaded(tmp_path: Path) -> None:
    pairs = rows.write(tmp_path / "pairs", rows.pairs(2))
    nowhere = {"model": "no/such-model", **QUICK}
    with pytest.raises(DataError, match="holds preference rows, expected messages: train on it with vlmtrain dpo"):
        train(pairs, tmp_path / "run", **nowhere)
    (pairs / "manifest.json").unlink()
    with pytest.raises(DataError, match="no converted dataset: convert it first|never finished"):
        train(pairs, tmp_path / "run", **nowhere)
    with pytest.raises(MissingError, match="no folder"):
        train(tmp_path / "nothing", tmp_path / "run", **nowhere)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_ends_the_run(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) at step \d+: lower --learning-rate"):
        train(data, tmp_path / "run", model=str(base), epochs=20, max_grad_norm=0, **{**QUICK, "learning_rate": 1e18})
    assert not (tmp_path / "run" / "vlmtrain.json").exists()


def test_text_rows_alone(bases: dict[str, Path], tmp_path: Path) -> None:
    made = [rows.sample(str(i), [rows.user("Say yes."), rows.assistant("Yes." + "!" * i)], []) for i in range(9)]
    data = rows.write(tmp_path / "data", made)
    for name, base in bases.items():
        result = train(data, tmp_path / name, model=str(base), epochs=3, **QUICK)
        assert result.metrics["rows"]["image_tokens"] == 0 and result.metrics["steps"] == 6


def test_words_of_all_scripts(bases: dict[str, Path]) -> None:
    said = ["车辆序列号：VIN-7 ✅", "naïve 🙂🙂 façade", "שלום", "a\tb\n\nc"]
    asked = [[rows.user(rows.PLACE, "é?"), rows.assistant(words)] for words in said]
    made = [rows.sample(str(i), messages, [rows.picture("red")]) for i, messages in enumerate(asked)]
    for base in bases.values():
        loaded = load(str(base), device="cpu")
        labels = Collator(loaded.processor, loaded.family)(made)["labels"]
        decoded = [loaded.processor.tokenizer.decode(row[row >= 0]) for row in labels]
        assert decoded == [words + "<|im_end|>" for words in said]


def test_a_broken_image_is_named(base: Path, tmp_path: Path) -> None:
    broken = rows.colours(1)[0]
    broken["id"] = "the-bad-one"
    broken["images"] = [{"bytes": broken["images"][0]["bytes"][:60], "path": None}]
    data = rows.write(tmp_path / "data", [broken])
    with pytest.raises(DataError, match="image 0 of row 'the-bad-one' cannot be decoded"):
        train(data, tmp_path / "run", model=str(base), **QUICK)


def test_data_that_is_not_for_commercial_use_is_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = rows.write(tmp_path / "free", rows.colours(4))
    bound = rows.write(tmp_path / "bound", rows.colours(4))
    replace(Manifest.read(bound), licence="CC-BY-NC-4.0").write(bound)
    result = train([free, bound], tmp_path / "run", model=str(base), **{**QUICK, "max_steps": 1, "progress": True})
    said = capsys.readouterr().err
    assert "bound: licence CC-BY-NC-4.0, NOT for commercial use" in said and "free: licence" not in said
    assert "CC-BY-NC-4.0 (**not for commercial use**)" in (result.out / "README.md").read_text()
