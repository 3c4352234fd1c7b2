"""W&B in its offline mode and TensorBoard, for real: what is sent, and what is not."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
from killed import killed_before

from vlmdata.errors import ConfigError, DependencyError
from vlmtrain import sft
from vlmtrain.config import resolve
from vlmtrain.watching import trackers

OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "eval_fraction": 0.25,
    "eval_steps": 2,
    "logging_steps": 1,
    "sample_steps": 2,
    "sample_rows": 2,
    "sample_tokens": 6,
    "progress": False,
}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(16))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_LOG_MODEL"):
        monkeypatch.delenv(name, raising=False)
    import wandb

    # It reads its environment once in a process.
    wandb.teardown()
    return tmp_path / "wandb"


def records(folder: Path) -> list[Any]:
    """Everything in the files of offline runs, in order: LevelDB's log format after seven bytes of W&B's own."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    # What its service holds back is written when it ends.
    wandb.teardown()
    found = []
    for file in sorted(folder.glob("offline-run-*/*.wandb")):
        raw, place, whole = file.read_bytes(), 7, b""
        while place + 7 <= len(raw):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
                continue
            length, kind = struct.unpack_from("<HB", raw, place + 4)
            whole += raw[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                found.append(record)
                whole = b""
    return found


def histories(found: list[Any]) -> list[dict[str, Any]]:
    """Figures by name, of every step that was logged."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]


def test_wandb_offline(base: Path, colours: Path, offline: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = {**OPTIONS, "report_to": "wandb", "project": "plates", "run_name": "first", "log_model": "end"}
    result = sft.train(colours, out, model=str(base), **options)
    import wandb

    assert wandb.run is None, "the run is closed"
    found = records(offline)
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.project, run.display_name) == ("plates", "first")
    logged = histories(found)
    losses = [entry["train/loss"] for entry in logged if "train/loss" in entry]
    evaluated = [entry["eval/loss"] for entry in logged if "eval/loss" in entry]
    own = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses == pytest.approx([entry["loss"] for entry in own if "loss" in entry])
    assert evaluated == pytest.approx([entry["eval_loss"] for entry in own if "eval_loss" in entry])
    tables = [(entry["samples/nrows"], entry["samples/ncols"]) for entry in logged if "samples/nrows" in entry]
    assert tables == [(2, 5), (4, 5), (6, 5)]
    assert any("curves/path" in entry for entry in logged)
    settings = {
        item.key: json.loads(item.value_json)
        for record in found
        if record.HasField("config")
        for item in record.config.update
    } | {item.key: json.loads(item.value_json) for item in run.config.update}
    assert settings["lora_r"] == 16 and settings["data"] == ["colours"] and settings["output_dir"] == "first"
    said = json.dumps({"settings": settings, "logged": logged})
    assert str(tmp_path) not in said and str(base) not in said and "/site-packages" not in said
    kept = [record.artifact for record in found if record.HasField("artifact") and record.artifact.type == "model"]
    assert [(one.name, set(one.aliases)) for one in kept] == [("model-first", {"final_model", "latest"})]
    assert {entry.path for entry in kept[0].manifest.contents} >= {"adapter_model.safetensors", "README.md"}
    assert result.metrics["steps"] == 4


def test_a_resumed_run_is_the_same_run(base: Path, colours: Path, offline: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "report_to": "wandb", "model": str(base), "save_steps": 2, "log_model": "checkpoint"}
    out = tmp_path / "run"
    with killed_before(sft, 4):
        sft.train(colours, out, **options)
    import wandb

    assert wandb.run is None, "a run that failed is closed, too"
    sft.train(colours, out, resume=True, **options)
    found = records(offline)
    runs = {record.run.run_id for record in found if record.HasField("run")}
    kept = [record.artifact for record in found if record.HasField("artifact") and record.artifact.type == "model"]
    told = {alias for artifact in kept for alias in artifact.aliases}
    assert {"checkpoint_global_step_2", "checkpoint_global_step_4", "final_model"} <= told
    assert len(runs) == 1 and len(list(offline.glob("offline-run-*"))) == 2


def test_a_run_the_caller_began_goes_on(base: Path, colours: Path, offline: Path, tmp_path: Path) -> None:
    import wandb

    with wandb.init(project="mine", name="outer", settings=wandb.Settings(silent=True)) as outer:
        sft.train(colours, tmp_path / "run", model=str(base), **{**OPTIONS, "report_to": "wandb"})
        assert wandb.run is outer
        outer.log({"after": 1})
    logged = histories(records(offline))
    assert any("train/loss" in entry for entry in logged) and logged[-1]["after"] == 1


def test_tensorboard(base: Path, colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sft.train(colours, out, model=str(base), **{**OPTIONS, "report_to": "tensorboard", "eval_metric": "anls"})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "eval/loss", "eval/anls"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("eval/anls")] == [2, 4]
    shown = events.Tensors("samples/text_summary")
    assert [event.step for event in shown] == [0, 2, 4] and b"It is" in shown[0].tensor_proto.string_val[0]
    (file,) = (out / "tensorboard").iterdir()
    raw = file.read_bytes()
    assert str(tmp_path).encode() not in raw and str(base).encode() not in raw


def test_trackio(base: Path, colours: Path, tmp_path: Path) -> None:
    """Where it is installed; its releases up to 0.43 ask for a Pillow older than 13."""
    pytest.importorskip("trackio")
    code = (
        "from vlmtrain import sft\n"
        f"sft.train({str(colours)!r}, {str(tmp_path / 'run')!r}, model={str(base)!r}, report_to='trackio',"
        f" project='plates', **{OPTIONS!r})\n"
    )
    place = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run([sys.executable, "-c", code], check=True, env=place, capture_output=True)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as tables:
        logged = [json.loads(row[0]) for row in tables.execute("select metrics from metrics order by id")]
        settings = tables.execute("select config from configs").fetchone()[0]
    assert file.stem == "plates"
    assert [entry["train/global_step"] for entry in logged if "train/loss" in entry] == [1, 2, 3, 4]
    assert len([entry for entry in logged if "samples" in entry]) == 3
    assert str(tmp_path).encode() not in bytes(settings) and str(base).encode() not in bytes(settings)


def test_what_cannot_be_reached_is_said_before_the_model_is_loaded(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    import wandb

    wandb.teardown()
    run = {"model": "no/where", "progress": False}
    with pytest.raises(ConfigError, match="report_to wandb: nobody is logged in; set WANDB_API_KEY"):
        sft.train(colours, tmp_path / "run", **run, report_to="wandb")
    host = urllib.parse.urlsplit(wandb.setup().settings.base_url).hostname
    (tmp_path / "none").write_text(f"machine {host} login user password {'0123456789' * 4}\n")
    trackers.check(resolve("sft", {"report_to": "wandb"}).watching)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"report_to tensorboard needs tensorboard.*vlm-toolkit\[tensorboard\]"):
        sft.train(colours, tmp_path / "run", **run, report_to="tensorboard")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report_to": ["none", "wandb"]}, "none stands alone"),
        ({"report_to": "comet"}, "report_to is 'comet'; valid: none, wandb, tensorboard, trackio"),
        ({"project": "p"}, "project does nothing without report_to"),
        ({"report_to": "tensorboard", "log_model": "end"}, "log_model end is W&B's"),
    ],
)
def test_combinations_that_cannot_be(options: dict[str, Any], message: str, colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sft.train(colours, tmp_path / "run", model="no/where", progress=False, **options)
