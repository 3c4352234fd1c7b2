"""``vlmtrain plan``: counts against published ones, foretold bytes against a real run's, figures against the data."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import tiny_models
import torch
from click.testing import CliRunner

from benchmarks.plan_accuracy import in_process, make_model
from vlmdata.errors import ConfigError, MissingError
from vlmtrain.cli import main
from vlmtrain.collate import Collator
from vlmtrain.config import resolve
from vlmtrain.model import load
from vlmtrain.plan import plan
from vlmtrain.planning import advice
from vlmtrain.planning.batches import Load, make_batch, tokens_of
from vlmtrain.planning.emulate import Emulation, backward
from vlmtrain.planning.ledger import Ledger
from vlmtrain.planning.rehearse import prepare, rehearse
from vlmtrain.planning.shapes import find_shape, packaged_names, parse_count, shape_of_size

# As the model cards' safetensors counts give them; ViT's with a head for the 101 classes of Food-101.
PUBLISHED = {
    "blip2-opt-2.7b": 3_744_761_856,
    "idefics2-8b": 8_402_768_112,
    "llama-3.2-11b-vision": 10_670_220_835,
    "llava-1.5-7b": 7_063_427_072,
    "paligemma-3b": 2_923_466_480,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "vit-base-patch16-224-in21k": 85_876_325,
}


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {"sft": rows.write(folder / "sft", rows.colours(4)), "dpo": rows.write(folder / "dpo", rows.pairs(2))}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(name, folder / name, width=128, layers=2) for name in ("llava", "qwen2_vl")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_packaged_shapes_have_the_published_parameters(name: str) -> None:
    assert sum(p.numel() for p in find_shape(name).build("auto").parameters()) == PUBLISHED[name]


def test_every_packaged_shape_is_known() -> None:
    assert packaged_names().keys() == PUBLISHED.keys()
    assert find_shape("HuggingFaceM4/Idefics2-8B").name == "HuggingFaceM4/idefics2-8b", "by its hub id, too"


@pytest.mark.parametrize(("rank", "trained"), [(8, 27_674_368), (16, 55_348_736)])
def test_all_linear_of_idefics2(rank: int, trained: int) -> None:
    """The post prints 55,348,736 of 8,458,116,848: rank 16, where the command it shows would give rank 8."""
    config = resolve("dpo", {"target_modules": "all-linear", "lora_r": rank})
    model, base, _ = prepare(config, find_shape("idefics2-8b"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert base + trained == {8: 8_430_442_480, 16: 8_458_116_848}[rank]


def test_the_tables_of_the_post_on_dpo() -> None:
    """https://huggingface.co/blog/dpo_vlm: 160 GB in full, 32.3 GB with LoRA and two models."""
    common: dict[str, Any] = {"model": "idefics2-8b", "params": "8e9", "reference": "copy", "rule_of_thumb": True}
    full = plan("dpo", tuner="full", dtype="float32", **common).memory
    billions = {name: size / 1e9 for name, size in full.items.items() if size}
    assert billions == {"weights": 32, "reference": 32, "gradients": 32, "optimizer": 64}
    lora = plan("dpo", target_modules="all-linear", dtype="bfloat16", **common).memory
    rounded = {name: round(size / 1e9, 1) for name, size in lora.items.items() if size}
    assert rounded == {"weights": 16.0, "reference": 16.0, "gradients": 0.1, "optimizer": 0.2}
    assert round(lora.peak / 1e9, 1) == 32.3
    one = plan("dpo", target_modules="all-linear", **{**common, "reference": None}).memory
    assert lora.peak - one.peak == 16_000_000_000, "peft needs no copy, and none is counted unless asked"


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llava", "dpo", {"gradient_checkpointing": True}),
        ("qwen2_vl", "sft", {"tuner": "full", "gradient_checkpointing": False, "accumulate": 2}),
        slow("llava", "sft", {"gradient_checkpointing": False, "compact_head": False}),
        slow("llava", "sft", {"checkpoint_layers": 2}),
        slow("llava", "kto", {"gradient_checkpointing": False, "batch_size": 2}),
        slow("llava", "dpo", {"gradient_checkpointing": False, "image_weight": 1.0}),
        slow("llava", "dpo", {"gradient_checkpointing": True, "reference": "live"}),
        slow("qwen2_vl", "dpo", {"gradient_checkpointing": True, "parts": "vision,projector,language:attention,mlp"}),
    ],
)
def test_foretold_is_what_a_run_allocates(
    family: str, method: str, options: dict[str, Any], data: dict[str, Path], models: dict[str, Path]
) -> None:
    """Every allocation of torch, weights included; ``benchmarks.plan_accuracy`` does the same above 1 GB."""
    where = {"data": str(data["sft" if method == "sft" else "dpo"]), "model": str(models[family])}
    found = in_process({"method": method, **where, "options": {"batch_size": 1, **options}})
    assert found["planned"] == pytest.approx(found["measured"], rel=0.05)
    moving = found["items"]["activations"] + found["items"]["logits"] + found["items"]["images"]
    assert moving > 0.2 * found["planned"], "not the weights alone are foretold"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_run_of_a_gigabyte(family: str, data: dict[str, Path], tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "model")
    options = {"batch_size": 2, "gradient_checkpointing": False, "compact_head": False}
    found = in_process({"method": "sft", "data": str(data["sft"]), "model": str(model), "options": options})
    assert found["measured"] > 0.9e9
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


