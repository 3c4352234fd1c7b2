"""Evaluation by written answers while a model trains, and the best weights kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from killed import killed_before
from run_files import same
from safetensors.torch import load_file

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmdata.sample.write import write_sample
from vlmtrain import dpo, sft
from vlmtrain.config import resolve
from vlmtrain.evaluate import Amber, Judge, greater_is_better
from vlmtrain.keys import EVAL_METRICS

OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "max_steps": 7,
    "learning_rate": 1e-2,
    "eval_fraction": 0.25,
    "eval_steps": 2,
    "eval_tokens": 8,
    "progress": False,
}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(16))


@pytest.fixture(scope="module")
def amber(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_sample(folder, rows=4, test_scenes=2)
    return folder / "amber"


def logged(out: Path, key: str) -> dict[int, float]:
    entries = (json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    return {entry["step"]: entry[key] for entry in entries if key in entry}


def scripted(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Evaluations by answers give these figures, whatever is answered."""
    from vlmtrain.watching import scores

    def figures(self: Any) -> dict[str, float]:
        self._asker.answers(self._rows[:1], 2)
        return {name: values[self._asker.trainer.state.global_step] for name in self.names}

    monkeypatch.setattr(scores.Scores, "__call__", figures)


def test_every_metric_has_a_direction_and_a_place() -> None:
    assert [name for name in EVAL_METRICS if not greater_is_better(name)] == [
        "loss", "cer", "wer", "amber_chair", "amber_hal", "amber_cog",
    ]  # fmt: skip
    for name in EVAL_METRICS:
        if name not in ("loss", "top5") and not name.startswith("amber_"):
            judge = Judge(name, ["?", "?"], ['{"a": "red", "b": "1"}', "blue sky"])
            assert name in judge.metrics and isinstance(judge.figures(['{"a": "red"}', "blue"])[name], float)


def test_figures_are_those_of_vlmevals_tasks() -> None:
    judge = Judge("accuracy", ["?"] * 3, ["red", "blue", "a cat"])
    assert judge.figures(["Red.", "green", "cat"])["accuracy"] == pytest.approx(200 / 3)
    assert judge.figures(["Red.", None, None])["accuracy"] == 100, "what was not asked does not count"
    assert judge.figures([None] * 3) == {}
    assert Judge("fields", ["?"], ['{"a": 1, "b": 2}']).figures(['{"b": 2}'])["fields"] == 50


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_scores_are_those_of_the_finished_run(method: str, base: Path, tmp_path: Path) -> None:
    """The last evaluation equals vlmeval's own report of the run folder on the same rows."""
    from vlmeval.run import evaluate

    train = {"sft": sft.train, "dpo": dpo.train}[method]
    data = rows.write(tmp_path / "data", rows.colours(8) if method == "sft" else rows.pairs(8))
    held = rows.write(tmp_path / "held", rows.colours(6))
    pairs = held if method == "sft" else rows.write(tmp_path / "pairs", rows.pairs(6))
    options = {**OPTIONS, "eval_fraction": 0.0, "eval_data": [pairs], "eval_metric": "anls", "model": str(base)}
    result = train(data, tmp_path / "run", **options)
    report = evaluate(
        "vqa", data=held, out=tmp_path / "eval", model=str(base), adapter=result.out, max_answer_tokens=8, quiet=True
    )
    found = {name: figure["value"] for column in ("exact", "rates") for name, figure in report[column]["all"].items()}
    mine = {key.removeprefix("eval_"): value for key, value in result.metrics["eval"].items()}
    assert {name: mine[name] for name in found} == pytest.approx(found)
    steps = logged(result.out, "eval_anls")
    assert list(steps) == [2, 4, 6, 7]


