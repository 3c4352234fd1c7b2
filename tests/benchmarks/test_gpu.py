from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_flops, gpu_tables, gpu_work
from benchmarks.gpu_models import empty_model, make_processor, make_tokenizer, sentence
from benchmarks.gpu_setting import SIDES, Setting
from benchmarks.gpu_shapes import SHAPES
from benchmarks.gpu_train import train
from benchmarks.rows import noise


def setting(work: str, side: str, folder: Path, model: str = "llava") -> Setting:
    return Setting(
        work=work,
        model=model,
        side=side,
        folder=str(folder),
        tiny=True,
        device="cpu",
        dtype="float32",
        pairs=2,
        warm=0,
        steps=2,
        pictures=1,
        questions=5,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    gpu_work.make(setting("make", "", folder), folder)
    return folder


@pytest.mark.parametrize("name", ["smolvlm", "qwen", "llava", "qwen-896"])
def test_shapes_are_those_of_the_published_models(name: str) -> None:
    shape = SHAPES[name]
    tokenizer = make_tokenizer(shape)
    model = empty_model(shape, tokenizer, "bfloat16")
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters
    processor = make_processor(shape, tokenizer)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "bade figo"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = processor(text=[prompt], images=[[noise(0, shape.side)]], return_tensors="pt")["input_ids"][0]
    placeholder = getattr(model.config, next(iter(shape.ids)))
    assert int((ids == placeholder).sum()) == shape.image_tokens


def test_a_word_is_a_token() -> None:
    import random

    tokenizer = make_tokenizer(SHAPES["llava"])
    assert len(tokenizer(sentence(random.Random(0), 50))["input_ids"]) == 50


def test_the_same_loss_for_less_work(made: Path) -> None:
    found = {side: train(setting("dpo-off", side, made), made) for side in SIDES["dpo-off"]}
    ours, theirs = found["vlmtrain"], found["trl"]
    assert len(ours["losses"]) == len(ours["seconds"]) == 2
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert ours["gradients"] == pytest.approx(theirs["gradients"], rel=1e-4)
    # The policy is not the reference, or the loss would say nothing.
    assert abs(ours["losses"][0] - 0.693147) > 1e-3
    assert (ours["tower_images"], theirs["tower_images"]) == (2, 8)
    assert ours["lm_tokens"] < 0.7 * theirs["lm_tokens"]
    assert ours["tokens"] == theirs["tokens"] and ours["needed"] == theirs["needed"]
    # What torch counts has attention to hidden tokens in it, too, and not what nobody reads of the last of few layers.
    assert 0.9 < ours["needed"] / ours["done"] < 1.3
    assert 1.5 * ours["done"] < theirs["done"]


def test_keys_of_our_side_can_be_set(made: Path) -> None:
    plain = dataclasses.replace(setting("dpo-off", "vlmtrain", made), sets=("share_prefix=false",))
    assert train(plain, made)["lm_tokens"] >= train(setting("dpo-off", "trl", made), made)["tokens"]


def test_the_reference_asked_beforehand_counts(made: Path) -> None:
    found = train(setting("dpo", "vlmtrain-once", made), made)
    assert found["reference_seconds"] > 0 and found["done"] is None
    assert gpu_tables.step_seconds(found) > found["reference_seconds"]


def test_the_same_answers(made: Path) -> None:
    found = {side: gpu_work.ask(setting("ask", side, made), made) for side in SIDES["ask"]}
    plain = found["generate"]
    assert plain["asked"] == len(plain["words"]) == len(plain["yes"]) == 5
    assert len(set(plain["words"])) > 1
    assert not gpu_tables.differing(found["vlmeval"], plain)
    assert not gpu_tables.differing(found["vlmeval-words"], plain)
    assert found["vlmeval"]["yes"] == pytest.approx(plain["yes"], rel=1e-4)
    assert found["vlmeval"]["tower_images"] == 1 and plain["tower_images"] == 5


def test_answers_that_differ_are_counted_with_their_lead() -> None:
    theirs = {"words": ["a", "b"], "yes": [0.2, 0.3], "no": [0.1, 0.1], "gaps": [0.5, 0.25]}
    probabilities = {"words": [], "yes": [0.2, 0.1], "no": [0.1, 0.3]}
    assert gpu_tables.differing(probabilities, theirs) == pytest.approx([0.5])
    assert gpu_tables.differing({**probabilities, "words": ["a", "c"]}, theirs) == [0.25]


def entry(side: str, run: int, **more: Any) -> dict[str, Any]:
    return {"model": "llava", "work": "dpo-off", "side": side, "run": run, **more}


def test_ratios_are_of_runs_in_which_both_ran(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"losses": [1.0], "gradients": [2.0], "tokens": 10, "needed": 1e9, "done": None}
    figures |= {"lm_tokens": 5, "tower_images": 1, "peak_bytes": 1, "reference_seconds": 0.5}
    works = [
        entry("vlmtrain", 0, **figures, seconds=[0.4, 0.5, 9.0], whole_seconds=[1.0]),
        entry("vlmtrain", 1, error="out of memory: CUDA"),
        entry("trl", 0, **(figures | {"reference_seconds": 0.0}), seconds=[3.0], whole_seconds=[3.0]),
        entry("trl", 1, error="the process ended by itself, exit code -9"),
    ]
    sides: gpu_tables.Sides = {"vlmtrain": [works[0], None], "trl": [works[2], None]}
    assert gpu_tables.ratios(sides, "vlmtrain") == [3.0]
    about = {"rate": 1e10, "device_name": "X", "dtype": "bfloat16", "versions": {}, "targets": {"llava, dpo-off": 4}}
    gpu_tables.show({"about": about, "works": works})
    shown = capsys.readouterr().out
    assert "target 4x, missed" in shown and "3.00x" in shown
    assert "vlmtrain, run 2: out of memory: CUDA" in shown and "exit code -9" in shown


def broken_rate(*given: Any) -> float:
    raise RuntimeError("no product\nmore")


def test_a_rate_that_cannot_be_measured_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_flops, "matmul_rate", broken_rate)
    found = gpu_work._do(setting("rate", "", tmp_path))
    assert found["error"] == "RuntimeError: no product" and "rate" not in found
    assert found["versions"]["torch"] and found["device_name"]