def test_mixed_precision_on_the_meta_device_allocates_as_autocast_does() -> None:
    """The same books, kept over a real forward and backward under torch's own autocast."""
    torch.manual_seed(0)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=512
    )

    def peak(device: str) -> int:
        with torch.device(device):
            model = LlamaForCausalLM._from_config(config, dtype=torch.float32)
        ids = torch.zeros(2, 96, dtype=torch.long)
        ledger = Ledger()
        for parameter in model.parameters():
            ledger.book(parameter, "weights")
        if device == "meta":
            emulation = Emulation(torch.bfloat16)
            with emulation.on(), ledger:
                loss = model(ids, use_cache=False).logits.float().square().mean()
                emulation.forward_is_done()
                backward(loss)
        else:
            with ledger:
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(ids, use_cache=False).logits.float().square().mean()
                loss.backward()
        return sum(ledger.peak.values())

    assert peak("meta") == pytest.approx(peak("cpu"), rel=0.03)


def test_bits_weigh_what_bitsandbytes_makes_of_them(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny_models.make("llava", tmp_path / "base", width=64)
    for bits in ("8bit", "4bit"):
        real = load(str(base), quantize=bits, device="cpu", trainable=True).model
        held = sum(p.numel() * p.element_size() for p in real.parameters())
        held += sum(b.numel() * b.element_size() for b in real.buffers())
        for parameter in real.parameters():
            state = getattr(parameter, "quant_state", None)
            held += state.absmax.numel() * state.absmax.element_size() if state is not None else 0
            scales = getattr(parameter, "SCB", None)
            held += scales.numel() * scales.element_size() if scales is not None else 0
        planned = plan("sft", model=str(base), quantize=bits, device="cpu", length=64).memory.items["weights"]
        assert planned == pytest.approx(held, rel=0.02), bits


def test_what_each_setting_changes(models: dict[str, Path]) -> None:
    def items(method: str = "dpo", **options: Any) -> dict[str, int]:
        found = plan(method, model=str(models["llava"]), batch_size=2, length=700, advice=False, **options)
        assert sum(found.memory.items.values()) == found.memory.peak
        return found.memory.items

    plain = items()
    assert plain["reference"] == 0 and items(reference="copy")["reference"] == plain["weights"]
    assert items(reference="live")["reference"] == 0, "the adapter is switched off for it"
    assert items(tuner="full", reference="live")["reference"] == items(tuner="full")["weights"]
    kept, every = items(gradient_checkpointing=False)["activations"], items(checkpoint_layers=2)["activations"]
    assert kept > plain["activations"] >= every and kept > 2 * every, "all layers but the last recompute"
    assert items("kto") == items("kto", checkpoint_layers=2), "where the last layer computes everything it does, too"
    assert items(accumulate=2)["gradients"] == items(accumulate=3)["gradients"] > plain["gradients"]
    assert items(lora_r=32)["adapter"] == 2 * plain["adapter"]
    assert items(lora_r=32)["optimizer"] == 2 * plain["optimizer"]
    assert items(optimizer="adamw_8bit")["optimizer"] < plain["optimizer"]
    assert items(optimizer="sgd")["optimizer"] == 0 < items(optimizer="adafactor")["optimizer"]
    every_activation = {"gradient_checkpointing": False, "share_features": False}
    assert items(**every_activation, parts="vision,language")["images"] > items(**every_activation)["images"]
    assert items(method="kto")["weights"] == plain["weights"]
    assert items(dtype="bfloat16")["weights"] == pytest.approx(plain["weights"] / 2, rel=0.01)


def test_classifiers(tmp_path: Path) -> None:
    vit = tiny_models.make("vit", tmp_path / "vit")
    few, many = (plan("classify", model=str(vit), batch_size=n, advice=False).memory for n in (2, 8))
    assert many.items["activations"] == pytest.approx(4 * few.items["activations"], rel=0.1)
    assert many.items["logits"] == 0 and many.items["weights"] == few.items["weights"]
    with pytest.raises(ConfigError, match="classify"):
        plan("sft", model=str(vit))
    with pytest.raises(ConfigError, match="--data counts the tokens"):
        plan("classify", model=str(vit), data=[tmp_path])


def test_only_a_number_of_parameters_is_known() -> None:
    for count in (3e8, 2e9, 8e9, 70e9):
        shape = shape_of_size(int(count))
        built = sum(p.numel() for p in shape.build("auto").parameters())
        assert built == pytest.approx(count, rel=0.25), "the stand-in is of about that size"
        assert prepare(resolve("sft", {}), shape)[1] == built and shape.stated == count
    memory = plan("sft", params="2B", batch_size=1, length=700, advice=False).memory
    assert memory.base == 2_000_000_000 and memory.items["weights"] == pytest.approx(4e9, rel=0.01)
    assert [parse_count(text) for text in ("8e9", "8B", "350M", "8,000,000,000", "1.5b")] == [
        8_000_000_000,
        8_000_000_000,
        350_000_000,
        8_000_000_000,
        1_500_000_000,
    ]
    for wrong in ("abc", "", "-1", "nan", "inf", "1e40", "8 billion"):
        with pytest.raises(ConfigError, match="--params is"):
            parse_count(wrong)


def test_tokens_of_a_dataset_are_those_of_its_batches(bases: dict[str, Path], tmp_path: Path) -> None:
    sizes = [(40, 40), (90, 60), (300, 200), (640, 480)]
    made = [{**row, "id": f"row-{i}"} for size in sizes for i, row in enumerate(rows.colours(3, size))]
    data = rows.write(tmp_path / "data", made)
    base = load(str(bases["qwen2_vl"]), device="cpu")
    found = plan("sft", model=str(bases["qwen2_vl"]), data=[data], batch_size=2, advice=False)
    assert found.visual is not None and found.visual.exact
    batches = [Collator(base.processor, base.family)([row]) for row in made]
    images = [int((batch["input_ids"] == base.model.config.image_token_id).sum()) for batch in batches]
    whole = [batch["input_ids"].shape[1] for batch in batches]
    now = found.visual.budgets[0]
    assert (now.image_tokens, now.tokens, now.longest) == (sum(images), sum(whole), max(whole))
    assert found.visual.percentiles["image"][100] == max(images) and found.visual.rows == 12
    assert found.memory.batch["tokens"] == 2 * max(whole), "the largest batch is what is rehearsed"
    smaller = found.visual.budgets[1:]
    assert smaller and not found.visual.fixed
    for budget in smaller:
        again = plan("sft", model=str(bases["qwen2_vl"]), data=[data], max_image_tokens=budget.most, advice=False)
        assert again.visual is not None and again.visual.budgets[0].image_tokens == budget.image_tokens < sum(images)
    limited = plan("sft", model=str(bases["qwen2_vl"]), data=[data], max_length=min(whole) + 1, advice=False)
    assert limited.visual is not None
    assert limited.visual.budgets[0].too_long == sum(length > min(whole) + 1 for length in whole) > 0
    assert limited.memory.batch["tokens"] <= 4 * (min(whole) + 1)
    fixed = plan("sft", model=str(bases["llava"]), data=[data], advice=False)
    assert fixed.visual is not None and fixed.visual.fixed and len(fixed.visual.budgets) == 1


def test_data_without_a_tokenizer(data: dict[str, Path]) -> None:
    """A packaged shape has none: images are exact, texts are guessed and said to be."""
    found = plan("dpo", model="qwen2-vl-2b", data=[data["dpo"]], rule_of_thumb=True)
    assert found.visual is not None and not found.visual.exact
    assert found.visual.budgets[0].image_tokens == 2 * tokens_of(find_shape("qwen2-vl-2b"), (40, 40))
    assert 5 < found.visual.percentiles["text"][50] < 60


@pytest.mark.parametrize("checkpointing", [True, False])
def test_kto_on_a_gpu(models: dict[str, Path], checkpointing: bool) -> None:
    """Its mismatched answers are cast without a graph, before the others are cast with one."""
    found = plan("kto", model=str(models["llava"]), gradient_checkpointing=checkpointing, advice=False)
    assert found.memory.items["activations"] > 0 and found.device == "cuda"


def test_knobs_and_cards(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each knob's figure is that of a plan with it; the cards here are as small as the model."""
    options: dict[str, Any] = {"model": str(models["qwen2_vl"]), "batch_size": 4, "gradient_checkpointing": False}
    base = plan("sft", advice=False, **options)
    sizes = {24: 0.62, 48: 0.9, 80: 1.5}
    monkeypatch.setattr(advice, "CARDS", {card: base.memory.peak * share / 2**20 for card, share in sizes.items()})
    monkeypatch.setattr(advice, "CONTEXT", 0)
    monkeypatch.setattr(advice, "usable", lambda card: int(advice.CARDS[card] * 2**20))
    monkeypatch.setattr(advice, "FRAGMENTS", 1.0)
    found = plan("sft", **options)
    knobs = {knob.text: knob for knob in found.knobs}
    recompute = "--set gradient_checkpointing=true"
    assert {recompute, "--batch-size 2 --set accumulate=2", "--quantize 4bit", "--lora-r 8"} <= knobs.keys()
    budget = next(text for text in knobs if text.startswith("--max-image-tokens"))
    assert knobs[budget].peak < found.memory.peak
    for text in (recompute, "--batch-size 2 --set accumulate=2", "--quantize 4bit"):
        assert plan("sft", advice=False, **{**options, **knobs[text].keys}).memory.peak == knobs[text].peak, text
    eight = plan("sft", advice=False, **{**options, "lora_r": 8}).memory.peak
    assert knobs["--lora-r 8"].peak == pytest.approx(eight, rel=0.02)
    small, middle, large = found.cards
    assert large.fits and not large.knobs and large.after == found.memory.peak
    assert not middle.fits and middle.knobs and middle.after <= 0.9 * found.memory.peak
    assert not small.knobs or small.after <= 0.62 * found.memory.peak


@pytest.mark.parametrize("name", ["idefics2", "paligemma", "blip2", "mllama", "gemma3", "qwen3_vl", "internvl"])
def test_other_families_rehearse(name: str, tmp_path: Path) -> None:
    """What decides by values (masks, grids, tiles) keeps them on the meta device."""
    shape = find_shape(str(tiny_models.make(name, tmp_path / name)))
    memory = rehearse(resolve("dpo", {"batch_size": 2}), shape, Load(length=512, answer=64, size=(64, 64)))
    assert memory.items["activations"] > 0 and memory.items["weights"] > 0
    assert memory.batch["tokens"] == 4 * 512


def test_a_batch_is_as_long_as_asked(bases: dict[str, Path]) -> None:
    shape = find_shape(str(bases["llava"]))
    batch = make_batch(shape, 3, Load(length=50, answer=7))
    assert batch["input_ids"].shape == (3, 50) and (batch["labels"][0] >= 0).sum() == 7
    assert batch["attention_mask"].sum() == 3 * 50 - 2, "rows of one length have padding, too"
    with pytest.raises(ConfigError, match="--length is 5, and 1 images of 640x480"):
        make_batch(shape, 1, Load(length=5))


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert plan("sft", model="qwen2-vl-2b", rule_of_thumb=True).memory.base == PUBLISHED["qwen2-vl-2b"]
    with pytest.raises(
        MissingError, match=r"'some/model' is not in the cache, and plan downloads nothing.*qwen2-vl-2b"
    ):
        plan("sft", model="some/model")


def test_the_command() -> None:
    """What it prints fits 80 columns, and its JSON adds up."""
    runner = CliRunner()
    flags = ["plan", "--model", "vlmtrain:tiny", "--method", "dpo", "--batch-size", "2"]
    shown = runner.invoke(main, flags, env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert all(len(line.rstrip()) <= 80 for line in shown.stdout.splitlines())
    for word in ("weights", "reference", "activations", "logits", "images", "together", "24 GB", "one knob alone"):
        assert word in shown.stdout
    found = json.loads(runner.invoke(main, [*flags, "--quick", "--json"]).stdout)
    items = {name: size for name, size in found["bytes"].items() if name != "peak"}
    assert sum(items.values()) == found["bytes"]["peak"] > 0 and not found["knobs"]
    assert found["row"]["image_size"] == [640, 480] and found["config"]["batch_size"] == 2


def test_a_recipe_brings_method_and_keys() -> None:
    found = plan(recipe="qwen2vl-ocr", rule_of_thumb=True)
    assert found.config.method == "sft" and found.config.lora.lora_r == 8
    assert found.model == "Qwen/Qwen2-VL-2B-Instruct"
    assert plan(recipe="dpo-llava15", rule_of_thumb=True).config.method == "dpo"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "nothing"], "is no model folder and no packaged configuration: fetch it first, give --params"),
        ([], "no model given: expected --model, --params or --recipe; packaged: blip2-opt-2.7b"),
        (["--params", "many"], "--params is 'many', expected a number of parameters like 8e9 or 8B"),
        (["--model", "llava-1.5-7b", "--method", "ppo"], "no method 'ppo'; valid: sft, dpo, kto, classify"),
        (["--model", "llava-1.5-7b", "--reference", "copy"], "--reference is for dpo and kto, not for sft"),
        (["--model", "llava-1.5-7b", "--image-size", "big"], "--image-size is 'big', expected WIDTHxHEIGHT"),
        (["--model", "llava-1.5-7b", "--length", "100"], "--length is 100, and 1 images of 640x480"),
        (["--model", "llava-1.5-7b", "--max-image-tokens", "9"], "--max-image-tokens 9 is less"),
        (["--model", "llava-1.5-7b", "--method", "classify"], "is a vision-language model that answers in words"),
        (["--model", "llava-1.5-7b", "--data", "none", "--length", "9"], "--length and --data exclude each other"),
        (["--model", "llava-1.5-7b", "--target-modules", "q_lin"], "no module named 'q_lin'"),
        (["--model", "llava-1.5-7b", "--set", "tuner=full", "--quantize", "4bit"], "tuner full trains the weights"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], says: str) -> None:
    result = CliRunner().invoke(main, ["plan", *flags])
    assert result.exit_code == 2
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1
