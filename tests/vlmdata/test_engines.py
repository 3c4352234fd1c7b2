from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from rawfiles import CAULDRON, cauldron_rows, shard_bytes, write_parquet

from vlmdata.convert import convert, convert_rank
from vlmdata.engine import engine_names, load_engine
from vlmdata.engines import process
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmdata.finish import finalize
from vlmdata.lock import locked
from vlmdata.shards import open_shards

OPTIONS: dict[str, Any] = {"shard_size": 8000, "shuffle_seed": 5, "turns": "split"}


def everything(folder: Path) -> dict[str, bytes]:
    return {f"{part}/{name}": data for part in (".", "images") for name, data in shard_bytes(folder / part).items()}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    rows = cauldron_rows(40)
    rows[7]["texts"] = []
    return write_parquet(tmp_path / "raw" / "train.parquet", rows, CAULDRON, group=7)


@pytest.fixture
def expected(raw: Path, tmp_path: Path) -> dict[str, bytes]:
    done = convert("the_cauldron", raw, tmp_path / "expected", engine="serial", **OPTIONS)
    assert len(done.manifest.shards) > 4
    return everything(done.out)


def test_engines_are_found_by_file_name() -> None:
    assert engine_names() == ["process", "ray", "serial"]
    with pytest.raises(MissingError, match="no engine named 'slow'; valid: process, ray, serial"):
        load_engine("slow")


def test_processes(raw: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    done = convert("the_cauldron", raw, tmp_path / "out", engine="process", workers=2, **OPTIONS)
    assert everything(done.out) == expected


def test_threads_of_one_shard(raw: Path, tmp_path: Path) -> None:
    one, two = (
        convert("the_cauldron", raw, tmp_path / str(workers), workers=workers, scale=0.5) for workers in (1, 3)
    )
    assert len(one.manifest.shards) == 1 and everything(one.out) == everything(two.out)


def test_ranks_and_finalize(raw: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    first = convert_rank("the_cauldron", raw, out, 2, 3, **OPTIONS)
    with pytest.raises(DataError, match=r"lacks \d+ of \d+ shards .*ranks"):
        finalize(out)
    with pytest.raises(OutputExistsError, match="--resume"):
        convert("the_cauldron", raw, out, **OPTIONS)
    with pytest.raises(ConfigError, match="shuffle_seed was 5, is 6"):
        convert_rank("the_cauldron", raw, out, 1, 3, **{**OPTIONS, "shuffle_seed": 6})
    parts = [first, *(convert_rank("the_cauldron", raw, out, rank, 3, **OPTIONS) for rank in (0, 1))]
    assert sum(part.shards for part in parts) == parts[0].of and sum(part.read for part in parts) == 40
    again = convert_rank("the_cauldron", raw, out, 0, 3, **OPTIONS)
    assert again.shards == parts[1].shards, "a rank that is started again keeps its shards"
    manifest = finalize(out)
    assert everything(out) == expected
    assert finalize(out) == manifest == open_shards(out).manifest


def test_ranks_run_side_by_side(raw: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    options = "--shard-size 8000 --shuffle-seed 5 --turns split --workers 1 --world 2".split()
    command = ["convert", "the_cauldron", str(raw), "--out", str(out), *options]
    code = "from vlmdata.cli import main; main()"
    runs = [
        subprocess.Popen([sys.executable, "-c", code, *command, "--rank", str(rank)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for run in runs:
        _, said = run.communicate(timeout=60)
        assert run.returncode == 0, said.decode()
    finalize(out)
    assert everything(out) == expected


def test_a_rank_and_a_whole_run_exclude_each_other(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_rank("the_cauldron", raw, out, 0, 2, **OPTIONS)
    with locked(out, shared=True):
        convert_rank("the_cauldron", raw, out, 1, 2, **OPTIONS)
        with pytest.raises(OutputExistsError, match="another run"):
            convert("the_cauldron", raw, out, resume=True, **OPTIONS)
        with pytest.raises(OutputExistsError, match="another run"):
            finalize(out)


@pytest.mark.parametrize(("rank", "world", "more"), [(2, 2, {}), (-1, 2, {}), (0, 2, {"overwrite": True})])
def test_ranks_that_cannot_be(raw: Path, tmp_path: Path, rank: int, world: int, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        convert_rank("the_cauldron", raw, tmp_path / "out", rank, world, **more)
    assert not (tmp_path / "out").exists()


def children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and b"spawn_main" in command:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find a worker to kill")
def test_a_pool_that_breaks_leaves_no_worker_behind() -> None:
    """One that was started when another had been killed, and that nobody else would end."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        waits = [pool.submit(time.sleep, 60) for _ in range(2)]
        with pytest.raises(BrokenProcessPool), process._none_left_behind(pool):
            raise BrokenProcessPool
    # They had a minute to sleep.
    assert all(isinstance(wait.exception(), BrokenProcessPool) for wait in waits)


def test_a_killed_worker_loses_nothing(raw: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 30
        while not killed and time.monotonic() < deadline:
            for child in children():
                os.kill(child, signal.SIGKILL)
                killed.append(child)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    done = convert("the_cauldron", raw, tmp_path / "out", engine="process", workers=2, **OPTIONS)
    killer.join()
    assert killed and everything(done.out) == expected


def die(job: Any, task: Any) -> None:
    os._exit(1)


def test_workers_that_die_again_and_again_are_an_error(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_run_counted", die)
    with pytest.raises(DataError, match="killed 3 times.*--resume and fewer --workers"):
        convert("the_cauldron", raw, tmp_path / "out", engine="process", workers=2, **OPTIONS)


def test_ray_with_two_local_workers(raw: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'vlm-toolkit[ray]'")
    code = (
        "import os, sys\n"
        "from vlmdata import work\n"
        "from vlmdata.convert import convert\n"
        f"convert('the_cauldron', {str(raw)!r}, {str(tmp_path / 'out')!r}, engine='ray', workers=2, **{OPTIONS!r})\n"
        "try:\n"
        f"    convert('the_cauldron', {str(raw)!r}, {str(tmp_path / 'fail')!r}, engine='ray', max_rejects=0)\n"
        "except work.DataError as error:\n"
        "    print('said:', error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert everything(tmp_path / "out") == expected
    assert "the last is train.parquet:7, no_messages" in run.stdout


def test_ray_without_ray(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"the engine ray needs ray.*pip install 'vlm-toolkit\[ray\]'"):
        convert("the_cauldron", raw, tmp_path / "out", engine="ray")
