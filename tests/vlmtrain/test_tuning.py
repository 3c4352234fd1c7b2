"""Every kind of adapter, and none: trained, put down, taken up again, merged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import colour_rows as rows
import peft
import pytest
import torch
from killed import Died, Kill
from run_files import losses
from safetensors.torch import load_file
from tuned import begun, logits, plain

from vlmdata.errors import ConfigError
from vlmtrain import dpo, sft
from vlmtrain.adalora import orthogonality
from vlmtrain.config import resolve
from vlmtrain.merge import merge
from vlmtrain.model import load
from vlmtrain.parts import parts_of
from vlmtrain.sft import make_trainer, train
from vlmtrain.training import run
from vlmtrain.tuning import check_tuner, weights_dtype

QUICK: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-2, "lora_r": 8, "progress": False}
NAMES = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "adalora": "AdaLoRA"}
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"bias": "all", "modules_to_save": "linear_1"},
    "rslora": {"rslora": True, "bias": "lora_only"},
    "dora": {"tuner": "dora", "modules_to_save": "linear_1"},
    "loha": {"tuner": "loha", "learning_rate": 5e-2, "modules_to_save": "linear_1"},
    "lokr": {"tuner": "lokr", "learning_rate": 5e-2},
    "adalora": {"tuner": "adalora", "modules_to_save": "linear_1", "learning_rate": 3e-2},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "pissa": {"init": "pissa"},
    "pissa16": {"init": "pissa_niter_16", "rslora": True},
    "olora": {"init": "olora", "target_modules": "all-linear"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(16))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "pairs", rows.pairs(16))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=SLOW) if way not in ("lora", "dora", "loha", "adalora", "pissa") else way for way in WAYS],
)
def test_every_tuner_learns_and_is_the_same_everywhere(way: str, wide: Path, data: Path, tmp_path: Path) -> None:
    """Loaded by us, by plain peft, and merged into plain transformers: what training ended with."""
    job = begun("sft", data, tmp_path / "run", **{**QUICK, "model": str(wide), "epochs": 6, **WAYS[way]})
    trainer = make_trainer(job)
    run = sft.run(trainer, job).out
    assert losses(run)[-1] < 0.6 * losses(run)[0]
    tuner = WAYS[way].get("tuner", "lora")
    config = json.loads((run / "adapter_config.json").read_text())
    assert config["peft_type"] == ("LORA" if tuner == "dora" else tuner.upper())
    assert config.get("use_dora", False) is (tuner == "dora")
    assert f"# {NAMES[tuner]} adapter" in (run / "README.md").read_text()
    ours = load(str(wide), run, device="cpu")
    found = logits(ours.model, ours)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    torch.testing.assert_close(found, logits(trained, ours), rtol=0, atol=2e-4)
    stock = logits(peft.PeftModel.from_pretrained(plain(wide), run), ours)
    torch.testing.assert_close(found, stock, rtol=0, atol=1e-5)
    merged = plain(merge(run, tmp_path / "merged", model=str(wide)))
    torch.testing.assert_close(found, logits(merged, ours), rtol=0, atol=1e-4)


def test_adalora_moves_ranks_and_its_term_counts(wide: Path, data: Path, tmp_path: Path) -> None:
    options = {**QUICK, "model": str(wide), "tuner": "adalora", "lora_r": 4, "epochs": 10, "learning_rate": 3e-2}
    job = begun("sft", data, tmp_path / "run", **{**options, "accumulate": 2, "batch_size": 4})
    trainer = make_trainer(job)
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.penalty, term = None, trainer.penalty
    without = float(trainer.compute_loss(trainer.model, dict(batch)))
    trainer.penalty = term
    weight = model.peft_config["default"].orth_reg_weight
    assert float(trainer.compute_loss(trainer.model, dict(batch))) == pytest.approx(without + float(term()), rel=1e-5)
    grams = [
        p @ p.T if "lora_A" in n else p.T @ p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n
    ]
    by_hand = weight * sum(float((gram - torch.eye(len(gram))).norm()) for gram in grams) / len(grams)
    assert float(orthogonality(model)) == pytest.approx(by_hand, rel=1e-5)
    run = sft.run(trainer, job).out
    pattern = json.loads((run / "adapter_config.json").read_text())["rank_pattern"]
    ranks = [sum(mask) for mask in pattern.values()]
    assert len(ranks) == 14 and sum(ranks) == 4 * 14, "the budget is the rank asked for, on average"
    assert len(set(ranks)) > 1, "and layers got different shares"
    shapes = {key: value.shape for key, value in load_file(run / "adapter_model.safetensors").items()}
    for name, mask in pattern.items():
        assert shapes["base_model.model." + name] == (sum(mask), 1)


@pytest.mark.parametrize(
    ("method", "way"),
    [
        *(("sft", way) for way in ("adalora", "full")),
        ("dpo", "full"),
        *(pytest.param("sft", way, marks=SLOW) for way in ("dora", "loha", "lokr", "olora", "pissa")),
        *(pytest.param("dpo", way, marks=SLOW) for way in ("adalora", "dora", "loha")),
    ],
)
def test_resume_ends_the_same(method: str, way: str, wide: Path, data: Path, pairs: Path, tmp_path: Path) -> None:
    options = {**QUICK, **WAYS.get(way, {}), "model": str(wide), "epochs": 4, "save_steps": 3, "batch_size": 8}
    if way == "full":
        options = {**options, "tuner": "full", "learning_rate": 1e-3}
        del options["lora_r"]
    module, rows_ = (sft, data) if method == "sft" else (dpo, pairs)
    whole = module.train(rows_, tmp_path / "whole", **options)
    job = begun(method, rows_, tmp_path / "cut", **options)
    trainer = module.make_trainer(job)
    trainer.add_callback(Kill(5))
    with pytest.raises(Died):
        run(trainer, job)
    resumed = module.train(rows_, tmp_path / "cut", resume=True, **options)
    assert resumed.metrics["resumed_from_step"] == 3
    name = "model.safetensors" if way == "full" else "adapter_model.safetensors"
    a, b = load_file(whole.out / name), load_file(resumed.out / name)
    assert a.keys() == b.keys()
    for key, value in a.items():
        if way == "full":
            # Two undisturbed runs differ by as much: sums over whole weights depend on where in memory they lie.
            torch.testing.assert_close(value, b[key], rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(value, b[key])


@pytest.mark.parametrize(
    ("parts", "moved"),
    [
        (None, {"language"}),
        ("vision,projector", {"vision", "projector"}),
        ("language:attention", {"language"}),
        pytest.param("projector:mlp", {"projector"}, marks=SLOW),
    ],
)
def test_full_training_moves_the_chosen_parts_alone(
    parts: str | None, moved: set[str], wide: Path, data: Path, tmp_path: Path
) -> None:
    options = {"model": str(wide), "epochs": 3, "learning_rate": 1e-3, "batch_size": 8, "progress": False}
    run = train(data, tmp_path / "run", tuner="full", **options, **({"parts": parts} if parts else {})).out
    before, after = plain(wide).state_dict(), plain(run).state_dict()
    loaded = load(str(run), device="cpu")
    modules = [name for name, _ in loaded.model.named_modules()]
    belongs = parts_of(before, loaded.family, modules)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {belongs[name] for name in changed} == moved
    recorded = json.loads((run / "vlmtrain.json").read_text())["config"]["parts"]
    assert recorded == (parts or "language") and f"`{recorded}`" in (run / "README.md").read_text()
    if parts is None:
        assert "lm_head.weight" in changed and any("embed_tokens" in name for name in changed)
        assert losses(run)[-1] < 0.7 * losses(run)[0]
    if parts == "language:attention":
        assert all(".self_attn." in name for name in changed)


def test_a_full_run_is_a_model_folder(wide: Path, data: Path, tmp_path: Path) -> None:
    options = {"model": str(wide), "max_steps": 2, "learning_rate": 1e-3, "progress": False}
    run = train(data, tmp_path / "run", tuner="full", **options).out
    assert {"config.json", "model.safetensors", "generation_config.json", "chat_template.jinja"} <= {
        path.name for path in run.iterdir()
    }
    assert not (run / "adapter_config.json").exists()
    ours = load(str(run), device="cpu")
    torch.testing.assert_close(logits(ours.model, ours), logits(plain(run), ours), rtol=0, atol=0)
    about = json.loads((run / "vlmtrain.json").read_text())
    assert about["base"] == "wide" and about["config"]["tuner"] == "full"
    assert "library_name: transformers" in (run / "README.md").read_text()
    needles = [str(tmp_path).encode(), str(wide.parent).encode()]
    for path in (p for p in run.rglob("*") if p.is_file()):
        assert not any(needle in path.read_bytes() for needle in needles), path.name
    again = train(data, tmp_path / "again", **{**options, "model": str(run)}, lora_r=4)
    assert json.loads((again.out / "vlmtrain.json").read_text())["base"] == "run"
    with pytest.raises(ConfigError, match="run is a whole model, not an adapter: give it as --model"):
        merge(run, tmp_path / "merged")
    with pytest.raises(ConfigError, match="is a whole model, not an adapter"):
        load(str(wide), run)


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=SLOW)])
def test_full_training_with_preferences(checkpointing: bool, wide: Path, pairs: Path, tmp_path: Path) -> None:
    """The reference is the model before the first step, precomputed or as a frozen copy."""
    options = {"model": str(wide), "tuner": "full", "learning_rate": 3e-5, "epochs": 2, "batch_size": 4}
    options |= {"gradient_checkpointing": checkpointing, "progress": False, "logging_steps": 1}
    for reference in ("precompute", "live"):
        run = dpo.train(pairs, tmp_path / reference, reference=reference, **options)
        entries = losses(run.out)
        assert entries[0] == pytest.approx(math.log(2), abs=1e-5) and entries[-1] < 0.6
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "precompute"), rel=1e-3)


def test_half_weights_are_trained_in_full_as_float32(wide: Path, data: Path, tmp_path: Path) -> None:
    half = load(str(wide), dtype="bfloat16", device="cpu")
    half.model.save_pretrained(tmp_path / "half")
    half.processor.save_pretrained(tmp_path / "half")
    options = {"model": str(tmp_path / "half"), "tuner": "full", "max_steps": 1, "progress": False}
    assert plain(train(data, tmp_path / "auto", **options).out).dtype == torch.float32
    assert plain(train(data, tmp_path / "asked", dtype="bfloat16", **options).out).dtype == torch.bfloat16
    assert weights_dtype(resolve("sft", {"tuner": "lora"})) == "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuner": "qlora"}, "tuner is 'qlora'; valid: lora, dora, loha, lokr, adalora, full"),
        ({"tuner": "loha", "bias": "all"}, "tuner loha has no bias, got all; it is for adalora, dora, lora"),
        ({"tuner": "lokr", "lora_dropout": 0.1}, "tuner lokr has no lora_dropout, got 0.1"),
        ({"tuner": "adalora", "rslora": True}, "tuner adalora has no rslora, got True; it is for dora, lora"),
        ({"tuner": "adalora", "init": "pissa"}, "tuner adalora has no init, got pissa"),
        ({"tuner": "full", "lora_r": 4}, "tuner full has no lora_r; parts says what is trained"),
        ({"tuner": "full", "quantize": "4bit"}, "tuner full trains the weights themselves, not 4bit ones"),
        ({"tuner": "full", "dtype": "float16"}, "tuner full cannot learn in float16 weights"),
        ({"tuner": "loha", "quantize": "4bit"}, "tuner loha cannot stand on a 4bit base: use quantize 8bit or none"),
        ({"init": "loftq"}, "init loftq makes up for what 4bit loses, quantize is none: give --quantize 4bit"),
        ({"init": "pissa", "quantize": "8bit"}, "init pissa takes its weights out of the base, which 8bit rounds"),
        ({"init": "olora", "tuner": "dora"}, "init olora changes what dora measures"),
        ({"init": "orthogonal", "lora_r": 3}, "init orthogonal needs an even lora_r, got 3"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_keys_that_would_do_nothing_are_refused(options: dict[str, Any], message: str, data: Path) -> None:
    """Before any model is looked for."""
    with pytest.raises(ConfigError, match=message):
        train(data, "/nowhere/run", model="no/such-model", progress=False, **options)


def test_a_reference_must_be_what_training_starts_from(pairs: Path) -> None:
    for init in ("pissa", "olora"):
        with pytest.raises(ConfigError, match=f"init {init} does not start at the reference of dpo"):
            dpo.train(pairs, "/nowhere/run", model="no/such-model", init=init, progress=False)


def test_biases_have_no_live_reference(base: Path, data: Path, pairs: Path, tmp_path: Path) -> None:
    live = {"bias": "lora_only", "reference": "live", "progress": False}
    with pytest.raises(ConfigError, match="bias lora_only would be trained in the reference too: reference precompute"):
        dpo.train(pairs, "/nowhere/run", model="no/such-model", **live)
    first = train(data, tmp_path / "first", model=str(base), max_steps=1, bias="all", progress=False).out
    with pytest.raises(ConfigError, match="an adapter with bias all cannot be its own reference in dpo: vlmtrain mer"):
        dpo.train(pairs, tmp_path / "no", model=str(base), adapter=str(first), progress=False)


def test_a_recipe_may_say_more_than_full_training_needs() -> None:
    config = resolve("sft", {}, sets=["tuner=full"], recipe=None)
    check_tuner(config)
    with pytest.raises(ConfigError, match="lora_alpha, lora_r; parts"):
        check_tuner(resolve("sft", {"lora_r": 4}, sets=["tuner=full", "lora_alpha=3"]))


def test_a_rank_larger_than_a_layer(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init pissa: lora_r 64 is more than .*_proj has, \d+"):
        train(data, tmp_path / "run", model=str(base), init="pissa", lora_r=64, progress=False)


def test_targets_that_match_nothing_list_what_there_is(base: Path, data: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"target_modules": "query"}, "target_modules: no module named 'query'; linear layers: .*q_proj"),
        ({"modules_to_save": "score"}, "modules_to_save: no module named 'score'; linear layers: .*linear_1"),
        ({"parts": "projector:attention"}, "the projector of this model has no attention layers; it has: mlp"),
        ({"parts": "eyes"}, "parts is 'eyes', expected PART"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(data, tmp_path / "run", model=str(base), progress=False, **options)
        if "parts" in options:
            with pytest.raises(ConfigError, match=message):
                train(data, tmp_path / "run", model=str(base), progress=False, tuner="full", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tuner", ["adalora", *(pytest.param(t, marks=SLOW) for t in ("loha", "dora", "lokr"))])
def test_an_adapter_of_any_kind_is_trained_further(
    tuner: str, wide: Path, data: Path, pairs: Path, tmp_path: Path
) -> None:
    first = train(data, tmp_path / "first", model=str(wide), tuner=tuner, max_steps=3, **QUICK).out
    rest = {"model": str(wide), **{key: value for key, value in QUICK.items() if key != "lora_r"}}
    if tuner == "adalora":
        with pytest.raises(
            ConfigError, match="an adapter with adalora cannot be its own reference in dpo: vlmtrain merge"
        ):
            dpo.train(pairs, tmp_path / "no", adapter=str(first), **rest)
        second = train(data, tmp_path / "more", adapter=str(first), max_steps=3, **rest).out
        assert losses(second)[-1] < losses(first)[-1]
    else:
        for reference in ("live", "precompute"):
            more = {"adapter": str(first), "max_steps": 2, "reference": reference, **rest}
            second = dpo.train(pairs, tmp_path / reference, **more).out
            # TRL's own copy of such an adapter is none: it would start elsewhere.
            assert losses(second)[0] == pytest.approx(math.log(2), abs=1e-4)
    about = json.loads((second / "vlmtrain.json").read_text())["config"]
    assert about["tuner"] == tuner and about["lora_r"] == 8
    a, b = (load_file(run / "adapter_model.safetensors") for run in (first, second))
    assert a.keys() == b.keys() and any(not torch.equal(a[key], b[key]) for key in a)
    load(str(wide), second, device="cpu")


def test_trl_still_does_not_copy_every_adapter() -> None:
    """When this fails, ``complete_reference_copy`` can go."""
    import inspect

    import trl

    assert 'if ".default." in name:' in inspect.getsource(trl.DPOTrainer.__init__)
    assert "create_model_from_path(ref_model_path" in inspect.getsource(trl.DPOTrainer.__init__)
