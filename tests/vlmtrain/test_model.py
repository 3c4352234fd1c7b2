"""Loading and refusing models and adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import colour_rows as rows
import huggingface_hub
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from vlmdata.errors import ConfigError, MissingError, OutputExistsError, VlmError
from vlmtrain.chat import end_token
from vlmtrain.collate import Collator
from vlmtrain.merge import merge
from vlmtrain.model import TINY, fingerprint, load, locate, recorded_name
from vlmtrain.sft import train


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = rows.write(folder / "data", rows.colours(8))
    return train(data, folder / "run", model=str(base), max_steps=2, learning_rate=1e-2, progress=False).out


def loss(loaded: Any) -> float:
    batch = Collator(loaded.processor, loaded.family)(rows.colours(4))
    with torch.no_grad():
        return float(loaded.model(**batch).loss)


def test_names(base: Path, tmp_path: Path) -> None:
    assert locate("org/name") == "org/name"
    assert recorded_name("org/name") == "org/name"
    assert recorded_name(str(base)) == "llava" and recorded_name(TINY) == TINY
    for wrong, message in (
        ("./nothing", "no model './nothing': expected vlmtrain:tiny, a model folder or a hub id like ORG/NAME"),
        ("no-such-thing", "no model 'no-such-thing'"),
        (str(tmp_path), "is not a model folder: it has no config.json"),
    ):
        with pytest.raises(MissingError, match=message):
            locate(wrong)


def test_the_packaged_model_is_found_by_its_name() -> None:
    if not (Path(locate.__code__.co_filename).parent / "tiny" / "model" / "config.json").is_file():
        pytest.skip("vlmtrain/tiny/model has not been made in this checkout")
    loaded = load(TINY, device="cpu")
    assert loaded.base == TINY and loaded.family.name == "llava"
    assert loss(loaded) > 0


def test_a_hub_model_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="model 'nobody/nothing-at-all' cannot be loaded: "):
        load("nobody/nothing-at-all")


def test_models_that_are_none_of_ours(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    ).save_pretrained(tmp_path / "text")
    with pytest.raises(ConfigError, match="text is not a vision-language model: its model_type is 'llama'; families: "):
        load(str(tmp_path / "text"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(VlmError, match="empty"):
        load(str(tmp_path / "empty"))


def test_a_processor_without_images_is_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blind"
    shutil.copytree(base, folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(VlmError, match="blind"):
        load(str(folder))


def test_weights_that_lack_a_tensor_are_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    gone = next(key for key in tensors if "linear_1.weight" in key)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingError, match="the weights of .*torn lack 1 tensors, the first is .*linear_1.weight"):
        load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="torn"):
        load(str(folder))


def test_an_adapter_on_the_hub_that_cannot_be_had(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="no adapter folder nobody/nothing-at-all, and as a hub id it cannot be had"):
        load(str(base), "nobody/nothing-at-all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "no dtype 'int8'; valid: auto, float32, bfloat16, float16"),
        ({"quantize": "1bit"}, "no quantization '1bit'; valid: none, 8bit, 4bit"),
        ({"max_image_tokens": 0}, "--max-image-tokens is at least 1"),
        ({"max_image_tokens": 3}, "an image always takes 4 tokens here; --max-image-tokens 3 is less"),
    ],
)
def test_options_that_cannot_be(base: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(str(base), **options)


def test_no_gpu_is_said(base: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="device cuda was asked for, and there is none"):
        load(str(base), device="cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(base: Path, dtype: str) -> None:
    assert load(str(base), dtype=dtype, device="cpu").model.dtype == getattr(torch, dtype)


def test_auto_keeps_the_type_of_the_checkpoint(base: Path, tmp_path: Path) -> None:
    loaded = load(str(base), dtype="bfloat16", device="cpu")
    loaded.model.save_pretrained(tmp_path / "half")
    loaded.processor.save_pretrained(tmp_path / "half")
    assert load(str(tmp_path / "half"), device="cpu").model.dtype == torch.bfloat16
    assert load(str(base), device="cpu").model.dtype == torch.float32


def test_bfloat16_training_runs_on_a_cpu(base: Path, tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", rows.colours(8))
    result = train(data, tmp_path / "run", model=str(base), dtype="bfloat16", epochs=2, progress=False)
    assert load(str(base), result.out, device="cpu").model.dtype == torch.float32
    assert load_file(result.out / "adapter_model.safetensors").popitem()[1].dtype == torch.float32


def test_generation_stops_where_training_ends_a_turn(bases: dict[str, Path], tmp_path: Path) -> None:
    for name in bases:
        bare = load(str(tiny_models.make(name, tmp_path / name, chat_template=False)), device="cpu")
        stops = bare.model.generation_config.eos_token_id
        end = bare.processor.tokenizer.convert_tokens_to_ids(end_token(bare.processor))
        assert end == stops or end in stops
        assert bare.processor.chat_template == bare.family.chat_template


def test_an_adapter_finds_its_base_only_by_a_name(base: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"was trained on a local folder \(llava\): give it as --model"):
        load(None, run)
    with pytest.raises(ConfigError, match="is an adapter, not a model: give it as --adapter"):
        load(str(run))
    with pytest.raises(MissingError, match="no adapter folder"):
        load(str(base), tmp_path / "nothing")
    with pytest.raises(MissingError, match="no adapter_config.json in it"):
        load(str(base), tmp_path)
    with pytest.raises(ConfigError, match="no model given"):
        load(None)


def test_an_adapter_of_another_base_is_refused(base: Path, bases: dict[str, Path], run: Path, tmp_path: Path) -> None:
    """Another architecture, other weights, or other widths; a plain PEFT adapter is judged by its tensors."""
    twin = tiny_models.make("llava", tmp_path / "twin", seed=5, head_gain=20.0)
    assert fingerprint(str(twin)) != fingerprint(str(base))
    with pytest.raises(ConfigError, match="was trained on llava, not on .*twin: their weights differ"):
        load(str(twin), run)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, plain)
    load(str(twin), plain)
    with pytest.raises(ConfigError, match="was made for another base than .*qwen2_vl: .*no such module"):
        load(str(bases["qwen2_vl"]), _renamed(plain, tmp_path / "renamed"))
    wide = tiny_models.make("llava", tmp_path / "wide", width=64)
    with pytest.raises(ConfigError, match="was made for another base than .*wide: .*its (in|out)_features is"):
        load(str(wide), plain)


def _renamed(adapter: Path, out: Path) -> Path:
    shutil.copytree(adapter, out)
    weights = out / "adapter_model.safetensors"
    save_file({key.replace("q_proj", "query"): value for key, value in load_file(weights).items()}, weights)
    return out


def test_keys_that_fit_nowhere_are_an_error_not_a_silence(base: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"self_attn.query: no such module"):
        load(str(base), _renamed(run, tmp_path / "old"))


def test_the_image_budget_is_kept_with_the_adapter(bases: dict[str, Path], tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", rows.colours(4, size=(200, 200)))
    base = str(bases["qwen2_vl"])
    options = {"max_steps": 1, "progress": False}
    whole = train(data, tmp_path / "whole", model=base, **options)
    small = train(data, tmp_path / "small", model=base, max_image_tokens=4, **options)
    assert small.metrics["rows"]["image_tokens"] == 16 < whole.metrics["rows"]["image_tokens"]
    loaded = load(base, small.out, device="cpu")
    assert Collator(loaded.processor, loaded.family)(rows.colours(1, size=(200, 200)))["image_grid_thw"].prod() == 16


def test_a_tied_head_that_was_trained_is_merged_untied(tmp_path: Path) -> None:
    base = tiny_models.make("llava", tmp_path / "base", tied=True)
    data = rows.write(tmp_path / "data", rows.colours(8))
    options = {"modules_to_save": "lm_head", "max_steps": 3, "learning_rate": 1e-2, "progress": False}
    run = train(data, tmp_path / "run", model=str(base), **options).out
    tuned = load(str(base), run, device="cpu")
    merged = load(str(merge(run, tmp_path / "merged", model=str(base))), device="cpu")
    head, words = merged.model.get_output_embeddings().weight, merged.model.get_input_embeddings().weight
    assert not torch.equal(head, words)
    assert loss(merged) == pytest.approx(loss(tuned), rel=1e-5)
    assert loss(merged) < loss(load(str(base), device="cpu"))


def test_merge_writes_whole_folders_and_replaces_none(base: Path, run: Path, tmp_path: Path) -> None:
    out = merge(run, tmp_path / "merged", model=str(base), dtype="bfloat16")
    assert load(str(out), device="cpu").model.dtype == torch.bfloat16
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(OutputExistsError, match="holds a model: --overwrite replaces it"):
        merge(run, out, model=str(base))
    merge(run, out, model=str(base), overwrite=True)
    assert load(str(out), device="cpu").model.dtype == torch.float32
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    with pytest.raises(OutputExistsError, match="not a model folder"):
        merge(run, tmp_path / "notes", model=str(base), overwrite=True)
    with pytest.raises(OutputExistsError, match="is the base itself"):
        merge(run, base, model=str(base), overwrite=True)
    with pytest.raises(MissingError, match="no adapter folder"):
        merge(tmp_path / "nothing", tmp_path / "x")
    content = b"".join(path.read_bytes() for path in out.rglob("*.json"))
    assert str(tmp_path).encode() not in content and str(base.parent).encode() not in content
