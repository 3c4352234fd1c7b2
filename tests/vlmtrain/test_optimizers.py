"""Optimizer and schedule keys reach transformers and do what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest

from vlmdata.errors import ConfigError
from vlmtrain.config import resolve
from vlmtrain.keys import OPTIMIZERS, SCHEDULES
from vlmtrain.runs import RunResult
from vlmtrain.sft import make_trainer, train
from vlmtrain.training import begin

CLASSES = {
    "adamw": "AdamW",
    "adamw_fused": "AdamW",
    "adamw_8bit": "AdamW",
    "paged_adamw": "AdamW",
    "paged_adamw_8bit": "AdamW",
    "adafactor": "Adafactor",
    "lion": "Lion",
    "lion_8bit": "Lion",
    "sgd": "SGD",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(8))


def trainer_for(data: Path, base: Path, out: Path, **options: Any) -> Any:
    job = begin("sft", data=[data], out=out, progress=False, options={"model": str(base), "batch_size": 4, **options})
    assert not isinstance(job, RunResult)
    return make_trainer(job)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, base: Path, data: Path, tmp_path: Path) -> None:
    options = {"optimizer": name, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "weight_decay": 0.01}
    trainer = trainer_for(data, base, tmp_path / "run", max_steps=2, learning_rate=1e-3, **options)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer).__name__ == CLASSES[name]
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == 0.01
    if "betas" in group:
        assert tuple(group["betas"]) == (0.8, 0.95)
    if CLASSES[name] == "AdamW":
        assert group["eps"] == 1e-6
    if name.endswith("8bit"):
        assert optimizer.args.optim_bits == 8
    if name.startswith("paged"):
        assert optimizer.is_paged
    moved = [p for key, p in trainer.model.named_parameters() if "lora_B" in key and p.abs().max() > 0]
    assert moved


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str, base: Path, data: Path, tmp_path: Path) -> None:
    """Peak and end of the learning rate over ten steps, two of them warm-up where the schedule has one."""
    floor = {"min_learning_rate": 2e-4} if name == "cosine_with_min_lr" else {}
    options = {"schedule": name, "warmup": 2, "max_steps": 10, "learning_rate": 1e-3, "logging_steps": 1, **floor}
    result = train(data, tmp_path / "run", model=str(base), batch_size=4, progress=False, **options)
    lines = (result.out / "log.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    if name == "constant":
        assert rates == [1e-3] * 10
        return
    assert rates[0] == 0 and rates[1] == 5e-4 and max(rates) == rates[2] == 1e-3
    end = {"constant_with_warmup": 1e-3, "cosine_with_min_lr": 2e-4, "inverse_sqrt": 1e-3 * (2 / 9) ** 0.5}
    assert rates[-1] == pytest.approx(end.get(name, 0.0), abs=1.3e-4)
    assert (rates[-1] < rates[5] < rates[2]) is (name != "constant_with_warmup")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine_with_min_lr"}, "needs min_learning_rate above 0"),
        ({"min_learning_rate": 1e-5}, "min_learning_rate does nothing with schedule linear"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; valid: adamw, adamw_fused, adamw_8bit"),
        ({"schedule": "cosin"}, "schedule is 'cosin'; valid: linear, cosine"),
        ({"adam_beta2": 1}, "adam_beta2 is 1.0, expected from 0 to 0.99999"),
        ({"padding_free": True}, "unknown key 'padding_free'; here it is packing, on by default for sft"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("sft", options)
