"""A run that is killed and given again with --resume ends with the weights of an undisturbed one, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from killed import killed_after
from run_files import same
from safetensors.torch import load_file

from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmtrain import dpo, sft
from vlmtrain.model import load

Killed = tuple[str, Path, Path, dict[str, Any]]

# Dies without a word at step 5, as a machine does, in the middle of the second epoch.
KILLED = """
import os
from killed import deadly
from vlmtrain import sft

deadly(sft, 5, lambda: os._exit(9))
sft.train({data!r}, {out!r}, **{options!r})
"""
OPTIONS = {
    "batch_size": 4,
    "accumulate": 2,
    "learning_rate": 1e-3,
    "epochs": 2,
    "lora_dropout": 0.2,  # DPO switches it off, as TRL does
    "save_steps": 2,
    "progress": False,
}


@pytest.fixture(scope="module", params=["sft", "dpo"])
def killed(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Method, data, the folder a killed run left, and the run's options."""
    method, folder = request.param, tmp_path_factory.mktemp("killed")
    data = rows.write(folder / "data", rows.colours(30) if method == "sft" else rows.pairs(30))
    options = {**OPTIONS, "model": str(base)}
    out = folder / "run"
    if method == "sft":
        code = KILLED.format(data=str(data), out=str(out), options=options)
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(Path(__file__).parent)}
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **threads}, check=False
        )
        assert run.returncode == 9, run.stderr
    else:
        with killed_after(dpo, 5):
            dpo.train(data, out, **options)
    assert not (out / "vlmtrain.json").exists()
    return method, data, out, options


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def trainer_of(method: str) -> Any:
    return {"sft": sft.train, "dpo": dpo.train}[method]


def test_killed_and_resumed_is_undisturbed(killed: Killed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last whole checkpoint, and from the beginning where there is none; threads are as they were."""
    method, data, left, options = killed
    train = trainer_of(method)
    whole = train(data, tmp_path / "whole", **options)
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    for name, step in (("cut", 4), ("early", None)):
        shutil.copytree(left, tmp_path / name)
        if step is None:
            for folder in (tmp_path / name / "checkpoints").glob("checkpoint-*"):
                shutil.rmtree(folder)
        half = tmp_path / name / "checkpoints" / "checkpoint-6"
        half.mkdir()
        (half / "adapter_model.safetensors").write_bytes(b"cut short by a full disk")
        resumed = train(data, tmp_path / name, resume=True, **options)
        assert resumed.metrics["resumed_from_step"] == step
        assert resumed.metrics["steps"] == whole.metrics["steps"] == 8
        assert same(tmp_path / "whole", tmp_path / name)
        assert steps(tmp_path / name) == steps(tmp_path / "whole")


def test_resume_goes_on_with_the_same_thing_only(killed: Killed, tmp_path: Path) -> None:
    method, data, left, options = killed
    train = trainer_of(method)
    shutil.copytree(left, tmp_path / "run")
    with pytest.raises(ConfigError, match="learning_rate was 0.001, is 0.1"):
        train(data, tmp_path / "run", resume=True, **{**options, "learning_rate": 0.1})
    other = rows.write(tmp_path / "other", rows.colours(31) if method == "sft" else rows.pairs(31))
    with pytest.raises(DataError, match="the data of this run has changed"):
        train(other, tmp_path / "run", resume=True, **options)
    with pytest.raises(OutputExistsError, match="--resume goes on with it"):
        train(data, tmp_path / "run", **options)
    assert train(data, tmp_path / "run", resume=True, **{**options, "logging_steps": 3}).metrics["steps"] == 8


def test_an_unfinished_run_is_no_adapter(killed: Killed, base: Path) -> None:
    with pytest.raises(MissingError, match="never finished: use --resume"):
        load(str(base), killed[2])


def test_a_run_killed_behind_its_last_step_takes_none_more(base: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, where max_steps ends it."""
    data = rows.write(tmp_path / "data", rows.colours(12))
    options = {**OPTIONS, "model": str(base), "max_steps": 2, "schedule": "constant", "batch_size": 2}
    whole = sft.train(data, tmp_path / "whole", **options)
    cut = tmp_path / "cut"
    shutil.copytree(whole.out, cut)
    (cut / "vlmtrain.json").unlink()
    resumed = sft.train(data, cut, resume=True, **options)
    assert resumed.metrics["steps"] == 2
    a, b = (load_file(out / "adapter_model.safetensors") for out in (whole.out, cut))
    assert all(torch.equal(value, b[key]) for key, value in a.items())
