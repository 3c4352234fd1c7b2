"""Bases in 8 and 4 bits: trained on, taken up again, and never what is merged into."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import colour_rows as rows
import peft
import pytest
import torch
from run_files import losses
from tuned import begun, logits, plain

from vlmdata.errors import ConfigError, DependencyError
from vlmtrain import dpo, sft
from vlmtrain.initial import LOFTQ
from vlmtrain.merge import merge
from vlmtrain.model import load
from vlmtrain.sft import make_trainer, train

QUICK: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-2, "lora_r": 8, "progress": False}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(16))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "pairs", rows.pairs(16))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"quantize": "8bit"}, marks=SLOW),
        pytest.param({"quantize": "4bit"}, marks=SLOW),
        {"quantize": "4bit", "tuner": "dora"},
        pytest.param({"quantize": "4bit", "tuner": "adalora", "learning_rate": 3e-2}, marks=SLOW),
        {"quantize": "8bit", "tuner": "lokr"},
        {"quantize": "8bit", "tuner": "dora"},
        pytest.param({"quantize": "8bit", "tuner": "loha", "learning_rate": 3e-2}, marks=SLOW),
        pytest.param({"quantize": "4bit", "gradient_checkpointing": True, "optimizer": "adamw_8bit"}, marks=SLOW),
        {"quantize": "4bit", "parts": "vision,projector,language", "quantize_parts": "vision,projector,language"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_quantized_bases(options: dict[str, Any], wide: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    job = begun("sft", data, tmp_path / "run", **{**QUICK, "model": str(wide), "epochs": 6, **options})
    trainer = make_trainer(job)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    kinds = {name: type(m).__name__ for name, m in job.loaded.model.named_modules() if hasattr(m, "in_features")}
    rounded = {name for name, kind in kinds.items() if kind in ("Linear8bitLt", "Linear4bit")}
    assert any("language_model" in name for name in rounded) and "lm_head" not in rounded
    everything = "quantize_parts" in options
    assert any("vision_tower" in name for name in rounded) is everything
    assert any("projector" in name for name in rounded) is everything
    run = sft.run(trainer, job).out
    assert losses(run)[-1] < 0.6 * losses(run)[0]
    tuned = load(str(wide), run, quantize=options["quantize"], device="cpu")
    trained = trainer.accelerator.unwrap_model(trainer.model)
    torch.testing.assert_close(logits(tuned.model, tuned), logits(trained, tuned), rtol=0, atol=5e-3)
    merged = load(str(merge(run, tmp_path / "merged", model=str(wide))), device="cpu")
    assert merged.model.dtype == torch.float32 and not hasattr(merged.model.config, "quantization_config")
    unquantized = load(str(wide), run, device="cpu")
    torch.testing.assert_close(logits(merged.model, merged), logits(unquantized.model, merged), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [pytest.param("8bit", marks=SLOW), "4bit"])
def test_preferences_on_a_quantized_base(bits: str, wide: Path, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = {**QUICK, "model": str(wide), "quantize": bits, "epochs": 4, "learning_rate": 1e-3, "logging_steps": 1}
    entries = losses(dpo.train(pairs, tmp_path / "run", **options).out)
    # An int8 product rounds otherwise in evaluation mode: the reference is computed in the policy's.
    assert entries[0] == pytest.approx(math.log(2), abs=1e-6) and entries[-1] < 0.6


def test_an_adapter_trained_further_is_not_rounded(wide: Path, data: Path, pairs: Path, tmp_path: Path) -> None:
    """TRL casts it to bfloat16, and not the copy that is the reference: the first loss is of equal models."""
    pytest.importorskip("bitsandbytes")
    options = {"model": str(wide), "quantize": "4bit", "batch_size": 8, "progress": False}
    tuned = train(data, tmp_path / "tuned", max_steps=3, learning_rate=1e-2, **options).out
    entries = losses(
        dpo.train(pairs, tmp_path / "run", adapter=str(tuned), max_steps=1, logging_steps=1, **options).out
    )
    assert entries[0] == pytest.approx(math.log(2), abs=1e-6)


def test_loftq_makes_up_for_the_rounding(wide: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = {**QUICK, "model": str(wide), "quantize": "4bit", "lora_r": 16}
    base = load(str(wide), device="cpu")
    exact = logits(base.model, base)
    far = {}
    for init in ("default", "loftq"):
        job = begun("sft", data, tmp_path / init, **options, init=init, max_steps=1)
        far[init] = float((logits(make_trainer(job).model, base) - exact).norm())
    assert far["loftq"] < 0.75 * far["default"], "it starts nearer to the unquantized base"
    run = train(data, tmp_path / "run", init="loftq", epochs=6, **options).out
    assert losses(run)[-1] < 0.6 * losses(run)[0] and (run / LOFTQ).is_file()
    four = load(str(wide), run, quantize="4bit", device="cpu")
    wanted = logits(four.model, four)
    stock = logits(peft.PeftModel.from_pretrained(plain(wide), run), base)
    corrected = load(str(wide), run, device="cpu")
    merged = logits(plain(merge(run, tmp_path / "merged", model=str(wide))), base)
    torch.testing.assert_close(merged, logits(corrected.model, base), rtol=0, atol=1e-4)
    assert float((merged - wanted).norm()) < 0.8 * float((stock - wanted).norm())


def test_what_is_rounded_cannot_be_trained_in_full(wide: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"model": str(wide), "quantize": "4bit", "progress": False}
    with pytest.raises(ConfigError, match="modules_to_save: down_proj is loaded in 4bit, and cannot be trained"):
        train(data, tmp_path / "run", modules_to_save="down_proj", **options)
    train(data, tmp_path / "run", modules_to_save="lm_head", max_steps=1, **options)


def test_bits_need_bitsandbytes(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(DependencyError, match=r"--quantize 4bit needs bitsandbytes.*vlm-toolkit\[quant\]"):
        load(str(wide), quantize="4bit", device="cpu")


def test_weights_of_eight_bits_lose_their_scales_to_dora(wide: Path) -> None:
    """On a CPU, at the second forward; what is computed is what dora makes of the rounded weights."""
    pytest.importorskip("bitsandbytes")
    loaded = load(str(wide), quantize="8bit", device="cpu", trainable=True)
    config = peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(loaded.model, config)
    with model.disable_adapter():
        plain_ones = logits(model, loaded)
    first, second = logits(model, loaded), logits(model, loaded)
    assert torch.equal(first, second)
    # An adapter that has learned nothing changes nothing, but for rounding.
    torch.testing.assert_close(first, plain_ones, rtol=0, atol=2e-3)
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            module._forward_pre_hooks.clear()
    with pytest.raises(AttributeError, match="NoneType"):
        logits(model, loaded)
