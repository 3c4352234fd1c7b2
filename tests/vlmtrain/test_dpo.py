"""Preference training end to end on TRL's DPOTrainer."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from run_files import weights

from vlmdata.errors import ConfigError, DataError
from vlmtrain import sft
from vlmtrain.collate import Collator
from vlmtrain.config import resolve
from vlmtrain.dpo import make_trainer, train
from vlmtrain.forwards import Recorder
from vlmtrain.keys import LOSSES
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


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", pytest.param("idefics3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("start", ["base", "sft"])
def test_every_way_is_the_same_training(
    family: str, start: str, bases: dict[str, Path], tuned: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Fast (reference once, image once, prompt once, compact head) and plain TRL: same losses, same adapter."""
    adapter = {"adapter": str(tuned[family])} if start == "sft" else {}
    options = {"model": str(bases[family]), "epochs": 2, **adapter, **QUICK}
    plain = {"reference": "live", "share_features": False, "share_prefix": False, "compact_head": False}
    fast = train(data, tmp_path / "fast", **options)
    train(data, tmp_path / "plain", **plain, **options)
    entries, others = logged(tmp_path / "fast"), logged(tmp_path / "plain")
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the policy starts as the reference"
    assert entries[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert sum(entry["reward_margin"] for entry in entries[-4:]) / 4 > 0.05
    assert sum(entry["reward_accuracy"] for entry in entries[-4:]) / 4 > 0.75
    for key, first in (("loss", 0), ("reward_margin", 0), ("reward_accuracy", 1)):
        # Before the first step all rewards are 0 but for rounding, so which is larger says nothing.
        found, expected = ([entry[key] for entry in side[first:]] for side in (entries, others))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
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
    found = trainer.data_collator.collate.reference
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
    """However many pairs show it; else four times a pair, for both answers and both models."""
    counts = {}
    for shared in (True, False):
        options = {"reference": "live", "share_features": shared, "share_prefix": shared, "max_steps": 1}
        trainer = make_trainer(job_for(data, base, tmp_path / str(shared), **options))
        seen: list[int] = []
        tower = trainer.model.get_base_model().model.vision_tower
        tower.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
        trainer.train()
        counts[shared] = sum(seen)
    images = trainer.train_dataset["image_sha256"]
    assert counts == {True: len({images[row][0] for row in itertools.islice(trainer.sampler, 4)}), False: 4 * 4}


def test_tower_with_lora_keeps_its_graph(base: Path, data: Path, tmp_path: Path) -> None:
    parts = {"parts": "vision,projector:attention,mlp", "max_steps": 2}
    with pytest.raises(ConfigError, match="projector"):
        train(data, tmp_path / "no", model=str(base), parts="projector:attention", **QUICK)
    train(data, tmp_path / "run", model=str(base), **parts, **QUICK)
    assert any("vision_tower" in key and value.abs().max() > 0 for key, value in weights(tmp_path / "run").items())


LN2 = math.log(2)
# The loss at the first step, where all log-ratios are 0; beta is 0.5.
FIRST = {
    "sigmoid": LN2,
    "hinge": 1.0,
    "ipo": 1.0,
    "exo_pair": 0.5 * (math.log(0.5 / 0.9) + math.log(0.5 / 0.1)),
    "nca_pair": 2 * LN2,
    "robust": LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 2.0,
    "aot": LN2,
    "aot_unpaired": LN2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * LN2 + 0.5,
    "sigmoid_norm": LN2,
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "few", rows.pairs(4))


def run_losses(data: Path, out: Path, base: Path, steps: int = 2, **options: Any) -> list[float]:
    train(data, out, model=str(base), max_steps=steps, **options, **QUICK)
    return [float(entry["loss"]) for entry in logged(out)]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_trl(loss: str, base: Path, few: Path, tmp_path: Path) -> None:
    """For real: the first value where it is known, finite ones and weights that moved after it."""
    smoothing = {"label_smoothing": 0.1} if loss in ("robust", "exo_pair", "aot", "aot_unpaired") else {}
    found = run_losses(few, tmp_path / "run", base, loss_type=loss, beta=0.5, **smoothing)
    assert all(map(math.isfinite, found))
    if loss == "sft":
        assert found[0] > 1, "of a random model"
    else:
        assert found[0] == pytest.approx(FIRST[loss], abs=1e-3)
    assert any("lora_B" in key and value.abs().max() > 0 for key, value in weights(tmp_path / "run").items())


def test_losses_are_added_with_their_weights(base: Path, few: Path, tmp_path: Path) -> None:
    """MPO (https://arxiv.org/abs/2411.10442): 0.8 preference, 0.2 quality, 1 generation."""
    likelihood = run_losses(few, tmp_path / "sft", base, 1, loss_type="sft")[0]
    three = run_losses(few, tmp_path / "mpo", base, 1, loss_type="sigmoid,bco_pair,sft", loss_weights="0.8,0.2,1")[0]
    assert three == pytest.approx(0.8 * LN2 + 0.2 * 2 * LN2 + likelihood, rel=1e-4)


def test_divergences_weighting_and_tau(base: Path, few: Path, tmp_path: Path) -> None:
    """A policy moved away from its reference: the losses are the formulas of their papers in its log-ratios."""
    sigmoid = torch.nn.functional.logsigmoid
    log_ratios: list[torch.Tensor] = []

    def loss(name: str, **options: Any) -> float:
        trainer = make_trainer(job_for(few, base, tmp_path / name, beta=0.5, **options))
        generator = torch.Generator().manual_seed(0)
        for key, value in trainer.model.named_parameters():
            if "lora_B" in key:
                value.data.normal_(0, 0.02, generator=generator)
        batch = trainer.data_collator(list(trainer.train_dataset))
        if not log_ratios:
            recorder = Recorder(trainer.model)
            trainer.compute_loss(recorder, dict(batch))
            now = recorder.outputs[0].log_probs.detach().sum(1).chunk(2)
            log_ratios.extend([now[0] - batch["ref_chosen_logps"], now[1] - batch["ref_rejected_logps"]])
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, batch))

    def of(score: Any) -> float:
        return float(-sigmoid(0.5 * (score(chosen) - score(rejected))).mean())

    plain = loss("plain")
    chosen, rejected = log_ratios
    assert plain == pytest.approx(of(lambda ratio: ratio), rel=1e-4)
    forward = loss("forward", f_divergence_type="forward_kl")
    assert forward == pytest.approx(of(lambda ratio: 1 - (-ratio).exp()), rel=1e-4)
    assert loss("js", f_divergence_type="js_divergence") == pytest.approx(of(sigmoid), rel=1e-4)
    alpha = loss("alpha", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=2.0)
    assert alpha == pytest.approx(of(lambda ratio: ratio.exp() - 1), rel=1e-4)
    margin = 0.5 * (chosen - rejected)
    share = torch.sigmoid(margin / 5.0)
    tau = ((1 - share) * -sigmoid(margin) + share * (-margin).exp()).mean()
    assert loss("tau", loss_type="discopop", discopop_tau=5.0) == pytest.approx(float(tau), rel=1e-4)
    assert 0 < loss("weighted", use_weighting=True) < 0.9 * plain, "weights are below 1"


