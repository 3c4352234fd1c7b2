"""What enters the first trained block is computed once a picture, and a run that goes on from there is the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import labelled_rows
import pytest
import tiny_models
import torch
from killed import Died, killed_after
from last_block_runs import HELD, LAST, ROWS, SIZE, watch
from run_files import logged, weights
from transformers import AutoConfig

from vlmtrain import classify
from vlmtrain.caches import kept_activations
from vlmtrain.caches.block_features import Cut
from vlmtrain.runs import RunResult

FAST = ("vit", "swinv2", "convnext")
SLOW = pytest.mark.slow
KINDS = [pytest.param(f, k, marks=() if k in FAST else SLOW) for f, k in labelled_rows.kinds()]


data = labelled_rows.shards("train", 4)
held = labelled_rows.shards("held", 2, seed=9)


@pytest.fixture(scope="module")
def plain(vit: Path, data: Path, held: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Without anything that is kept."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    return classify.train(data, out, model=str(vit), eval_data=[held], cache_features=False, **LAST)


@pytest.fixture(scope="module")
def steady(vit: Path, data: Path, held: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The same without dropout, whose numbers depend on whether an evaluation came between."""
    out = tmp_path_factory.mktemp("runs") / "steady"
    options = {**LAST, "model": str(vit), "eval_data": [held], "lora_dropout": 0.0}
    return classify.train(data, out, **options, cache_features=False)


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return watch(monkeypatch)


def close(first: RunResult, second: RunResult) -> None:
    """Same weights, losses and evaluations."""
    ours, theirs = weights(first.out), weights(second.out)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-5, rtol=1e-5)
    for name in ("loss", "eval_loss", "eval_accuracy"):
        logs = [[e[name] for e in logged(run.out) if name in e] for run in (first, second)]
        assert len(logs[1]) > 2 and logs[0] == pytest.approx(logs[1], abs=1e-5), name


def note(run: RunResult) -> str | None:
    found: str | None = json.loads((run.out / "vlmtrain.json").read_text()).get("activations")
    return found


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_it_is_computed_once_and_the_run_is_the_same(
    family: str, kind: str, data: Path, held: Path, tmp_path: Path, below: list[int]
) -> None:
    base = tiny_models.make(family, tmp_path / "base", kind=kind)
    config = AutoConfig.from_pretrained(base)
    if getattr(config, "drop_path_rate", 0.0):
        config.drop_path_rate = 0.0
        config.save_pretrained(base)
    runs, counts = [], []
    for on in (False, True):
        below.clear()
        options = {**LAST, "model": str(base), "eval_data": [held], "cache_features": on, "logging_steps": 1}
        runs.append(classify.train(data, tmp_path / str(on), **options))
        counts.append(sum(below))
    assert counts == [3 * (ROWS + HELD), ROWS + HELD], "without it each row in each pass, with it each row once"
    close(runs[1], runs[0])
    blocks = 4 if family == "convnext" else 2
    assert note(runs[1]) == f"before block {blocks} of {blocks}: of 36 of 36 pictures computed once"
    assert note(runs[0]) is None
    left = [{file.relative_to(run.out) for file in run.out.rglob("*")} for run in runs]
    assert left[0] == left[1], "nothing of it stays"


