"""Several processes, started as torchrun starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted

from vlmdata.errors import ConfigError
from vlmeval import opening, ranks
from vlmeval.run import evaluate
from vlmeval.task import Item

HERE = Path(__file__).parent
SCRIPT = HERE / "scripted_run.py"


def launched(processes: int, arguments: list[Any], **happens: Any) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return program([*command, *arguments], **happens)


def program(arguments: list[Any], **happens: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in happens.items()}}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)


def amber(world: Path, out: Path) -> list[Any]:
    return ["amber", "--data", world, "--model", "m", "--out", out]


def ids(path: Path) -> list[Any]:
    return [json.loads(line)["id"] for line in path.read_bytes().split(b"\n")[:-1]]


def unlaunched(arguments: list[Any], **happens: Any) -> tuple[int, str]:
    """Two processes side by side, as a batch system starts them: nobody ends the other when one fails."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "OMP_NUM_THREADS": 1, **happens}
    running = []
    for rank in range(2):
        environment = {**os.environ, **{name: str(value) for name, value in known.items()}}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, *map(str, arguments)]
        running.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        )
    said = [run.communicate(timeout=400)[1] for run in running]
    return max(run.returncode for run in running), "".join(said)


def test_a_kill_at_two_processes_goes_on_at_three(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, nothing asked twice, and the file is what one process alone writes."""
    out, asked = tmp_path / "shared", tmp_path / "asked"
    run = launched(2, [SCRIPT, *amber(world, out)], RANK_THAT_DIES=1, SLOW=0.2)
    assert run.returncode != 0 and not (out / "report.json").exists()
    parts = sorted(out.glob("responses.rank*.jsonl"))
    assert [path.name for path in parts] == ["responses.rank0.jsonl", "responses.rank1.jsonl"]
    before = {ident for part in parts for ident in ids(part)}
    assert 0 < len(before) < 44
    run = launched(3, [SCRIPT, *amber(world, out), "--resume"], ASKED=asked)
    assert run.returncode == 0, run.stderr
    again = [int(line) for line in asked.read_text().split()]
    assert not before & set(again) and len(before) + len(again) == 44
    assert sorted(path.name for path in out.glob("responses*")) == ["responses.jsonl"]
    monkeypatch.setattr(opening.Who, "open", lambda who, images: Scripted())
    evaluate("amber", data=world, model="m", out=tmp_path / "alone", quiet=True)
    assert (out / "responses.jsonl").read_bytes() == (tmp_path / "alone" / "responses.jsonl").read_bytes()
    assert ids(out / "responses.jsonl") == list(range(1, 45))


def test_an_error_in_one_process_ends_all_with_its_message(world: Path, tmp_path: Path) -> None:
    run = launched(2, [SCRIPT, *amber(world, tmp_path / "e")], RANK_THAT_FAILS=1)
    assert run.returncode != 0
    assert run.stderr.count("vlmeval: the accelerator fell over") == 1, run.stderr
    assert str(HERE) not in run.stderr.split("torch.distributed.elastic", 1)[0], "no traceback of ours"
    assert not (tmp_path / "e" / "report.json").exists()


def test_a_model_that_one_process_cannot_load_ends_all(world: Path, tmp_path: Path) -> None:
    status, said = unlaunched([SCRIPT, *amber(world, tmp_path / "e")], RANK_THAT_CANNOT_LOAD=1)
    assert status == 2 and "vlmeval: the weights are not on this machine" in said and "Traceback" not in said, said
    assert not (tmp_path / "e").exists()


def test_answers_on_another_disk_are_missed(world: Path, tmp_path: Path) -> None:
    status, said = unlaunched([SCRIPT, *amber(world, tmp_path / "e")], RANK_ELSEWHERE=1)
    assert status == 2 and "it must lie on a disk that all processes share" in said and "Traceback" not in said, said
    assert " of 44 answers are not in " in said and not (tmp_path / "e" / "report.json").exists()


def test_real_answers_are_those_of_one_process(world: Path, tiny: Path, tmp_path: Path) -> None:
    """Batches are shared whole: the same texts to the last bit, from the model that is asked in earnest."""
    short = ["--batch-size", 7, "--max-new-tokens", 10, "--max-answer-tokens", 5]
    arguments = ["-m", "vlmeval", "amber", "--data", world, "--model", tiny, *short, "--verify-prefix", 9, "--out"]
    run = launched(2, [*arguments, tmp_path / "two"])
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("AMBER") and run.stdout.count("Report: ") == 1, "one process speaks"
    limits = {"batch_size": 7, "max_new_tokens": 10, "max_answer_tokens": 5}
    theirs = evaluate("amber", data=world, model=str(tiny), out=tmp_path / "one", quiet=True, **limits)
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "responses.jsonl").read_bytes() == (two / "responses.jsonl").read_bytes()
    ours = json.loads((two / "report.json").read_text())
    assert ours["run"]["system"]["processes"] == 2 and ours["speed"]["answers"] == theirs["speed"]["answers"] == 44
    assert ours["exact"] == theirs["exact"]
    check = ours["protocol"]["answers"]["share_prefix"]["verified"]
    assert check["checked"] == 9 and not check["differing"], "both processes' parts of the comparison"


def test_ctrl_c_says_how_to_go_on(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    command = [sys.executable, str(SCRIPT), *map(str, amber(world, out))]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "SLOW": "2"})
    deadline = time.monotonic() + 60
    while not (out / "responses.jsonl").is_file() or not ids(out / "responses.jsonl"):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.splitlines()[-1] == (
        f"vlmeval: interrupted; what was answered is in {out}: the same command with --resume goes on"
    )
    assert "Traceback" not in said
    kept = ids(out / "responses.jsonl")
    again = program([SCRIPT, *amber(world, out), "--resume"], ASKED=tmp_path / "asked")
    assert again.returncode == 0 and len((tmp_path / "asked").read_text().split()) == 44 - len(kept)


def test_shares_are_whole_batches_and_cover_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item(number, "?", (f"{number % 6}.png",), "no", ("g",)) for number in range(23)]
    model, done = Scripted(), {0, 1, 2, 3, 4, 7}
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    mine: list[set[int | str]] = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        mine.append(ranks.share(model, items, done).mine)
    assert mine == [{5, 6, 8, 9, 20, 21, 22}, {10, 11, 12, 13, 14}, {15, 16, 17, 18, 19}]

    class Alone:
        name = "alone"
        describe = environment = load = answer = Scripted.describe

    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        mine[rank] = ranks.share(Alone(), items, done).mine  # type: ignore[arg-type]
    assert set().union(*mine) == set(range(23)) - done and sum(map(len, mine)) == 17
    assert all(
        {ident % 6 for ident in one if isinstance(ident, int)} == {rank, rank + 3} for rank, one in enumerate(mine)
    )


def test_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert ranks.device("cuda:1", "auto") == "cuda:1", "one process has what it is told"
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks.device(None, None) == ranks.device("cuda", None) == "cuda:1" and ranks.device("cpu", None) == "cpu"
    for device, spread, said in (
        ("cuda:0", None, "one device for 2 processes"),
        (None, "auto", "leave device_map out"),
    ):
        with pytest.raises(ConfigError, match=said):
            ranks.device(device, spread)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="has no GPU of its own: there are 1"):
        ranks.device(None, None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert ranks.device(None, None) is None
