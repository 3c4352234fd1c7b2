"""A run that does not fit begins again with half the batch, and ends as one that was started with it."""

from __future__ import annotations

import gc
import importlib
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import colour_rows as rows
import labelled_rows
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook

from vlmdata.errors import ConfigError
from vlmtrain import classify
from vlmtrain.auto_batch import is_out_of_memory, settled, smaller
from vlmtrain.config import resolve
from vlmtrain.runs import RunResult

QUICK: dict[str, Any] = {"learning_rate": 1e-3, "progress": False, "logging_steps": 1, "lora_dropout": 0.1}


class Device:
    """A device that has room for so many rows of a forward; fails from its ``start``-th forward on."""

    def __init__(self, room: int, layer: type[torch.nn.Module] = torch.nn.Embedding) -> None:
        self.room, self.layer, self.start, self.seen = room, layer, 0, 0
        self.failures: list[int] = []
        self.models: list[weakref.ref[Any]] = []
        self.error: Callable[[], BaseException] = lambda: torch.OutOfMemoryError("CUDA out of memory.")

    def __call__(self, module: torch.nn.Module, args: Any) -> None:
        # LLaVA's tower has an embedding of its own, of positions: one row.
        if type(module) is not self.layer or len(args[0]) == 1:
            return
        count = len(args[0])
        self.seen += 1
        if count > self.room and self.seen > self.start:
            self.failures.append(count)
            self.models.append(weakref.ref(module))
            raise self.error()


@pytest.fixture
def device() -> Iterator[Callable[[int], Device]]:
    handles: list[Any] = []

    def make(room: int, layer: type[torch.nn.Module] = torch.nn.Embedding) -> Device:
        made = Device(room, layer)
        handles.append(register_module_forward_pre_hook(made))
        return made

    yield make
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "sft": rows.write(folder / "colours", rows.colours(16)),
        "dpo": rows.write(folder / "pairs", rows.pairs(16)),
        "kto": rows.write(folder / "more", rows.pairs(16)),
    }


def train(method: str, data: dict[str, Path], base: Path, out: Path, **options: Any) -> RunResult:
    # The device counts the rows of a forward; these would share their beginning, and be fewer.
    plain = {"share_prefix": False} if method in ("sft", "dpo") else {}
    run: RunResult = importlib.import_module(f"vlmtrain.{method}").train(
        data[method], out, model=str(base), **{**QUICK, **plain, **options}
    )
    return run


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    return load_file(run.out / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("method", "rows_of_a_pair"), [("sft", 1), ("dpo", 2), pytest.param("kto", 2, marks=pytest.mark.slow)]
)
def test_the_result_is_that_of_the_batch_that_was_found(
    method: str, rows_of_a_pair: int, data: dict[str, Path], base: Path, tmp_path: Path, device: Any
) -> None:
    """For dpo and kto it is the reference pass before training that fails first."""
    plain = train(method, data, base, tmp_path / "plain", batch_size=2, accumulate=4)
    full = device(room=2 * rows_of_a_pair)
    found = train(method, data, base, tmp_path / "auto", batch_size=8, auto_batch=True)
    assert full.failures == [8 * rows_of_a_pair, 4 * rows_of_a_pair]
    a, b = weights(plain), weights(found)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert found.metrics["steps"] == plain.metrics["steps"] == 2
    about = json.loads((found.out / "vlmtrain.json").read_text())
    assert (about["config"]["batch_size"], about["config"]["accumulate"], about["asked_batch"]) == (2, 4, [8, 1])
    assert (found.metrics["batch_size"], found.metrics["accumulate"]) == (2, 4)
    assert found.metrics["asked_batch"] == [8, 1] and plain.metrics["asked_batch"] is None
    assert "2 x 4" in (found.out / "README.md").read_text()


