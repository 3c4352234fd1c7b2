"""Checkpoints cut short at any place are not gone on from; a full disk ends in one line and can be gone on from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from run_files import same

from vlmdata.errors import ConfigError, DataError
from vlmtrain import checkpoints, sft
from vlmtrain.checkpoints import check_space, fault, newest, rotate, seal, writable

HERE = str(Path(__file__).parent)


def made(folder: Path, step: int, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "inside").mkdir(parents=True)
    (path / "weights").write_bytes(bytes(range(256)) * 40)
    (path / "inside" / "state").write_bytes(b"state")
    if sealed:
        seal(path)
    return path


def test_every_cut_is_seen(tmp_path: Path) -> None:
    path = made(tmp_path, 4)
    assert fault(path) is None
    for name in ("weights", "inside/state", "whole.json"):
        whole = (path / name).read_bytes()
        for damaged in (whole[:-2], whole[: len(whole) // 2], b"", None, b"\xff" + whole[1:]):
            if damaged is None:
                (path / name).unlink()
            else:
                (path / name).write_bytes(damaged)
            assert fault(path), (name, damaged)
            (path / name).write_bytes(whole)
    assert fault(path) is None


def test_a_large_file_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_ENTIRE", 1000)
    monkeypatch.setattr(checkpoints, "_SAMPLE", 10)
    path = made(tmp_path, 4)
    assert fault(path) is None
    for place in (0, 1005, -1):
        data = bytearray(whole := (path / "weights").read_bytes())
        data[place] ^= 1
        (path / "weights").write_bytes(bytes(data))
        assert fault(path) == "weights was changed"
        (path / "weights").write_bytes(whole)


def test_the_newest_whole_one_is_taken(tmp_path: Path) -> None:
    for step, sealed in ((2, True), (10, True), (9, True), (20, False)):
        made(tmp_path, step, sealed)
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"cut")
    (tmp_path / "checkpoint-best").mkdir()
    found, lines = newest(tmp_path)
    assert found is not None and found.name == "checkpoint-9"
    assert lines == [
        "checkpoint-20 is not whole, an older one is taken: it was not finished",
        "checkpoint-10 is not whole, an older one is taken: weights has 3 of 10,240 bytes",
    ]
    assert newest(tmp_path / "nothing") == (None, [])


def test_old_ones_go_when_a_new_one_is_whole(tmp_path: Path) -> None:
    for step, sealed in ((2, True), (4, True), (6, True), (8, False), (10, True)):
        made(tmp_path, step, sealed)
    rotate(tmp_path, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{n}" for n in (10, 2, 4, 6)]
    rotate(tmp_path, 2, str(tmp_path / "checkpoint-2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2", "checkpoint-6"]


def test_errors_of_a_full_disk_are_one_line(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    faults: list[Exception] = [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError(
            "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing: file write failed"
        ),
    ]
    for error in faults:
        made(tmp_path, 6, sealed=False)
        with pytest.raises(ConfigError, match="cannot write checkpoint-6 to .*; make room, then --resume goes on"):
            with writable(tmp_path, "checkpoint-6"):
                raise error
        assert not (tmp_path / "checkpoint-6").exists(), "what was written of it is in the way"
    for other in (RuntimeError("shapes do not match"), OSError(5, "Input/output error"), DataError("no rows")):
        with pytest.raises(type(other)), writable(tmp_path, "checkpoint-6"):
            raise other


def test_space_is_looked_at_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1000, 1000)
    said: list[str] = []
    for free, expected in ((1 << 30, 0), (40 << 20, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        check_space(model, tmp_path, 3, said.append)
        assert len(said) == expected
    assert said == ["disk   40.0 MiB free, 3 checkpoints and the result take about 49.6 MiB"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 << 20}))
    with pytest.raises(ConfigError, match="has 5.0 MiB free, and a checkpoint takes about 11.5 MiB"):
        check_space(model, tmp_path, 3, said.append)


OPTIONS: dict[str, Any] = {
    "batch_size": 4, "learning_rate": 1e-3, "epochs": 2, "lora_dropout": 0.1, "save_steps": 2, "keep_checkpoints": 3,
    "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("finished")
    data = rows.write(folder / "data", rows.colours(24))
    options = {**OPTIONS, "model": str(base)}
    sft.train(data, folder / "run", **options)
    return data, folder / "run", options


def unfinished(run: Path, out: Path) -> Path:
    """A run as it lies after a kill behind its last checkpoint."""
    shutil.copytree(run, out)
    for path in out.iterdir():
        if path.is_file() and path.name != "log.jsonl":
            path.unlink()
    return out


def test_a_run_goes_on_behind_any_damage(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each file of the newest checkpoint cut or missing: the one before is taken, said, and leads to the same end."""
    data, whole, options = finished
    names = sorted(p.name for p in (whole / "checkpoints" / "checkpoint-12").iterdir())
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < {
        *names
    }
    for name in names:
        for cut in (False, True):
            run = unfinished(whole, tmp_path / f"{name}-{cut}")
            damaged = run / "checkpoints" / "checkpoint-12" / name
            if cut:
                os.truncate(damaged, damaged.stat().st_size // 2)
            else:
                damaged.unlink()
            found, lines = newest(run / "checkpoints")
            assert found is not None and found.name == "checkpoint-10" and len(lines) == 1, name
            shutil.rmtree(run)
    run = unfinished(whole, tmp_path / "run")
    os.truncate(run / "checkpoints" / "checkpoint-12" / "optimizer.pt", 100)
    capfd.readouterr()
    resumed = sft.train(data, run, resume=True, **{**options, "progress": True})
    said = capfd.readouterr().err
    assert "checkpoint-12 is not whole, an older one is taken: optimizer.pt has 100 of" in said
    assert "resume checkpoint-10" in said
    assert resumed.metrics["resumed_from_step"] == 10 and same(whole, run)
    assert fault(run / "checkpoints" / "checkpoint-12") is None, "it was written again"


CODE = """
import resource, signal, sys
from vlmtrain.cli import main

if {limit}:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    import torch, transformers, trl, peft
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
main(["sft", *sys.argv[1:]], prog_name="vlmtrain")
"""


def command(data: Path, out: Path, options: dict[str, Any], *more: str, limit: int = 0) -> list[str]:
    flags = [f"--set={key}={value}" for key, value in options.items() if key not in ("progress", "model")]
    where = ["--data", str(data), "--out", str(out), "--model", str(options["model"])]
    return [sys.executable, "-c", CODE.format(limit=limit), *where, *flags, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": HERE}


@pytest.mark.parametrize("share", [0.5, pytest.param(0.9, marks=pytest.mark.slow)])
def test_a_full_disk(finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path, share: float) -> None:
    """A file may not grow beyond what the optimizer's state, or the adapter, needs: as when the disk is full."""
    data, whole, options = finished
    newest_one = whole / "checkpoints" / "checkpoint-12"
    size = (newest_one / "optimizer.pt").stat().st_size if share > 0.6 else 40_000
    limit = int(size * share) if share > 0.6 else size
    run = subprocess.run(
        command(data, tmp_path / "run", options, limit=limit),
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("vlmtrain: cannot write checkpoint-2 to ") and "make room, then --resume goes on" in last
    assert "Traceback" not in run.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    resumed = sft.train(data, tmp_path / "run", resume=True, **options)
    assert resumed.metrics["steps"] == 12 and same(whole, tmp_path / "run")


@pytest.mark.slow
def test_killed_anywhere(finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    """SIGKILL again and again, at moments nobody chose, until a run comes through: it ends as an undisturbed one."""
    data, whole, options = finished
    out = tmp_path / "run"
    options = {**options, "save_steps": 1}
    kills = 0
    for attempt in range(40):
        more = ["--resume"] if out.exists() else []
        process = subprocess.Popen(
            command(data, out, options, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        begun = time.monotonic()
        seen = set(out.glob("checkpoints/checkpoint-*"))
        while process.poll() is None and time.monotonic() - begun < 120:
            # While something is being written: between the making of a folder and its seal.
            new = set(out.glob("checkpoints/checkpoint-*")) - seen
            if new and attempt < 8:
                time.sleep(0.001 * attempt)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills >= 6 and json.loads((out / "metrics.json").read_text())["steps"] == 12
    assert same(whole, out)