def test_ld_alpha_counts_what_both_answers_have(base: Path, few: Path, tmp_path: Path) -> None:
    """Log-probabilities of the longer answer's surplus tokens weigh ld_alpha, under the reference, too."""
    found = {}
    for alpha in (None, 1.0, 0.25, 0.0):
        trainer = make_trainer(job_for(few, base, tmp_path / str(alpha), ld_alpha=alpha))
        found[alpha] = trainer.data_collator.collate.reference
    for row, (chosen, rejected) in found[None].items():
        assert found[1.0][row] == pytest.approx((chosen, rejected), rel=1e-5)
        assert found[0.0][row][0] == pytest.approx(chosen, rel=1e-5), "the shorter one"
        assert found[0.25][row][1] == pytest.approx(0.25 * rejected + 0.75 * found[0.0][row][1], rel=1e-5)
        assert rejected < found[0.0][row][1] - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing does nothing for sigmoid; losses with it: robust, exo_pair"),
        ({"discopop_tau": 1}, "discopop_tau does nothing without loss_type discopop"),
        ({"f_alpha_divergence_coef": 2}, "does nothing without f_divergence_type alpha_divergence"),
        ({"loss_type": "bco_pair", "f_divergence_type": "forward_kl"}, "forward_kl does not go with bco_pair; valid: "),
        ({"loss_type": "aot", "use_weighting": True}, "use_weighting does not go with aot and aot_unpaired"),
        ({"loss_type": "ipo", "beta": 0}, "divide by beta, which is 0"),
        ({"rpo_alpha": 1.0}, "unknown key 'rpo_alpha'; loss_type=sigmoid,sft with loss_weights=1,ALPHA is that loss"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("dpo", options)


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
