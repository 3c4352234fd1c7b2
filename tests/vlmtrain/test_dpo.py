"""Preference training end to end on TRL's DPOTrainer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from safetensors.torch import load_file

from vlmdata.errors import ConfigError, DataError
from vlmtrain import sft
from vlmtrain.collate import Collator
from vlmtrain.dpo import make_trainer, train
from vlmtrain.model import load
from vlmtrain.runs import RunResult
from vlmtrain.training import begin

QUICK: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "progress": False, "logging_steps": 1}
TEXT = rows.preference("text", [rows.user("Say yes.")], "Yes.", "No, it is blue.", [])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "pairs", [*rows.pairs(24), TEXT], files=2)


@pytest.fixture(scope="module")
def tuned(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An SFT run of every family."""
    folder = tmp_path_factory.mktemp("sft")
    colours = rows.write(folder / "colours", rows.colours(16))
    options = {"epochs": 2, "batch_size": 4, "learning_rate": 3e-3, "progress": False}
    return {name: sft.train(colours, folder / name, model=str(base), **options).out for name, base in bases.items()}


def logged(run: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter_model.safetensors")


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3"])
@pytest.mark.parametrize("start", ["base", "sft"])
def test_every_way_is_the_same_training(
    family: str, start: str, bases: dict[str, Path], tuned: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Fast (reference once, image once, compact head) and plain TRL: same losses, same adapter."""
    adapter = {"adapter": str(tuned[family])} if start == "sft" else {}
    options = {"model": str(bases[family]), "epochs": 2, **adapter, **QUICK}
    plain = {"reference": "live", "share_features": False, "compact_head": False}
    fast = train(data, tmp_path / "fast", **options)
    train(data, tmp_path / "plain", **plain, **options)
    entries, others = logged(tmp_path / "fast"), logged(tmp_path / "plain")
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the policy starts as the reference"
    assert entries[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert sum(entry["reward_margin"] for entry in entries[-4:]) / 4 > 0.05
    assert sum(entry["reward_accuracy"] for entry in entries[-4:]) / 4 > 0.75
    for key in ("loss", "reward_margin", "reward_accuracy"):
        assert [e[key] for e in entries] == pytest.approx([e[key] for e in others], rel=1e-3, abs=1e-4)
    a, b = weights(tmp_path / "fast"), weights(tmp_path / "plain")
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-2, atol=1e-4)
    assert fast.metrics["final"]["reward_margin"] == entries[-1]["reward_margin"]


@pytest.mark.parametrize("reference", ["precompute", "live"])
def test_one_standalone_adapter_on_the_base(
    reference: str, base: Path, tuned: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """It holds SFT and DPO; nothing of the reference stays, in memory or on disk."""
    out = tmp_path / "dpo"
    options = {"model": str(base), "adapter": str(tuned["llava"]), "max_steps": 2, "save_steps": 1, **QUICK}
    train(data, out, reference=reference, **{**options, "learning_rate": 0.0})
    assert not [path for path in out.rglob("ref") if path.is_dir()]
    before, after = weights(tuned["llava"]), weights(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "nothing learned: the SFT adapter itself"
    about = json.loads((out / "vlmtrain.json").read_text())
    assert about["method"] == "dpo" and about["base"] == base.name and about["adapter"]["name"] == "llava"
    loaded = load(str(base), out, device="cpu")
    assert list(loaded.model.peft_config) == ["default"]


def job_for(data: Path, base: Path, out: Path, **options: Any) -> Any:
    job = begin("dpo", data=[data], out=out, progress=False, options={"model": str(base), "batch_size": 4, **options})
    assert not isinstance(job, RunResult)
    return job


def test_reference_log_probabilities_are_those_of_the_answers(
    base: Path, tuned: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Computed by hand: log-softmax of the SFT model at the tokens of chosen and rejected."""
    trainer = make_trainer(job_for(data, base, tmp_path / "run", adapter=str(tuned["llava"])))
    model = load(str(base), tuned["llava"], device="cpu")
    collate = Collator(model.processor, model.family)
    found = trainer.data_collator.reference
    assert len(found) == len(trainer.train_dataset) == 25
    for row in trainer.train_dataset:
        for number, side in enumerate(("chosen", "rejected")):
            plain = {"id": row["id"], "images": row["images"], "messages": [*row["prompt"], *row[side]]}
            batch = collate([plain])
            with torch.no_grad():
                logits = model.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0, :-1]
            labels = batch["labels"][0, 1:]
            logps = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
            assert found[row["row"]][number] == pytest.approx(float(logps[labels >= 0].sum()), abs=2e-3)


def test_frozen_tower_sees_each_image_once_a_step(base: Path, data: Path, tmp_path: Path) -> None:
    counts = {}
    for shared in (True, False):
        trainer = make_trainer(
            job_for(data, base, tmp_path / str(shared), reference="live", share_features=shared, max_steps=1)
        )
        seen: list[int] = []
        tower = trainer.model.get_base_model().model.vision_tower
        tower.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
        trainer.train()
        counts[shared] = sum(seen)
    assert counts[False] == 4 * counts[True] > 0


def test_tower_with_lora_keeps_its_graph(base: Path, data: Path, tmp_path: Path) -> None:
    parts = {"parts": "vision,projector:attention,mlp", "max_steps": 2}
    with pytest.raises(ConfigError, match="projector"):
        train(data, tmp_path / "no", model=str(base), parts="projector:attention", **QUICK)
    train(data, tmp_path / "run", model=str(base), **parts, **QUICK)
    assert any("vision_tower" in key and value.abs().max() > 0 for key, value in weights(tmp_path / "run").items())


def test_losses_and_their_weights(base: Path, data: Path, tmp_path: Path) -> None:
    def first(out: str, **options: Any) -> float:
        train(data, tmp_path / out, model=str(base), max_steps=1, **options, **QUICK)
        return float(logged(tmp_path / out)[0]["loss"])

    assert first("hinge", loss_type="hinge") == pytest.approx(1.0, abs=1e-4)
    assert first("ipo", loss_type=["ipo"], beta=0.5) == pytest.approx(1.0, abs=1e-3)
    likelihood = first("sft", loss_type="sft")
    both = first("both", loss_type="sigmoid,sft", loss_weights=[1.0, 0.5])
    assert both == pytest.approx(math.log(2) + 0.5 * likelihood, rel=1e-4)


def test_evaluation_rows_have_their_own_reference(base: Path, data: Path, tmp_path: Path) -> None:
    held = rows.write(tmp_path / "held", rows.pairs(6))
    result = train(data, tmp_path / "run", model=str(base), eval_data=[held], **{**QUICK, "learning_rate": 0.0})
    assert result.metrics["eval"]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.metrics["rows"]["eval"]["kept"] == 6
    with pytest.raises(ConfigError, match="exclude each other"):
        train(data, tmp_path / "no", model=str(base), eval_data=[held], eval_fraction=0.1, **QUICK)


def test_messages_are_not_preferences(base: Path, tmp_path: Path) -> None:
    colours = rows.write(tmp_path / "colours", rows.colours(4))
    with pytest.raises(DataError, match="holds messages rows, expected preference: train on it with vlmtrain sft"):
        train(colours, tmp_path / "run", model=str(base), **QUICK)