def test_memory_that_runs_out_later_starts_anew(
    data: dict[str, Path], base: Path, tmp_path: Path, device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints and log lines of the failed attempt are gone, its model is freed, and one line says it."""
    plain = train("sft", data, base, tmp_path / "plain", batch_size=2, accumulate=2, epochs=2)
    full = device(room=2)
    full.start = 5
    kept: list[Any] = []

    def watch(module: Any, args: Any) -> None:
        if full.models and not kept and type(module) is torch.nn.Embedding:
            kept.append(full.models[0]())

    handle = register_module_forward_pre_hook(watch)
    found = train(
        "sft", data, base, tmp_path / "auto", batch_size=4, epochs=2, auto_batch=True, save_steps=1, progress=True
    )
    handle.remove()
    assert full.failures == [4]
    assert kept == [None], "the failed attempt's model is still there"
    a, b = weights(plain), weights(found)
    assert all(torch.equal(a[key], b[key]) for key in a)
    steps = [json.loads(line)["step"] for line in (found.out / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[0] == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memory out of memory")]
    assert told == ["memory out of memory at step 5 with batch 4 x 1: again with 2 x 2"]


def test_a_run_that_is_resumed_keeps_the_batch(data: dict[str, Path], base: Path, tmp_path: Path, device: Any) -> None:
    options = {"batch_size": 4, "epochs": 2, "auto_batch": True, "save_steps": 1}
    whole = train("sft", data, base, tmp_path / "whole", batch_size=2, accumulate=2, epochs=2)
    full = device(room=2)

    class Killed(Exception):
        pass

    def kill(module: Any, args: Any) -> None:
        # Two forwards a step with the batch that was found; in the third step of it.
        if full.failures and full.seen == 1 + 5:
            raise Killed

    handle = register_module_forward_pre_hook(kill)
    with pytest.raises(Killed):
        train("sft", data, base, tmp_path / "run", **options)
    handle.remove()
    found = train("sft", data, base, tmp_path / "run", resume=True, **options)
    assert full.failures == [4], "no second try of what is known not to fit"
    assert found.metrics["resumed_from_step"] == 2 and found.metrics["asked_batch"] == [4, 1]
    a, b = weights(whole), weights(found)
    assert all(torch.equal(a[key], b[key]) for key in a)
    again = train("sft", data, base, tmp_path / "run", resume=True, **options)
    assert again.metrics == found.metrics, "a finished run is given back"
    with pytest.raises(ConfigError, match="batch_size was 2, is 8"):
        train("sft", data, base, tmp_path / "run", resume=True, **{**options, "batch_size": 8})


def test_one_row_that_does_not_fit_is_an_error(data: dict[str, Path], base: Path, tmp_path: Path, device: Any) -> None:
    full = device(room=1)
    full.error = lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")
    with pytest.raises(ConfigError, match=r"batch_size 2, and there is no smaller one.*vlmtrain plan"):
        train("kto", data, base, tmp_path / "kto", batch_size=4, auto_batch=True)
    full.room = 0
    full.error = lambda: ValueError("something else")
    with pytest.raises(ValueError, match="something else"):
        train("sft", data, base, tmp_path / "sft", batch_size=4, auto_batch=True)
    assert full.failures[-1] == 4, "other errors are not taken for it"


def test_without_the_key_nothing_is_caught(data: dict[str, Path], base: Path, tmp_path: Path, device: Any) -> None:
    full = device(room=2)
    with pytest.raises(torch.OutOfMemoryError):
        train("sft", data, base, tmp_path / "run", batch_size=4)
    assert full.failures == [4]
    gc.collect()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="auto_batch is for a single process"):
        settled(resolve("sft", {"auto_batch": True}), None, None)
    assert settled(resolve("sft", {}), None, None)[1] is None


def test_classifiers_too(tmp_path: Path, device: Any) -> None:
    data = labelled_rows.write(tmp_path / "data", 2)
    vit = tiny_models.make("vit", tmp_path / "vit")
    options = {"model": str(vit), "progress": False, "augment": "none"}
    plain = classify.train(data, tmp_path / "plain", batch_size=2, accumulate=3, **options)
    full = device(room=2, layer=torch.nn.Conv2d)
    found = classify.train(data, tmp_path / "auto", batch_size=6, auto_batch=True, **options)
    assert full.failures == [6, 3] and found.metrics["batch_size"] == 1
    full.room, full.failures = 3, []
    found = classify.train(data, tmp_path / "again", batch_size=6, auto_batch=True, **options)
    assert full.failures == [6] and (found.metrics["batch_size"], found.metrics["accumulate"]) == (3, 2)
    assert found.metrics["steps"] == plain.metrics["steps"]


@pytest.mark.parametrize(
    ("batch", "accumulate", "least", "then"),
    [
        (8, 1, 1, (4, 2)),
        (2, 32, 1, (1, 64)),
        (3, 2, 1, (1, 6)),
        (6, 1, 1, (3, 2)),
        (14, 1, 1, (7, 2)),
        (7, 2, 1, (2, 7)),
        (5, 1, 1, (1, 5)),
        (1, 8, 1, None),
        (2, 4, 2, None),
        (7, 1, 2, (3, 3)),
        (3, 1, 2, (2, 2)),
    ],
)
def test_rows_of_a_step_stay_the_same(batch: int, accumulate: int, least: int, then: tuple[int, int] | None) -> None:
    """But where a batch of at least two (kto) cannot share them out."""
    assert smaller(batch, accumulate, least) == then


def test_what_counts_as_memory() -> None:
    for error in (
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(OSError("out of memory"))
