"""Good and bad answers end to end on TRL's KTOTrainer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from peft import set_peft_model_state_dict
from run_files import logged, weights
from safetensors.torch import load_file

from vlmdata.errors import ConfigError, DataError
from vlmtrain import family as families
from vlmtrain import sft
from vlmtrain.collate import Collator
from vlmtrain.config import resolve
from vlmtrain.kto import make_trainer, train
from vlmtrain.model import Loaded, load
from vlmtrain.runs import RunResult
from vlmtrain.training import begin
from vlmtrain.unpaired import Partners, UnpairedCollator

ADAPTER = "adapter_model.safetensors"
QUICK: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "progress": False, "logging_steps": 1}
TEXT = rows.preference("text", [rows.user("Say yes.")], "Yes.", "No, it is blue.", [])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "pairs", [*rows.pairs(20), TEXT], files=2)


@pytest.fixture(scope="module")
def liked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single answers, two of three good."""
    return rows.write(tmp_path_factory.mktemp("data") / "liked", judged(18))


def judged(number: int) -> list[dict[str, Any]]:
    made = []
    for index, row in enumerate(rows.colours(number)):
        good = index % 3 > 0
        answer = row["messages"][1] if good else rows.assistant("It is a circle, I think.")
        made.append({**row, "messages": [row["messages"][0], answer], "meta": json.dumps({"liked": good})})
    return made


def trainer_for(data: Path, base: Path, out: Path, **options: Any) -> Any:
    job = begin("kto", data=[data], out=out, progress=False, options={"model": str(base), "batch_size": 4, **options})
    assert not isinstance(job, RunResult)
    return make_trainer(job)


FEW = ("llava", "qwen2_vl")
MORE = [name for name in families.names() if families.load(name).task == "text" and name not in FEW]


