"""Merged models: whole folders of plain weights that say what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import peft
import pytest
import tiny_models
import torch
import transformers
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlmdata.errors import ConfigError, OutputExistsError
from vlmtrain import saving
from vlmtrain.cli import main
from vlmtrain.collate import Collator
from vlmtrain.merge import merge
from vlmtrain.model import load
from vlmtrain.sft import train


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = rows.write(folder / "data", rows.colours(8))
    return train(data, folder / "run", model=str(base), max_steps=2, learning_rate=1e-2, progress=False).out


def logits(loaded: Any, model: Any = None) -> torch.Tensor:
    batch = Collator(loaded.processor, loaded.family)(rows.colours(4))
    with torch.no_grad():
        return (model or loaded.model)(**{k: v for k, v in batch.items() if k != "labels"}).logits.float()


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_the_folder_is_whole(dtype: str, base: Path, run: Path, tmp_path: Path) -> None:
    out = merge(run, tmp_path / "merged", model=str(base), dtype=dtype)
    names = {path.name for path in out.iterdir()}
    needed = {"config.json", "generation_config.json", "chat_template.jinja", "processor_config.json", "README.md"}
    assert needed | {"model.safetensors", "tokenizer.json"} <= names
    wanted = "float32" if dtype == "auto" else dtype
    assert json.loads((out / "config.json").read_text())["dtype"] == wanted
    with safe_open(str(out / "model.safetensors"), "pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}
    assert kinds == {getattr(torch, wanted)}
    card = (out / "README.md").read_text()
    assert f"| Weights | {wanted} |" in card and "library_name: transformers" in card and "| Steps | 2 |" in card
    plain = transformers.AutoModelForImageTextToText.from_pretrained(out)
    tuned = load(str(base), run, device="cpu")
    limit = {"auto": 1e-4, "float16": 5e-2, "bfloat16": 0.5}[dtype]
    assert float((logits(tuned) - logits(tuned, plain)).abs().max()) < limit
    assert load(str(out), device="cpu").processor.chat_template == tuned.processor.chat_template


def test_sums_are_rounded_once(base: Path, run: Path, tmp_path: Path) -> None:
    """Merged in the base's type and cast after, not merged in 16 bits."""
    half, full = (merge(run, tmp_path / d, model=str(base), dtype=d) for d in ("bfloat16", "float32"))
    a, b = load_file(half / "model.safetensors"), load_file(full / "model.safetensors")
    assert all(torch.equal(a[key], b[key].bfloat16()) for key in b)


@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
def test_tied_weights_with_an_adapter_are_parted(
    layer: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each gets what was learned for it, and not the other's."""
    base = model_folder("gemma3")
    net = transformers.AutoModelForImageTextToText.from_pretrained(base)
    assert net.get_output_embeddings().weight is net.get_input_embeddings().weight
    torch.manual_seed(1)
    tuned = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["q_proj", layer], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "made")
    wanted = load(str(base), tmp_path / "made", device="cpu")
    out = merge(tmp_path / "made", tmp_path / "merged", model=str(base))
    plain = transformers.AutoModelForImageTextToText.from_pretrained(out)
    assert float((logits(wanted) - logits(wanted, plain)).abs().max()) < 1e-4


def test_large_models_are_sharded_with_an_index(base: Path, run: Path, tmp_path: Path) -> None:
    out = merge(run, tmp_path / "merged", model=str(base), shard_size="100KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1 and files == {path.name for path in out.glob("model-*.safetensors")}
    whole = merge(run, tmp_path / "whole", model=str(base))
    assert index["weight_map"].keys() == load_file(whole / "model.safetensors").keys()
    plain = transformers.AutoModelForImageTextToText.from_pretrained(out)
    loaded = load(str(whole), device="cpu")
    assert torch.equal(logits(loaded), logits(loaded, plain))


@pytest.mark.parametrize("moment", ["weights", "processor", "card"])
def test_an_interrupted_merge_leaves_nothing(
    moment: str, base: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    before = merge(run, tmp_path / "merged", model=str(base))
    kept = (before / "model.safetensors").read_bytes()
    owner: Any = {
        "weights": (transformers.PreTrainedModel, "save_pretrained"),
        "processor": (transformers.LlavaProcessor, "save_pretrained"),
        "card": (__import__("vlmtrain.merge", fromlist=["x"]), "merged_card"),
    }[moment]
    monkeypatch.setattr(*owner, stop)
    for out, overwrite in ((tmp_path / "new", False), (before, True)):
        with pytest.raises(KeyboardInterrupt):
            merge(run, out, model=str(base), dtype="bfloat16", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert (before / "model.safetensors").read_bytes() == kept


def test_what_a_killed_merge_left_is_no_model(base: Path, run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "merged.partial"
    shutil.copytree(base, partial)
    out = merge(run, tmp_path / "merged", model=str(base))
    assert out.is_dir() and not partial.exists()


def test_weights_that_do_not_fit_the_type(base: Path, run: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    shutil.copytree(base, large)
    weights = load_file(large / "model.safetensors")
    key = next(k for k in weights if k.endswith("norm.weight"))
    weights[key] = weights[key] * 1e6
    save_file(weights, large / "model.safetensors", metadata={"format": "pt"})
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, plain)
    with pytest.raises(ConfigError, match=r"norm.weight holds 1e\+06, more than float16 can: use --dtype bfloat16"):
        merge(plain, tmp_path / "merged", model=str(large), dtype="float16")
    assert not (tmp_path / "merged").exists() and not (tmp_path / "merged.partial").exists()
    assert merge(plain, tmp_path / "merged", model=str(large), dtype="bfloat16").is_dir()


def test_a_base_that_is_quantized_itself_is_refused(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wide = tiny_models.make("llava", tmp_path / "wide", width=64)
    four = load(str(wide), quantize="4bit", device="cpu")
    with saving.quiet():
        four.model.save_pretrained(tmp_path / "four")
        four.processor.save_pretrained(tmp_path / "four")
    data = rows.write(tmp_path / "data", rows.colours(4))
    tuned = train(data, tmp_path / "run", model=str(tmp_path / "four"), max_steps=1, progress=False).out
    with pytest.raises(ConfigError, match="four is quantized itself: give the unquantized model as --model"):
        merge(tuned, tmp_path / "merged", model=str(tmp_path / "four"))
    with pytest.raises(ConfigError, match="is quantized already: --quantize none, or the unquantized model"):
        load(str(tmp_path / "four"), quantize="8bit", device="cpu")


def test_options_that_cannot_be(base: Path, run: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"dtype": "int8"}, "no dtype 'int8'; valid: auto, float32, bfloat16, float16"),
        ({"shard_size": "large"}, "--shard-size is 'large', expected a number and a unit, like 5GB"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(run, tmp_path / "merged", model=str(base), **options)  # type: ignore[arg-type]
    with pytest.raises(OutputExistsError, match="is the base itself"):
        merge(run, base, model=str(base), overwrite=True)


def test_the_command(base: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    words = ["merge", str(run), "--model", str(base), "--out", str(out), "--dtype", "bfloat16", "--shard-size", "1GB"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith("merged: merged model, loads without peft")
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2 and again.output.count("\n") == 1 and "--overwrite replaces it" in again.output


def test_an_adapter_of_plain_peft_gets_a_card_too(base: Path, run: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, plain)
    card = (merge(plain, tmp_path / "merged", model=str(base)) / "README.md").read_text()
    assert "An adapter merged in" in card and "`llava` (llava)" in card