@pytest.mark.parametrize("crashed", [False, True])
def test_works_are_measured_without_the_rate(
    crashed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written is all there is, utilisation is not among it."""
    why = "the process ended by itself, exit code -9" if crashed else "RuntimeError: no product"
    machine = {} if crashed else {"device_name": "X", "versions": {"torch": "2"}}
    figures = {"losses": [1.0], "gradients": [2.0], "tokens": 10, "needed": 1e9, "done": 2e9, "seconds": [0.5]}
    figures |= {"whole_seconds": [0.5], "reference_seconds": 0.0, "lm_tokens": 5, "tower_images": 1, "peak_bytes": 1}
    done = {"rate": {"error": why, **machine}, "make": {"parameters": 7}, "sft-off": figures}
    monkeypatch.setattr(gpu._Runner, "do", lambda runner, given: {**done[given.work]})
    file = tmp_path / "gpu.json"
    command = ["gpu", "--device", "cpu", "--tiny", "--models", "llava", "--works", "sft-off", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    for name in ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    with pytest.raises(SystemExit, match=f"^the rate of large products: {why}$"):
        gpu.main()
    found = json.loads(file.read_text())
    assert found["about"]["rate_error"] == why and "rate" not in found["about"]
    assert [work["side"] for work in found["works"]] == ["vlmtrain", "trl"] * 2
    shown = capsys.readouterr().out
    assert f"not measured: {why}" in shown and ("torch 2" in shown) is not crashed
    rows = [line for line in shown.splitlines() if "0.500" in line]
    assert len(rows) == 2 and all(row.count(" not ") == 2 for row in rows)


def test_of_a_rate_alone_there_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first model is made."""
    file = tmp_path / "gpu.json"

    def do(runner: Any, given: Setting) -> dict[str, Any]:
        if given.work == "make":
            raise KeyboardInterrupt
        return {"error": "out of memory: CUDA"}

    monkeypatch.setattr(gpu._Runner, "do", do)
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--json", str(file)])
    for name in ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    assert json.loads(file.read_text())["about"]["rate_error"] == "out of memory: CUDA"


def crash(*given: Any) -> None:
    os._exit(3)


def sleep(*given: Any) -> None:
    time.sleep(600)


def test_what_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = gpu._Runner(tmp_path, Namespace(device="cpu", timeout=60, minutes=None))
    runner._context = multiprocessing.get_context("fork")
    missing = setting("ask", "generate", tmp_path / "none")
    assert "none" in runner.do(missing)["error"]
    monkeypatch.setattr(gpu_work, "work", crash)
    assert runner.do(missing)["error"] == "the process ended by itself, exit code 3"
    monkeypatch.setattr(gpu_work, "work", sleep)
    runner._timeout = 0.2
    assert runner.do(missing)["error"] == "not done after 0 s"
    runner._ends = time.monotonic() - 1
    assert runner.do(missing)["error"] == "out of time"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "llava,gpt"], "no 'gpt'; valid: smolvlm"),
        (["--steps", "0"], "--steps is 0, expected at least 1"),
        (["--device", "cpu", "--tmp", "/nowhere"], "--tmp /nowhere is no folder"),
        (["--device", "cpu", "--json", "/nowhere/a.json"], "there is no folder /nowhere"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    for name in ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert said in capsys.readouterr().err + str(ended.value)


@pytest.mark.slow
def test_every_side_of_every_family_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--runs", "1"]
    command += ["--tmp", str(tmp_path), "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["works"]) == 3 * sum(map(len, SIDES.values()))
    losses: dict[tuple[str, str], list[float]] = {}
    for work in found["works"]:
        assert "error" not in work
        if "losses" in work:
            first = losses.setdefault((work["model"], work["work"]), work["losses"])
            assert work["losses"] == pytest.approx(first, rel=1e-5)
    assert not [path for path in tmp_path.iterdir() if path.name != "gpu.json"]