@pytest.mark.parametrize("family", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_every_way_is_the_same_training(
    family: str, model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    """Fast (reference once, image once, compact head) and plain TRL: same losses, same adapter; and it learns."""
    options = {"model": str(model_folder(family)), "epochs": 2, **QUICK}
    result = train(data, tmp_path / "fast", **options)
    plain = {"reference": "live", "share_features": False, "compact_head": False}
    train(data, tmp_path / "plain", **plain, **options)
    entries, others = logged(tmp_path / "fast"), logged(tmp_path / "plain")
    assert entries[0]["loss"] == pytest.approx(0.5, abs=1e-4), "1 - sigmoid(0): the policy starts as the reference"
    for key in ("loss", "reward_margin", "kl"):
        found, expected = ([entry[key] for entry in side] for side in (entries, others))
        assert found == pytest.approx(expected, rel=1e-3, abs=2e-4)
    assert sum(entry["reward_margin"] for entry in entries[-4:]) / 4 > 0.02
    assert sum(entry["reward_accuracy"] for entry in entries[-4:]) / 4 > 0.75
    for key, value in weights(tmp_path / "fast").items():
        torch.testing.assert_close(value, weights(tmp_path / "plain")[key], rtol=1e-2, atol=1e-4)
    about = json.loads((tmp_path / "fast" / "vlmtrain.json").read_text())
    assert about["method"] == "kto" and about["config"]["desirable_weight"] == 1.0
    assert result.metrics["rows"]["kept"] == 21
    assert "Kahneman-Tversky" in (tmp_path / "fast" / "README.md").read_text()


def summed(model: Any, collate: Collator, made: list[dict[str, Any]]) -> torch.Tensor:
    batch = collate(made)
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (logps * (labels >= 0)).sum(1)


@pytest.mark.parametrize("kind", ["pairs", "single"])
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_the_loss_is_the_formula(
    kind: str, loss_type: str, base: Path, data: Path, liked: Path, tmp_path: Path
) -> None:
    """Equation 7 of the paper from plain forwards of base and policy, which likes all that is said a bit better."""
    options = {"beta": 0.4, "desirable_weight": 0.8, "undesirable_weight": 1.3, "loss_type": loss_type}
    options |= {"label_by": "liked"} if kind == "single" else {}
    source = data if kind == "pairs" else liked
    trainer = trainer_for(source, base, tmp_path / "run", **options)
    # An adapter tuned on such answers, so that the KL term is above 0, below which it is cut off.
    tuned = load_file(sft.train(liked, tmp_path / "sft", model=str(base), max_steps=2, **QUICK).out / ADAPTER)
    set_peft_model_state_dict(trainer.model, tuned)
    trainer.model.eval()
    made = [dict(row) for row in trainer.train_dataset][:4]
    batch = trainer.data_collator(made)
    found = trainer.compute_loss(trainer.model, dict(batch)).item()
    partners = trainer.data_collator.collate.partners
    assert (partners is None) is (loss_type != "kto")
    fresh = load(str(base), device="cpu")
    collate = Collator(fresh.processor, fresh.family)
    known = {row["id"]: row for row in [*rows.pairs(20), TEXT, *judged(18)]}
    own, mixed, good = [], [], []
    for side in ("chosen", "rejected") if kind == "pairs" else (None,):
        for row in made:
            prompt, answer = split(known[row["id"]], side)
            own.append({"id": row["id"], "images": row["images"], "messages": prompt + answer})
            good.append(side == "chosen" if side else json.loads(row["meta"])["liked"])
            if partners is not None:
                other = known[partners.of(row["row"])["id"]]
                mixed.append({**own[-1], "messages": prompt + split(other, side)[1]})
    reward = summed(trainer.model, collate, own) - summed(fresh.model, collate, own)
    kl = torch.zeros(())
    if mixed:
        kl = (summed(trainer.model, collate, mixed) - summed(fresh.model, collate, mixed)).mean()
        assert kl > 0.1
    losses = [
        0.8 * (1 - torch.sigmoid(0.4 * (value - kl))) if label else 1.3 * (1 - torch.sigmoid(0.4 * (kl - value)))
        for value, label in zip(reward, good, strict=True)
    ]
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert batch["label"].tolist() == good
    assert reward.abs().max() > 1e-2


def split(row: dict[str, Any], side: str | None) -> tuple[list[Any], list[Any]]:
    return (row["prompt"], row[side]) if side else (row["messages"][:-1], row["messages"][-1:])


def test_partners_ask_something_else(data: Path, liked: Path, base: Path, tmp_path: Path) -> None:
    """Among all rows, by seed, whatever rows share a batch; rows that only repeat a question are no partners."""
    made = [*rows.pairs(8), *({**row, "id": f"again-{row['id']}"} for row in rows.pairs(8))]
    folder = rows.write(tmp_path / "data", made)
    job = begin("kto", data=[folder], out=tmp_path / "run", progress=False, options={"model": str(base)})
    assert not isinstance(job, RunResult)
    first, same, other = (Partners([job.rows], seed) for seed in (0, 0, 1))
    assert first.places == same.places != other.places
    asked = {row["row"]: json.dumps([row["prompt"], row["image_sha256"]]) for row in job.rows.remove_columns("images")}
    assert sorted(first.places) == sorted(asked)
    for row, question in asked.items():
        assert asked[first.of(row)["row"]] != question
    assert len({first.of(row)["row"] for row in asked}) > len(asked) / 2, "not one partner for all"
    alike = rows.write(tmp_path / "alike", [{**row, "id": str(n)} for n, row in enumerate(rows.pairs(1) * 3)])
    with pytest.raises(DataError, match="all 3 ask the same: loss_type apo_zero_unpaired does without"):
        train(alike, tmp_path / "no", model="no/such-model", **QUICK)
    both = begin(
        "kto", data=[folder], eval_data=[alike], out=tmp_path / "both", progress=False, options={"model": str(base)}
    )
    assert not isinstance(both, RunResult)
    partners = Partners([both.rows, both.eval_rows], 0)
    trained = set(both.rows["row"])
    for row in both.eval_rows.remove_columns("images"):
        assert partners.of(row["row"])["row"] in trained
        assert partners.of(row["row"])["chosen"] != row["chosen"]
    train(alike, tmp_path / "yes", model=str(base), loss_type="apo_zero_unpaired", max_steps=1, **QUICK)


def test_batches(loaded: Loaded, data: Path) -> None:
    """Every family: answers as TRL takes them, mismatched ones beside them, images once."""
    made = [{**row, "row": place, "image_scale": 1.0} for place, row in enumerate([*rows.pairs(2), TEXT])]

    class Next:
        def of(self, row: int) -> dict[str, Any]:
            return made[(row + 1) % 3]

    partners: Any = Next()
    collate = UnpairedCollator(loaded.processor, loaded.family, partners, limit=None, label_by=None)
    batch = collate(made)
    assert batch["label"].tolist() == [True] * 3 + [False] * 3
    tokenizer = loaded.processor.tokenizer

    def answers(prefix: str) -> list[str]:
        masks, ids = batch[f"{prefix}completion_mask"], batch[f"{prefix}input_ids"]
        assert masks.shape == ids.shape == batch[f"{prefix}attention_mask"].shape
        said = (row[mask.bool()] for row, mask in zip(ids, masks, strict=True))
        return [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said]

    own = ["It is red.", "It is blue.", "Yes.", "It is blue, a circle.", "It is green, a circle.", "No, it is blue."]
    assert answers("") == own
    assert answers("KL_") == [own[1], own[2], own[0], own[4], own[5], own[3]]
    plain = Collator(loaded.processor, loaded.family)
    pixels = plain([{**row, "messages": [*row["prompt"], *row["chosen"]]} for row in made])["pixel_values"]
    assert torch.equal(batch["pixel_values"], pixels), "those of three rows for six answers"
    short = UnpairedCollator(loaded.processor, loaded.family, partners, limit=9, label_by=None)(made)
    assert short["KL_input_ids"].shape[1] == 9 < batch["KL_input_ids"].shape[1]
    assert short["input_ids"].shape == batch["input_ids"].shape


def test_single_answers_with_labels(
    base: Path, liked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": str(base), "label_by": "liked", "epochs": 6, "eval_data": [liked], **QUICK}
    result = train(liked, tmp_path / "run", **{**options, "progress": True})
    entries = [entry for entry in logged(tmp_path / "run") if "loss" in entry]
    assert entries[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert result.metrics["eval"]["eval_loss"] < 0.45
    assert result.metrics["eval"]["eval_reward_margin"] > 0.02
    assert "labels 12 good, 6 bad; the paper would set undesirable_weight to about 2" in capsys.readouterr().err


def test_an_adapter_is_trained_further_and_stays_one(base: Path, data: Path, tmp_path: Path) -> None:
    colours = rows.write(tmp_path / "colours", rows.colours(8))
    tuned = sft.train(colours, tmp_path / "sft", model=str(base), batch_size=4, progress=False).out
    options = {"model": str(base), "adapter": str(tuned), "max_steps": 2, **QUICK, "learning_rate": 0.0}
    for reference in ("precompute", "live"):
        train(data, tmp_path / reference, reference=reference, **options)
        before, after = weights(tuned), weights(tmp_path / reference)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert not [path for path in (tmp_path / reference).rglob("ref") if path.is_dir()]
        assert logged(tmp_path / reference)[0]["loss"] == pytest.approx(0.5, abs=1e-4)


def test_a_killed_run_goes_on_the_same(base: Path, data: Path, tmp_path: Path) -> None:
    options = {"model": str(base), "max_steps": 4, "save_steps": 2, **QUICK}
    train(data, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed" / "vlmtrain.json").unlink()
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "checkpoint-4")
    result = train(data, tmp_path / "killed", resume=True, **options)
    assert result.metrics["resumed_from_step"] == 2
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_cannot_be(base: Path, data: Path, liked: Path, tmp_path: Path) -> None:
    nowhere = {"model": "no/such-model", **QUICK}
    with pytest.raises(DataError, match="holds messages rows, expected preference"):
        train(liked, tmp_path / "run", **nowhere)
    with pytest.raises(DataError, match="holds preference rows, expected messages"):
        train(data, tmp_path / "run", label_by="liked", **nowhere)
    with pytest.raises(DataError, match="label_by good: 18 of 18 rows cannot be used: 'row-0': good is missing"):
        train(liked, tmp_path / "run", label_by="good", **nowhere)
    with pytest.raises(ConfigError, match="batch_size 1 is too few for loss_type kto"):
        resolve("kto", {"batch_size": 1})
    resolve("kto", {"batch_size": 1, "loss_type": "apo_zero_unpaired"})
    with pytest.raises(ConfigError, match="both 0"):
        resolve("kto", {"desirable_weight": 0, "undesirable_weight": 0})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(bases: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """A family whose tokens have types of their own: what belongs to mismatched answers goes with them."""
    options = ["kto", "--data", str(data), "--model", str(bases["qwen2_vl"]), "--max-steps", "3"]
    options += ["--learning-rate", "1e-3", "--set", "logging_steps=1"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "vlmtrain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, how, size in (("one", ["-m", "vlmtrain"], "4"), ("two", launch, "2")):
        command = [sys.executable, *how, *options, "--out", str(tmp_path / name), "--batch-size", size]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    one, two = (logged(tmp_path / name) for name in ("one", "two"))
    for key in ("loss", "grad_norm", "reward_margin", "kl"):
        assert [entry[key] for entry in one] == pytest.approx([entry[key] for entry in two], rel=1e-4, abs=1e-5)
