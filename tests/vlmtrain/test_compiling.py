"""``compile: true``: the same training through compiled layers; most of it with a backend that needs no C++."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import colour_rows as rows
import labelled_rows
import pytest
import tiny_models
import torch
from safetensors import safe_open
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from vlmdata.errors import ConfigError
from vlmtrain import classify, dpo, kto, sft
from vlmtrain import family as families
from vlmtrain.config import resolve
from vlmtrain.lean import compiling
from vlmtrain.model import load
from vlmtrain.parts import layers_of
from vlmtrain.runs import RunResult
from vlmtrain.training import begin

MAKE: dict[str, Any] = {"sft": sft.make_trainer, "dpo": dpo.make_trainer, "kto": kto.make_trainer}
QUICK: dict[str, Any] = {"batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "max_steps": 3}
FAMILIES = [name for name in families.names() if families.load(name).task == "text" and name != "llava"]


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    pairs = rows.write(folder / "pairs", rows.pairs(12))
    return {"sft": rows.write(folder / "colours", rows.colours(12)), "dpo": pairs, "kto": pairs}


def made(method: str, data: Path, base: Path, out: Path, **options: Any) -> Any:
    job = begin(method, data=[data], out=out, progress=False, options={"model": str(base), **QUICK, **options})
    assert not isinstance(job, RunResult)
    return MAKE[method](job)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def both(method: str, data: Path, base: Path, tmp_path: Path, **options: Any) -> tuple[Any, Any]:
    """The same run, plain and compiled; equal step by step."""
    plain = made(method, data, base, tmp_path / "False", **options)
    plain.train()
    compiled = made(method, data, base, tmp_path / "True", compile=True, **options)
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5) and len(losses(plain)) >= 3
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    return plain, compiled


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sft", {"gradient_checkpointing": True, "save_steps": 3}),
        pytest.param("dpo", {"reference": "live"}, marks=pytest.mark.slow),
        pytest.param("sft", {"packing": False, "share_prefix": False}, marks=pytest.mark.slow),
        pytest.param("dpo", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("kto", {}, marks=pytest.mark.slow),
    ],
)
def test_the_same_training(
    method: str,
    options: dict[str, Any],
    data: dict[str, Path],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(compiling, "BACKEND", counter)
    plain, compiled = both(method, data[method], base, tmp_path, **options)
    assert counter.frame_count > 1, "more than what is tried"
    if "save_steps" in options:
        found = []
        for folder in ("True", "False"):
            with safe_open(tmp_path / folder / "checkpoints/checkpoint-3/adapter_model.safetensors", "pt") as file:
                found.append(sorted(file.keys()))
        assert found[0] == found[1] and found[0], "a checkpoint does not tell"


def test_a_step_more_compiles_nothing_more(
    data: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of any length, folded in any way: what was compiled in the first steps serves the others."""
    counter = CompileCounter()
    monkeypatch.setattr(compiling, "BACKEND", counter)
    trainer = made("sft", data["sft"], base, tmp_path / "run", compile=True, max_steps=9)
    counts: list[int] = []
    step = trainer.training_step
    trainer.training_step = lambda *args, **kwargs: (counts.append(counter.frame_count), step(*args, **kwargs))[1]
    trainer.train()
    assert len(counts) == 9 and counts[6] == counter.frame_count < 16


def test_an_answer_is_written_by_plain_layers_and_a_copy_has_its_own(
    data: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(compiling, "BACKEND", counter)
    trainer = made("sft", data["sft"], base, tmp_path / "run", compile=True)
    net = trainer.net.eval()
    before = counter.frame_count
    found = net.generate(input_ids=torch.tensor([[1, 5, 6]]), max_new_tokens=3, do_sample=False)
    assert found.shape[1] > 3 and counter.frame_count == before
    twin = copy.deepcopy(net)
    layers = layers_of(twin, trainer.family)
    assert layers and all(layer.forward.__self__ is layer for layer in layers.values())


def test_a_classifier_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    vit = tiny_models.make("vit", tmp_path / "vit")
    shards = labelled_rows.write(tmp_path / "train", 2)
    found = []
    for compiled in (False, True):
        options = {"model": str(vit), "batch_size": 4, "max_steps": 3, "logging_steps": 1, "compile": compiled}
        job = classify.begin(data=[shards], out=tmp_path / str(compiled), progress=False, options=options)
        assert not isinstance(job, RunResult)
        trainer = classify.make_trainer(job)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and len(found[0]) == 3


def test_what_cannot_be(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="compile is for weights of 16 or 32 bits, and quantize is 8bit"):
        compiling.check(resolve("sft", {"compile": True, "quantize": "8bit"}))
    compiling.check(resolve("sft", {"quantize": "8bit"}))

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no g++\nanywhere")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    with pytest.raises(ConfigError, match=r"^compile does not work on this machine, it needs a C\+\+ .*no g") as caught:
        made("sft", data["sft"], base, tmp_path / "run", compile=True)
    assert "\n" not in str(caught.value)
    job: Any = SimpleNamespace(config=resolve("sft", {"compile": True}), loaded=None)
    with pytest.raises(ConfigError, match="compile: processes hold the weights in parts"):
        compiling.compile_layers(SimpleNamespace(is_sharded=True), job)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_every_family(
    method: str,
    family: str,
    data: dict[str, Path],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    both(method, data[method], model_folder(family), tmp_path, gradient_checkpointing=True)
    assert counter.frame_count > 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_with_a_real_compiler(method: str, data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    assert compiling.BACKEND == "inductor"
    both(method, data[method], base, tmp_path, gradient_checkpointing=True)


def test_language_layers_of_a_family(base: Path) -> None:
    found = load(str(base), device="cpu")
    names = list(layers_of(found.model, found.family))
    assert names and all(".language_model.layers." in f".{name}" for name in names)
