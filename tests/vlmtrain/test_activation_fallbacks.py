"""Where activations cannot be kept the run goes on without, and says why; what cannot be meant is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import labelled_rows
import pytest
import tiny_models
from last_block_runs import LAST, SIZE, watch
from transformers import AutoConfig, AutoModelForImageClassification

from vlmdata.errors import ConfigError
from vlmtrain import classify
from vlmtrain.caches import kept_activations
from vlmtrain.pixels import Pictures

data = labelled_rows.shards("train", 4)
held = labelled_rows.shards("held", 2, seed=9)


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return watch(monkeypatch)


def trainer_of(data: Path, out: Path, held: Path, **options: Any) -> Any:
    given = {**LAST, **options}
    given.pop("progress")
    job = classify.begin(data=[data], eval_data=[held], out=out, progress=True, options=given)
    return classify.make_trainer(job)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lora_last_layers": None}, "the first block is trained"),
        ({"lora_last_layers": 2}, "the first block is trained"),
        ({"bias": "all"}, "the first block is trained"),
        ({"tuner": "full", "lora_last_layers": None, "lora_dropout": None}, "the first block is trained"),
        ({"modules_to_save": ["embeddings"]}, "something below the first trained block is trained"),
        ({"cache_gb": 0.9 * SIZE / 2**30}, "0.00 GiB of memory has no room for one picture's"),
        ({"cache_gb": 0.9 * SIZE / 2**30, "cache_in": "disk"}, "0.00 GiB of files has no room for one picture's"),
        ({"sharded": True}, "processes hold the weights in parts"),
        ({"gpus": 2}, "one process trains on several GPUs"),
        ({"hidden_dropout_prob": 0.1}, "Dropout drops 10% of its values at random"),
        ({"attention_probs_dropout_prob": 0.2}, "drops 20% of its values at random"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_is_not_exact_falls_back(
    options: dict[str, Any], reason: str, vit: Path, data: Path, held: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = dict(options)
    base = vit
    if dropout := {key: options.pop(key) for key in list(options) if key.endswith("_prob")}:
        base = tiny_models.make("vit", tmp_path / "base")
        config = AutoConfig.from_pretrained(base)
        config.update(dropout)
        config.save_pretrained(base)
    if options.pop("sharded", False):
        monkeypatch.setattr(classify.Trainer, "is_sharded", True)
    if gpus := options.pop("gpus", 0):
        monkeypatch.setattr("transformers.TrainingArguments.n_gpu", gpus)
        monkeypatch.setattr("transformers.Trainer._wrap_model", lambda self, model, **kwargs: model, raising=False)
    trainer = trainer_of(data, tmp_path / "run", held, model=str(base), **options)
    said = " ".join(capsys.readouterr().err.split())
    assert "activations are computed in every pass: " in said and reason in said
    assert trainer.shelf is None and isinstance(trainer.train_dataset, Pictures)


def test_stages_that_drop_their_path_fall_back(
    data: Path, held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_models.make("swinv2", tmp_path / "base")
    config = AutoConfig.from_pretrained(base)
    config.update({"depths": [2, 1], "drop_path_rate": 0.1})
    AutoModelForImageClassification.from_config(config).save_pretrained(base)
    assert trainer_of(data, tmp_path / "run", held, model=str(base)).shelf is None
    assert "in every pass: Swinv2DropPath drops 5% of its values at random" in capsys.readouterr().err


def test_one_pass_keeps_nothing(
    vit: Path, data: Path, held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(data, tmp_path / "run", held, model=str(vit), epochs=1, cache_in="disk")
    assert trainer.shelf is None and "not kept: each picture is seen once" in capsys.readouterr().err


def test_pictures_that_look_different_in_each_pass_are_not_kept(
    vit: Path, data: Path, held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(data, tmp_path / "run", held, model=str(vit), augment="crop_flip")
    assert trainer.shelf is None and isinstance(trainer.train_dataset, Pictures)
    assert "in every pass: augment=crop_flip shows a new view" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"augment": "crop_flip", "cache_in": "disk"}, "no picture looks the same in two passes with augment=crop_fli"),
        ({"augment": "crop_flip", "cache_features": True}, "cache_features: no picture looks the same in two passes"),
        ({"cache_features": False, "cache_gb": 1}, "cache_gb says how .*: not with cache_features=false"),
        ({"cache_in": "tape"}, "cache_in is 'tape'; valid: ram, disk"),
        ({"lora_last_layers": 3}, "lora_last_layers is 3, expected at most 2, the blocks of the vision"),
        ({"lora_last_layers": 0}, "lora_last_layers is 0, expected at least 1"),
        ({"lora_last_layers": "two"}, "lora_last_layers is 'two', expected a whole number"),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], match: str, vit: Path, data: Path, held: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        trainer_of(data, tmp_path / "run", held, model=str(vit), **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_head_alone_has_no_use_for_it(vit: Path, data: Path, tmp_path: Path) -> None:
    given = {"model": str(vit), "augment": "none", "head_only": True}
    for more, match in (
        ({"cache_in": "disk"}, "cache_in is for trained blocks; head_only keeps what its head sees in memory"),
        ({"lora_last_layers": 1}, "head_only trains the head and nothing else: leave out lora_last_layers"),
    ):
        with pytest.raises(ConfigError, match=match):
            classify.begin(data=[data], out=tmp_path / "run", progress=False, options={**given, **more})


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_more_than_there_is_is_refused(
    where: str, vit: Path, data: Path, held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_activations, "machine_memory", lambda: 30 * SIZE)
    monkeypatch.setattr(kept_activations, "_there", lambda *given: (0, 30 * SIZE))
    with pytest.raises(ConfigError, match=r"cache_gb is 2, 0.00 of it wanted; \w+ has 0.00 GiB: give less"):
        trainer_of(data, tmp_path / "run", held, model=str(vit), cache_in=where, cache_gb=2)
    # Unless it is asked for, a part of what there is.
    trainer = trainer_of(data, tmp_path / "part", held, model=str(vit), cache_in=where)
    assert len(trainer.shelf.marks) == (30 // 4 if where == "ram" else 15)


def test_a_full_disk_is_an_error_before_anything_is_computed(
    vit: Path, data: Path, held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: list[int]
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="No space left on device, expected room for .* MiB: give less by cache_gb"):
        trainer_of(data, tmp_path / "run", held, model=str(vit), cache_in="disk")
    assert below == [12]
