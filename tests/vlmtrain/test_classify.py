"""Image classification end to end: transformers' Trainer, tiny random models, really converted pictures."""

from __future__ import annotations

import json
from pathlib import Path

import labelled_rows
import pytest
import torch
from killed import killed_after
from labelled_rows import CLASSES, QUICK
from run_files import logged, same, weights
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from vlmdata.errors import ConfigError
from vlmtrain import classify
from vlmtrain.merge import merge
from vlmtrain.model import load
from vlmtrain.runs import RunResult

data = labelled_rows.shards("train", 8)
held = labelled_rows.shards("held", 3, seed=9)


@pytest.fixture(scope="module")
def trained(vit: Path, data: Path, held: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    out = tmp_path_factory.mktemp("runs") / "run"
    return classify.train(data, out, eval_data=[held], model=str(vit), epochs=12, **QUICK)


def test_it_learns_and_says_how_well(trained: RunResult) -> None:
    entries = logged(trained.out)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    evaluated = [entry for entry in entries if "eval_loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert len(evaluated) == 12, "one evaluation an epoch"
    best = max(entry["eval_accuracy"] for entry in evaluated)
    assert best > 0.8 and all(0 <= entry["eval_f1_macro"] <= 1 for entry in evaluated)
    assert all(entry["eval_top5"] >= entry["eval_accuracy"] for entry in evaluated)
    assert all("images_per_second" in entry for entry in entries if "loss" in entry)
    assert trained.metrics["eval"]["eval_accuracy"] == best and "images_per_second" in trained.metrics


def test_the_best_weights_are_kept_with_their_details(trained: RunResult, vit: Path, held: Path) -> None:
    evaluated = [entry for entry in logged(trained.out) if "eval_loss" in entry]
    best = max(evaluated, key=lambda entry: (entry["eval_accuracy"], -entry["step"]))
    details = json.loads((trained.out / "eval.json").read_text())
    assert (details["step"], details["accuracy"], details["n"]) == (best["step"], best["eval_accuracy"], 18)
    assert [row["name"] for row in details["classes"]] == list(CLASSES)
    assert sum(row["n"] for row in details["classes"]) == 18
    wrong = sum(confusion["n"] for confusion in details["confusions"])
    assert wrong == round(18 * (1 - details["accuracy"]))
    loaded = load(str(vit), trained.out, device="cpu")
    pixels, labels = labelled_rows.batch(loaded.processor, held)
    assert (labelled_rows.logits(loaded.model, pixels).argmax(-1) == labels).float().mean().item() == pytest.approx(
        best["eval_accuracy"]
    )


def test_the_run_loads_in_plain_peft_and_transformers(trained: RunResult, vit: Path, held: Path) -> None:
    from peft import PeftModel

    ours = load(str(vit), trained.out, device="cpu")
    config = AutoConfig.from_pretrained(trained.out)
    assert [config.id2label[i] for i in range(6)] == list(CLASSES) and config.label2id["grey"] == CLASSES.index("grey")
    processor = AutoImageProcessor.from_pretrained(trained.out)
    pixels, _ = labelled_rows.batch(processor, held)
    expected = labelled_rows.logits(ours.model, pixels)
    # As PEFT's guide loads it, with names it is told; and with the names of the run.
    told = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    for known in (told, {"config": config}):
        base = AutoModelForImageClassification.from_pretrained(vit, ignore_mismatched_sizes=True, **known)
        plain = PeftModel.from_pretrained(base, trained.out)
        torch.testing.assert_close(labelled_rows.logits(plain, pixels), expected, atol=1e-6, rtol=0)
        assert plain.config.id2label[0] == CLASSES[0]


def test_a_merged_classifier_is_the_same_model(trained: RunResult, vit: Path, held: Path, tmp_path: Path) -> None:
    ours = load(str(vit), trained.out, device="cpu")
    folder = merge(trained.out, tmp_path / "merged", model=str(vit))
    plain = AutoModelForImageClassification.from_pretrained(folder)
    pixels, _ = labelled_rows.batch(AutoImageProcessor.from_pretrained(folder), held)
    torch.testing.assert_close(
        labelled_rows.logits(plain, pixels), labelled_rows.logits(ours.model, pixels), atol=1e-5, rtol=0
    )
    assert plain.config.id2label[5] == CLASSES[5]
    # The merged model tells these classes apart, so its head can be trained on.
    assert load(str(folder), device="cpu", labels=CLASSES, trainable=True).new_head is False


def test_the_run_folder_tells_what_it_is(trained: RunResult, vit: Path) -> None:
    about = json.loads((trained.out / "vlmtrain.json").read_text())
    assert (about["method"], about["family"], about["base"]) == ("classify", "vit", "vit")
    keys = weights(trained.out)
    layers = {key.split(".")[-3] for key in keys if "lora_A" in key}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {key.rpartition(".")[0] for key in keys if "lora" not in key} == {"base_model.model.classifier"}
    card = (trained.out / "README.md").read_text()
    assert "image classification" in card and "images/s" in card and "accuracy" in card
    for name in ("config.json", "adapter_config.json", "vlmtrain.json", "eval.json", "metrics.json", "README.md"):
        assert str(vit.parent) not in (trained.out / name).read_text(), name


def test_killed_and_resumed_is_undisturbed(vit: Path, data: Path, held: Path, tmp_path: Path) -> None:
    options = {**QUICK, "model": str(vit), "epochs": 3, "accumulate": 2, "save_steps": 2, "eval_data": [held]}
    whole = classify.train(data, tmp_path / "whole", **options)
    with killed_after(classify, 5):
        classify.train(data, tmp_path / "killed", **options)
    resumed = classify.train(data, tmp_path / "killed", **options, resume=True)
    assert resumed.metrics["resumed_from_step"] == 4
    assert same(whole.out, resumed.out)
    assert json.loads((whole.out / "eval.json").read_text()) == json.loads((resumed.out / "eval.json").read_text())
    assert classify.train(data, tmp_path / "killed", **options, resume=True).metrics == resumed.metrics


def test_workers_change_nothing(vit: Path, data: Path, tmp_path: Path) -> None:
    runs = [
        classify.train(data, tmp_path / str(workers), model=str(vit), max_steps=3, workers=workers, **QUICK).out
        for workers in (0, 2)
    ]
    assert same(*runs)


def test_a_step_is_the_mean_of_its_pictures_however_they_are_batched(vit: Path, data: Path, tmp_path: Path) -> None:
    """The last step of the pass, too, which is smaller, with batches of different size in it."""
    options = {**QUICK, "model": str(vit), "epochs": 1, "lora_dropout": 0.0, "logging_steps": 1}
    runs = []
    for size, accumulate in ((40, 1), (10, 4), (8, 5)):
        runs.append(
            classify.train(data, tmp_path / str(size), **{**options, "batch_size": size, "accumulate": accumulate})
        )
    losses = [[entry["loss"] for entry in logged(run.out) if "loss" in entry] for run in runs]
    assert all(len(one) == 2 for one in losses)
    for other, result in zip(losses[1:], runs[1:], strict=True):
        assert other == pytest.approx(losses[0], rel=1e-5)
        for key, value in weights(runs[0].out).items():
            torch.testing.assert_close(value, weights(result.out)[key], atol=2e-3, rtol=1e-2)


def test_an_adapter_is_trained_further(trained: RunResult, vit: Path, data: Path, held: Path, tmp_path: Path) -> None:
    options = {**QUICK, "lora_dropout": None, "learning_rate": 1e-6, "model": str(vit), "adapter": str(trained.out)}
    result = classify.train(data, tmp_path / "more", max_steps=1, eval_data=[held], **options)
    assert result.metrics["eval"]["eval_accuracy"] == trained.metrics["eval"]["eval_accuracy"]
    other = labelled_rows.write(tmp_path / "two", 2, CLASSES[:2])
    with pytest.raises(ConfigError, match="tells 6 classes apart, the data have 2"):
        classify.train(other, tmp_path / "other", max_steps=1, **options)


def test_a_picture_that_cannot_be_decoded_ends_nothing(vit: Path, held: Path, tmp_path: Path) -> None:
    """Its place goes to the next row, in its random view of the same pass; workers change nothing."""
    folder = labelled_rows.write(tmp_path / "data", 3)
    labelled_rows.cut_short(folder, (4, 11))
    options = {**QUICK, "model": str(vit), "epochs": 2, "batch_size": 4, "eval_data": [held]}
    first, second = (classify.train(folder, tmp_path / str(n), workers=n, **options) for n in (0, 2))
    assert same(first.out, second.out)
    assert first.metrics["rows"]["unreadable"] == 2 and first.metrics["steps"] == 10
    bad = [json.loads(line) for line in (first.out / "bad_rows.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in bad] == [4, 11]


def test_the_last_step_is_evaluated_and_can_be_the_best(vit: Path, data: Path, held: Path, tmp_path: Path) -> None:
    options = {**QUICK, "model": str(vit), "eval_data": [held], "max_steps": 7, "eval_steps": 3}
    result = classify.train(data, tmp_path / "run", **options)
    evaluated = {e["step"]: e["eval_accuracy"] for e in logged(result.out) if "eval_loss" in e}
    assert list(evaluated) == [3, 6, 7]
    best = max(evaluated, key=lambda step: (evaluated[step], -step))
    assert result.metrics["best_step"] == best and result.metrics["eval"]["eval_accuracy"] == evaluated[best]
    last = classify.train(data, tmp_path / "last", keep_best=False, **options)
    assert last.metrics["best_step"] is None and last.metrics["eval"]["eval_accuracy"] == evaluated[7]
    assert json.loads((last.out / "eval.json").read_text())["step"] == 7


def test_the_command(vit: Path, data: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from vlmtrain.cli import main

    out = tmp_path / "run"
    flags = ["classify", "--data", str(data), "--model", str(vit), "--out", str(out), "--max-steps", "2"]
    result = CliRunner().invoke(main, [*flags, "--eval-fraction", "0.25", "--set", "augment=none"])
    assert result.exit_code == 0, result.output
    assert "classes 6; new head" in result.output and "eval accuracy" in result.output
    assert max(len(line) for line in result.output.splitlines() if str(out) not in line) <= 80
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["rows"]["held_out"] == 12 and metrics["rows"]["kept"] == 48
    config = json.loads((out / "vlmtrain.json").read_text())["config"]
    assert (config["parts"], config["batch_size"], config["augment"]) == ("vision:attention", 32, "none")
    result = CliRunner().invoke(main, [*flags[:-2], "--overwrite", "--recipe", "dpo-llava15"])
    assert result.exit_code == 2 and "recipe dpo-llava15 is for vlmtrain dpo, not classify" in result.output


def test_the_best_weights_of_adalora_are_kept_with_their_ranks(
    vit: Path, data: Path, held: Path, tmp_path: Path
) -> None:
    """Ranks are pruned after the best evaluation, which is the first: the learning rate then ruins everything."""
    options = {**QUICK, "model": str(vit), "tuner": "adalora", "lora_r": 4, "eval_data": [held], "parts": "vision"}
    result = classify.train(data, tmp_path / "run", **options, max_steps=20, eval_steps=4)
    best = result.metrics["best_step"]
    loaded = load(str(vit), result.out, device="cpu")
    pixels, labels = labelled_rows.batch(loaded.processor, held)
    right = (labelled_rows.logits(loaded.model, pixels).argmax(-1) == labels).float().mean().item()
    evaluated = {e["step"]: e["eval_accuracy"] for e in logged(result.out) if "eval_loss" in e}
    assert right == pytest.approx(evaluated[best])