def test_amber_items_are_scored_as_vlmeval_does(base: Path, colours: Path, amber: Path, tmp_path: Path) -> None:
    from vlmeval.run import evaluate

    options = {**OPTIONS, "eval_amber": str(amber), "eval_metric": "amber_accuracy", "eval_tokens": 6}
    options |= {"max_steps": 2, "model": str(base)}
    out = sft.train(colours, tmp_path / "run", **options).out
    limits = {"max_answer_tokens": 6, "max_new_tokens": 6}
    report = evaluate("amber", data=amber, out=tmp_path / "e", model=str(base), adapter=out, quiet=True, **limits)
    last = json.loads((out / "metrics.json").read_text())["eval"]
    for group, name in (("discriminative", "accuracy"), ("generative", "cover"), ("generative", "hal")):
        assert last[f"eval_amber_{name}"] == pytest.approx(report["exact"][group][name]["value"])
    recorded = (out / "vlmtrain.json").read_text()
    assert str(amber) not in recorded and '"eval_amber": "amber"' in recorded
    assert len(Amber(str(amber), None, 5).items) == 5


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("anls", {2: 10.0, 4: 30.0, 6: 20.0, 7: 25.0}, 4),
        ("cer", {2: 90.0, 4: 80.0, 6: 60.0, 7: 70.0}, 6),
        ("anls", {2: 10.0, 4: 30.0, 6: 20.0, 7: 35.0}, 7),
        ("anls", {2: 30.0, 4: 30.0, 6: 20.0, 7: 30.0}, 2),
    ],
)
def test_the_best_weights_are_kept(
    metric: str, values: dict[int, float], best: int, base: Path, colours: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By the metric's own direction, the first of equals; its checkpoint outlives ``keep_checkpoints``."""
    scripted(monkeypatch, values)
    options = {**OPTIONS, "eval_metric": metric, "keep_best": True, "keep_checkpoints": 1, "save_steps": 3}
    result = sft.train(colours, tmp_path / "run", model=str(base), **options)
    assert result.metrics["best"] == {"step": best, "metric": metric, "value": values[best]}
    assert result.metrics["best_step"] == best and result.metrics["eval"][f"eval_{metric}"] == values[best]
    assert same(result.out, result.out / "checkpoints" / f"checkpoint-{best}")
    left = {int(folder.name[11:]) for folder in (result.out / "checkpoints").glob("checkpoint-*")}
    assert best in left and len(left) <= 2
    card = (result.out / "README.md").read_text()
    assert f"weights of step {best}, the best of its evaluations by {metric} ({values[best]:.4g})." in card
    plain = sft.train(colours, tmp_path / "plain", model=str(base), **{**options, "keep_best": None, "max_steps": 7})
    assert "best" not in plain.metrics and same(plain.out, result.out) is (best == 7)


def test_the_best_loss(base: Path, colours: Path, tmp_path: Path) -> None:
    """With evaluations by epoch, and a rate so high that the end is not the best."""
    options = {**OPTIONS, "max_steps": None, "eval_steps": None, "epochs": 4, "learning_rate": 0.3, "keep_best": True}
    options.pop("eval_tokens")
    result = sft.train(colours, tmp_path / "run", model=str(base), **options)
    losses = logged(result.out, "eval_loss")
    best = min(losses, key=lambda step: losses[step])
    assert len(losses) == 4 and result.metrics["best"]["step"] == best
    assert result.metrics["best"]["value"] == pytest.approx(losses[best])


def test_a_resumed_run_knows_its_best(
    base: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its best evaluation, moved elsewhere, and gone on with."""
    scripted(monkeypatch, {2: 50.0, 4: 30.0, 6: 20.0, 7: 25.0})
    options = {**OPTIONS, "eval_metric": "anls", "keep_best": True, "model": str(base), "save_steps": 1}
    options |= {"keep_checkpoints": 1}
    whole = sft.train(colours, tmp_path / "whole", **options)
    with killed_before(sft, 6):
        sft.train(colours, tmp_path / "first", **options)
    shutil.move(tmp_path / "first", tmp_path / "moved")
    resumed = sft.train(colours, tmp_path / "moved", resume=True, **options)
    assert resumed.metrics["resumed_from_step"] == 5
    assert resumed.metrics["best"] == whole.metrics["best"] == {"step": 2, "metric": "anls", "value": 50.0}
    assert resumed.metrics["eval"] == whole.metrics["eval"]
    assert same(resumed.out, whole.out)
    with pytest.raises(ConfigError, match="eval_metric was anls, is cer"):
        sft.train(colours, tmp_path / "moved", resume=True, **{**options, "eval_metric": "cer"})


def test_a_whole_model_is_restored_too(
    base: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {2: 50.0, 4: 30.0})
    options = {**OPTIONS, "max_steps": 4, "tuner": "full", "parts": "language", "eval_metric": "anls"}
    options |= {"learning_rate": 1e-3, "schedule": "constant", "model": str(base)}
    result = sft.train(colours, tmp_path / "run", keep_best=True, **options)
    short = sft.train(colours, tmp_path / "short", **{**options, "max_steps": 2})
    assert result.metrics["best"]["step"] == 2
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (result.out, short.out))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_evaluation_before_the_first_step(base: Path, colours: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "max_steps": 2, "eval_metric": "exact", "eval_on_start": True, "keep_best": True}
    result = sft.train(colours, tmp_path / "run", model=str(base), **options)
    assert list(logged(result.out, "eval_exact")) == [0, 2] and result.metrics["best"]["step"] == 2


def test_few_rows_are_asked_where_few_are_wanted(
    base: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**OPTIONS, "max_steps": 1, "eval_metric": "exact", "eval_rows": 2, "progress": True}
    sft.train(colours, tmp_path / "run", model=str(base), **options)
    said = capsys.readouterr().err
    assert "scores exact: 2 answers are written at each evaluation" in said
    assert "eval loss" in said and "  exact 0.0" in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eval_metric": "anls"}, ConfigError, "eval_metric needs rows that are not trained on"),
        ({"keep_best": True}, ConfigError, "keep_best needs rows that are not trained on"),
        ({"eval_metric": "meteor"}, ConfigError, "eval_metric is 'meteor'; valid: loss, accuracy, f1"),
        ({"eval_metric": "top5", "eval_fraction": 0.2}, ConfigError, "top5 is for image classifiers"),
        ({"eval_metric": "amber_f1", "eval_fraction": 0.2}, ConfigError, "amber_f1 needs eval_amber, the folder of"),
        ({"eval_rows": 5, "eval_fraction": 0.2}, ConfigError, "eval_rows and eval_tokens do nothing while eval_metric"),
        ({"eval_amber": "nowhere", "eval_fraction": 0.2}, MissingError, "no AMBER data in nowhere"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(
    options: dict[str, Any], error: type[Exception], message: str, colours: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        sft.train(colours, tmp_path / "run", model="no/where", progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_amber_folders_that_cannot_be_asked(amber: Path, tmp_path: Path) -> None:
    folder = tmp_path / "amber"
    shutil.copytree(amber, folder)
    next((folder / "images").iterdir()).unlink()
    with pytest.raises(MissingError, match="eval_amber: .* pictures are not in"):
        Amber(str(folder), None, 1000)
    for place in (folder, folder / "data"):
        shutil.rmtree(place / "query", ignore_errors=True)
    with pytest.raises(DataError, match="no query/ files"):
        Amber(str(folder), None, 1000)


def test_classifiers_have_figures_of_their_own() -> None:
    from vlmtrain.watching.checks import check, check_keys, keeps_best

    config = resolve("classify", {})
    check(config, held_out=True)
    assert config.watching.eval_metric == "accuracy" and keeps_best(config, True) and not keeps_best(config, False)
    assert not keeps_best(resolve("sft", {}), True) and keeps_best(resolve("sft", {"keep_best": True}), True)
    with pytest.raises(ConfigError, match="valid for an image classifier: accuracy, f1, top5"):
        check_keys(resolve("classify", {"eval_metric": "anls"}))
    with pytest.raises(ConfigError, match="sample_steps is for models that write text"):
        check_keys(resolve("classify", {"sample_steps": 3}))