@pytest.mark.parametrize(
    ("where", "room", "batches", "rest"),
    [
        ("ram", 10, 1, 14 + 12),
        ("disk", 30, 3, 6),
        pytest.param("ram", 30, 3, 6, marks=SLOW),
        pytest.param("disk", 10, 1, 14 + 12, marks=SLOW),
    ],
)
def test_what_has_no_room_is_computed_in_every_pass(
    where: str, room: int, batches: int, rest: int, vit: Path, data: Path, held: Path, plain: RunResult,
    tmp_path: Path, below: list[int], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Batches hold some rows that are kept and some that are not."""
    options = {**LAST, "model": str(vit), "eval_data": [held], "cache_in": where, "workers": 2, "progress": True}
    run = classify.train(data, tmp_path / "run", **options, cache_gb=(room + 0.5) * SIZE / 2**30)
    assert sum(below) == 12 * batches + 3 * rest
    assert note(run) == f"before block 2 of 2: of {room} of 36 pictures computed once"
    said = capsys.readouterr().err
    place = "memory" if where == "ram" else "files"
    assert f"activations before block 2 of 2 are kept in {place}: {room} pictures" in said
    assert f"no room for the other {36 - room}: they are computed in every pass" in said
    close(run, plain)
    assert not (run.out / "checkpoints" / "image-features").exists()


def test_a_run_killed_while_it_computes_or_trains_goes_on_with_what_is_kept(
    vit: Path, data: Path, held: Path, steady: RunResult, tmp_path: Path, below: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    options = {**LAST, "model": str(vit), "eval_data": [held], "cache_in": "disk", "save_steps": 2, "lora_dropout": 0.0}
    monkeypatch.setattr(kept_activations, "_WRITE", 1)
    with monkeypatch.context() as patch:
        compute, calls = Cut.below, []

        def dies(self: Cut, pixels: torch.Tensor) -> torch.Tensor:
            calls.append(len(pixels))
            if len(calls) == 2:
                raise Died
            return compute(self, pixels)

        patch.setattr(Cut, "below", dies)
        with pytest.raises(Died):
            classify.train(data, tmp_path / "run", **options)
    assert below == [12, 12], "two batches of three"
    below.clear()
    with killed_after(classify, 3):
        classify.train(data, tmp_path / "run", **options, resume=True)
    assert below == [12, 12], "the first batch, which tells that it is exact, and the third"
    (folder,) = (tmp_path / "run" / "checkpoints" / "image-features").iterdir()
    assert (folder / "values").stat().st_size == 36 * SIZE
    below.clear()
    run = classify.train(data, tmp_path / "run", **options, resume=True)
    assert run.metrics["resumed_from_step"] == 2 and below == [12]
    assert not (run.out / "checkpoints" / "image-features").exists()
    assert weights(run.out).keys() == weights(steady.out).keys()
    for key, value in weights(steady.out).items():
        torch.testing.assert_close(weights(run.out)[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_where_and_how_much_may_change_when_a_run_is_resumed(
    vit: Path, data: Path, held: Path, steady: RunResult, tmp_path: Path
) -> None:
    options = {**LAST, "model": str(vit), "eval_data": [held], "save_steps": 2, "lora_dropout": 0.0}
    part = 20.5 * SIZE / 2**30
    ways = ({"cache_in": "disk"}, {"cache_in": "disk", "cache_gb": part}, {"cache_in": "ram"})
    for number, way in enumerate(ways):
        with killed_after(classify, number + 3):
            classify.train(data, tmp_path / "run", **options, **way, resume=number > 0)
    run = classify.train(data, tmp_path / "run", **options, resume=True)
    assert run.metrics["resumed_from_step"] == 4
    for key, value in weights(steady.out).items():
        torch.testing.assert_close(weights(run.out)[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", [pytest.param("ram", marks=SLOW), "disk"])
def test_a_picture_that_cannot_be_decoded_ends_nothing(where: str, vit: Path, held: Path, tmp_path: Path) -> None:
    folder = labelled_rows.write(tmp_path / "data", 4)
    # One in the first batch, which is tried, the other at the end of a class: the next row has another label.
    rows = labelled_rows.cut_short(folder, (3, 19))
    assert rows[3]["label"] != rows[4]["label"] and rows[19]["label"] != rows[20]["label"]
    options = {**LAST, "model": str(vit), "eval_data": [held]}
    kept = classify.train(folder, tmp_path / "kept", **options, cache_in=where)
    every = classify.train(folder, tmp_path / "plain", **options, cache_features=False)
    close(kept, every)
    for run in (kept, every):
        bad = [json.loads(line) for line in (run.out / "bad_rows.jsonl").read_text().splitlines()]
        assert [entry["row"] for entry in bad] == [3, 19] and run.metrics["rows"]["unreadable"] == 2
    assert note(kept) == "before block 2 of 2: of 36 of 36 pictures computed once"
    with pytest.raises(Exception, match="on_bad_row is fail"):
        classify.train(folder, tmp_path / "fail", **options, on_bad_row="fail")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"eval_fraction": 0.25}, marks=SLOW),
        {"dtype": "bfloat16", "eval_fraction": 0.25},
        pytest.param({"gradient_checkpointing": True, "eval_fraction": 0.25}, marks=SLOW),
        pytest.param(
            {"tuner": "adalora", "accumulate": 2, "max_steps": 5, "eval_steps": 2, "eval_fraction": 0.25}, marks=SLOW
        ),
        pytest.param(
            {"target_modules": ["q_proj", "fc1"], "parts": None, "label_smoothing": 0.1, "eval_fraction": 0.25},
            marks=SLOW,
        ),
    ],
    ids=["held_out", "bfloat16", "checkpointing", "adalora", "names"],
)
def test_it_goes_with_the_other_settings(
    more: dict[str, Any], vit: Path, data: Path, tmp_path: Path, below: list[int]
) -> None:
    options = {**LAST, "model": str(vit), "logging_steps": 1, **more}
    every = classify.train(data, tmp_path / "plain", **options, cache_features=False)
    below.clear()
    kept = classify.train(data, tmp_path / "kept", **options)
    assert sum(below) == ROWS
    close(kept, every)


@pytest.mark.slow
def test_an_adapter_of_last_blocks_is_trained_further(
    vit: Path, data: Path, held: Path, plain: RunResult, tmp_path: Path, below: list[int]
) -> None:
    options = {key: value for key, value in LAST.items() if key not in ("lora_last_layers", "parts", "lora_dropout")}
    options |= {"model": str(vit), "adapter": str(plain.out), "eval_data": [held]}
    runs = [classify.train(data, tmp_path / str(on), **options, cache_features=on) for on in (False, True)]
    assert sum(below) == 4 * (ROWS + HELD)
    close(runs[1], runs[0])
    assert json.loads((runs[1].out / "vlmtrain.json").read_text())["config"]["lora_last_layers"] == 1


SCRIPT = """
import json, sys
from pathlib import Path
from vlmtrain import classify, distributed
from vlmtrain.caches.block_features import Cut

data, held, out, options = *map(Path, sys.argv[1:4]), json.loads(sys.argv[4])
plain, seen = Cut.below, []

def counted(self, pixels):
    seen.append(len(pixels))
    return plain(self, pixels)

Cut.below = counted
for where in ("ram", "disk"):
    seen.clear()
    classify.train(data, out / where, eval_data=[held], cache_in=where, **options)
    (out / f"{where}-{distributed.rank()}.json").write_text(json.dumps(sum(seen)))
"""


@pytest.mark.slow
def test_two_processes_are_one(vit: Path, data: Path, held: Path, plain: RunResult, tmp_path: Path) -> None:
    """Each computes its half; in batches of 6, where one process has 12."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    # Each process would draw dropout of its own.
    options = {**LAST, "model": str(vit), "batch_size": 6, "lora_dropout": 0.0}
    alone = classify.train(
        data, tmp_path / "alone", eval_data=[held], cache_features=False, **{**options, "batch_size": 12}
    )
    command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2", str(script)]
    command += [str(data), str(held), str(tmp_path), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    for where in ("ram", "disk"):
        counts = [json.loads((tmp_path / f"{where}-{rank}.json").read_text()) for rank in (0, 1)]
        assert counts == [12, 18], "the first has the batch it was tried on already"
        assert note(RunResult(tmp_path / where, {}, {})) == "before block 2 of 2: of 36 of 36 pictures computed once"
        for key, value in weights(alone.out).items():
            torch.testing.assert_close(weights(tmp_path / where)[key], value, atol=2e-3, rtol=1e-2)
