"""What a frozen tower gives is kept: the same training as without, every image through the tower once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import labelled_rows
import pytest
import run_files
import tiny_models
import torch
from killed import Died, Kill, killed_after
from labelled_rows import QUICK
from safetensors.torch import load_file
from test_family_training import MAKE, gradients, same, write
from transformers import AutoConfig

from vlmdata.errors import ConfigError
from vlmtrain import classify, dpo, kto, sft
from vlmtrain.caches.known_images import image_inputs
from vlmtrain.family import Family
from vlmtrain.features import IMAGES
from vlmtrain.model import Loaded
from vlmtrain.runs import RunResult
from vlmtrain.training import begin, run

PROBE = {**QUICK, "lora_dropout": None, "augment": "none", "head_only": True, "epochs": 3}


pictures = labelled_rows.shards("train", 4)
held = labelled_rows.shards("held", 2, seed=9)


def _watch_pictures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each forward of a base saw."""
    seen: list[int] = []
    plain = classify.make_trainer

    def watched(job: Any) -> Any:
        net = job.loaded.model
        forward = net.forward

        def counted(*args: Any, **inputs: Any) -> Any:
            if inputs.get("pixel_values") is not None:
                seen.append(len(inputs["pixel_values"]))
            return forward(*args, **inputs)

        net.forward = counted
        return plain(job)

    monkeypatch.setattr(classify, "make_trainer", watched)
    return seen


# The others have the same forward.
KINDS = [
    pytest.param(f, k, marks=() if k in ("vit", "clip", "convnext") else pytest.mark.slow)
    for f, k in labelled_rows.kinds()
    if k not in ("convnextv2", "deit", "dinov2_with_registers")
]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_a_head_is_trained_on_features_computed_once(
    family: str, kind: str, pictures: Path, held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.make(family, tmp_path / "base", kind=kind)
    config = AutoConfig.from_pretrained(base)
    drops = getattr(config, "drop_path_rate", 0.0) > 0
    if drops:
        config.drop_path_rate = 0.0
        config.save_pretrained(base)
    seen = _watch_pictures(monkeypatch)
    plain, kept = (
        classify.train(
            pictures, tmp_path / str(on), model=str(base), eval_data=[held], cache_features=on, logging_steps=1, **PROBE
        )
        for on in (False, True)
    )
    assert sum(seen) == 3 * (24 + 12) + 24 + 12, "without it each row in each pass, with it each row once"
    ours, theirs = run_files.weights(kept.out), run_files.weights(plain.out)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-5, rtol=1e-5)
    losses = [[entry["loss"] for entry in run_files.logged(run.out) if "loss" in entry] for run in (plain, kept)]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert json.loads((kept.out / "vlmtrain.json").read_text())["features"] == "computed once"
    assert "features" not in json.loads((plain.out / "vlmtrain.json").read_text())
    left = [{file.relative_to(run.out) for file in run.out.rglob("*")} for run in (plain, kept)]
    assert left[0] == left[1], "nothing of it stays"


def test_a_killed_run_finds_the_features_of_its_head(
    pictures: Path, held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.make("vit", tmp_path / "base")
    options = {**PROBE, "model": str(base), "eval_data": [held], "save_steps": 2}
    whole = classify.train(pictures, tmp_path / "whole", **options)
    with killed_after(classify, 3):
        classify.train(pictures, tmp_path / "killed", **options)
    seen = _watch_pictures(monkeypatch)
    resumed = classify.train(pictures, tmp_path / "killed", **options, resume=True)
    assert resumed.metrics["resumed_from_step"] == 2 and not seen
    assert run_files.same(whole.out, resumed.out)


def test_a_head_below_which_values_are_dropped_is_trained_the_plain_way(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_models.make("swinv2", tmp_path / "base")
    config = AutoConfig.from_pretrained(base)
    config.drop_path_rate = 0.3
    config.save_pretrained(base)
    seen = _watch_pictures(monkeypatch)
    result = classify.train(pictures, tmp_path / "run", model=str(base), **{**PROBE, "progress": True, "epochs": 2})
    assert sum(seen) == 2 * 24 and "features" not in json.loads((result.out / "vlmtrain.json").read_text())
    assert "features are computed in every pass: Swinv2DropPath drops" in capsys.readouterr().err


FULL = ("idefics2", "llava", "qwen2_vl", "qwen3_vl", "smolvlm")
QUICK_TALKS: dict[str, Any] = {"batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "seed": 1, "epochs": 3}
# Batches and gradients are compared for every family below; whole runs for one of each kind.
RUNS = [
    *(pytest.param(n, "sft", "disk", marks=() if n in ("llava", "qwen2_vl") else pytest.mark.slow) for n in FULL),
    ("qwen3_vl", "dpo", "ram"),
    pytest.param("idefics2", "dpo", "disk", marks=pytest.mark.slow),
]


def _rows(folder: Path, method: str) -> Path:
    """Five rows on an image each, and one of words."""
    made = []
    for number, colour in enumerate([*rows.COLOURS, "white", None]):
        shown = [rows.picture(colour, (40 + 9 * number, 70))] if colour else []
        ask = [rows.user(*[rows.PLACE] * len(shown), f"Question {number}?")]
        if method == "sft":
            made.append(rows.sample(f"r{number}", [*ask, rows.assistant(f"It is {number}.")], shown))
        else:
            made.append(rows.preference(f"r{number}", ask, f"It is {number}.", "No", shown))
    return rows.write(folder / method, made)


def _started(method: str, base: Path, data: Path, out: Path, **options: Any) -> tuple[Any, Any, list[int]]:
    """A trainer that is ready, its job, and the features each call of the tower gives, from now on."""
    resume = options.pop("resume", False)
    given = {"model": str(base), **QUICK_TALKS, **options}
    job = begin(method, data=[data], out=out, resume=resume, progress=False, options=given)
    assert not isinstance(job, RunResult)
    net, made = job.loaded.model, list[int]()
    plain = getattr(net, "get_image_features", None)

    def counted(*args: Any, **inputs: Any) -> Any:
        assert plain is not None
        found = plain(*args, **inputs)
        pooled = found.pooler_output
        each = [pooled] if isinstance(pooled, torch.Tensor) else pooled
        made.append(sum(one.shape[:-1].numel() for one in each))
        return found

    net.get_image_features = counted
    return MAKE[method](job), job, made


@pytest.mark.parametrize(("name", "method", "where"), RUNS)
def test_kept_features_change_nothing(
    name: str, method: str, where: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data, found, made = _rows(tmp_path, method), {}, {}
    for kept in ("off", where):
        trainer, job, made[kept] = _started(method, model_folder(name), data, tmp_path / kept, cache_vision=kept)
        result = run(trainer, job)
        found[kept] = (run_files.losses(result.out), run_files.weights(result.out))
        if kept != "off":
            figures = result.metrics["vision_cache"]
            assert (figures["images"], figures["tower_images"]) == (5, 5) and figures["bytes"] > 0
            assert json.loads((result.out / "vlmtrain.json").read_text())["config"]["cache_vision"] == where
    # DPO asks its reference, too.
    assert sum(made["off"]) == {"sft": 3, "dpo": 4}[method] * sum(made[where])
    assert found[where][0] == pytest.approx(found["off"][0], abs=1e-5)
    for key, value in found["off"][1].items():
        torch.testing.assert_close(found[where][1][key], value, atol=1e-5, rtol=1e-4)
        assert "lora_B" not in key or value.abs().max() > 1e-4, "something was learned"
    left, plain = ({f.relative_to(tmp_path / k) for f in (tmp_path / k).rglob("*")} for k in (where, "off"))
    assert left == plain, "nothing of it stays"


def _equal(ours: dict[str, Any], theirs: dict[str, Any], family: Family) -> None:
    """All but what belongs to pixels, and what is there for positions, too."""
    pixels = {"pixel_values", *family.pixel_inputs, *family.feature_inputs} - set(image_inputs(family))
    tensors = {key for key in theirs if isinstance(theirs[key], torch.Tensor)} - pixels
    assert tensors == {key for key in ours if isinstance(ours[key], torch.Tensor)} - pixels
    words = theirs["attention_mask"].bool()
    for key in tensors:
        one, other = (x[key][words] if x[key].shape == words.shape else x[key] for x in (ours, theirs))
        torch.testing.assert_close(one, other, atol=0, rtol=0)


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_batch_of_kept_images_is_the_one_with_pixels(
    loaded: Loaded,
    method: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several images in a row, none, some known and some new; known ones are not decoded again."""
    family, base = loaded.family, model_folder(loaded.family.name)
    data = write(tmp_path, family, method)
    given: dict[str, Any] = {"batch_size": 3, "cache_vision": "ram"}
    if method == "dpo":
        given["reference"] = "live"
    if family.features is not None or (family.name == "blip2" and method == "sft"):
        with pytest.raises(ConfigError, match="a row at a time|drops 10% of its values at random"):
            _started(method, base, data, tmp_path / "run", **given)
        return
    trainer, _, made = _started(method, base, data, tmp_path / "run", **given)
    all_rows, collate = list(trainer.train_dataset), trainer.data_collator.collate
    kept, collate.known = collate.known, None
    plain = collate(all_rows)
    expected = gradients(trainer)
    collate.known = kept
    first = collate(all_rows[:2])
    assert len(first[IMAGES].fresh) == len(first[IMAGES].keys) == len(all_rows[0]["images"])
    trainer.with_features(first)
    mixed = collate(all_rows)
    assert 0 < len(mixed[IMAGES].fresh) < len(mixed[IMAGES].keys)
    _equal(mixed, plain, family)
    same(gradients(trainer), expected)
    calls = len(made)
    monkeypatch.setattr("vlmtrain.collate.decode", None)
    blind = collate(all_rows)
    assert not blind[IMAGES].fresh and "pixel_values" not in blind
    _equal(blind, plain, family)
    same(gradients(trainer), expected)
    assert len(made) == calls, "no image goes through the tower again"


@pytest.mark.parametrize(("workers", "damaged"), [(0, True), (2, False)])
def test_a_killed_run_finds_its_features(
    workers: int, damaged: bool, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """To the byte; but for a damaged file's, which are computed again, in another batch."""
    base, data = model_folder("qwen3_vl"), _rows(tmp_path, "sft")
    options = {"cache_vision": "disk", "save_steps": 2, "workers": workers}
    trainer, job, made = _started("sft", base, data, tmp_path / "whole", **options)
    whole = run(trainer, job)
    trainer, job, _ = _started("sft", base, data, tmp_path / "killed", **options)
    trainer.add_callback(Kill(5))
    with pytest.raises(Died):
        run(trainer, job)
    files = sorted((tmp_path / "killed" / "checkpoints" / "image-features").rglob("*.safetensors"))
    assert len(files) == 5
    (files[1].parent / "x.safetensors.1.part").write_bytes(b"half")
    if damaged:
        files[0].write_bytes(files[0].read_bytes()[:-8])
    trainer, job, again = _started("sft", base, data, tmp_path / "killed", resume=True, **options)
    resumed = run(trainer, job)
    assert resumed.metrics["resumed_from_step"] == 4
    assert bool(again) == damaged and sum(again) < sum(made)
    assert resumed.metrics["vision_cache"]["tower_images"] == damaged
    if damaged:
        adapters = [load_file(result.out / "adapter_model.safetensors") for result in (whole, resumed)]
        torch.testing.assert_close(*adapters, rtol=1e-3, atol=1e-4)
    else:
        assert run_files.same(whole.out, resumed.out)
    assert not (resumed.out / "checkpoints" / "image-features").exists()


def test_with_room_for_some_the_others_are_seen_every_time(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base, data, made = model_folder("smolvlm"), _rows(tmp_path, "sft"), {}
    for kept, room in (("off", None), ("ram", 6e-6), ("disk", 6e-6)):
        trainer, job, made[kept] = _started(
            "sft", base, data, tmp_path / kept, cache_vision=kept, cache_vision_gb=room, workers=2
        )
        result = run(trainer, job)
        if kept != "off":
            figures = result.metrics["vision_cache"]
            assert 0 < figures["images"] < 5 and figures["bytes"] < 6e-6 * 2**30 + 2000
            assert figures["tower_images"] == 15 - 2 * figures["images"]
            assert sum(made[kept]) < sum(made["off"])
            assert run_files.same(tmp_path / "off", result.out)


def test_good_and_bad_answers_spoiled_pictures_and_questions_on_one_image(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """KTO, mDPO, whose spoiled pictures are not kept, and SFT in groups."""
    base, pairs = model_folder("llava"), _rows(tmp_path, "dpo")
    asked = [
        rows.sample(f"{c}{n}", [rows.user(rows.PLACE, f"Is it {n}?"), rows.assistant(f"It is {c}.")], [rows.picture(c)])
        for c in rows.COLOURS
        for n in range(3)
    ]
    questions = rows.write(tmp_path / "questions", asked)
    works: list[tuple[Any, Path, dict[str, Any]]] = [
        (kto.train, pairs, {}),
        (dpo.train, pairs, {"image_weight": 1.0, "anchor_weight": 1.0}),
        (sft.train, questions, {"group_by_image": True, "batch_size": 3}),
        (sft.train, questions, {"streaming": True, "eval_data": [questions]}),
    ]
    for number, (train, data, options) in enumerate(works):
        where = ("ram", "disk")[number % 2]
        given = {**QUICK_TALKS, "model": str(base), "epochs": 2, "progress": False, **options}
        runs = [train(data, tmp_path / f"{number}-{kept}", cache_vision=kept, **given) for kept in ("off", where)]
        assert run_files.same(runs[0].out, runs[1].out)
        assert runs[1].metrics["vision_cache"]["images"] == (5 if data == pairs else 4)


def test_what_cannot_be_kept_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = _rows(tmp_path, "sft")
    for options, said in (
        ({"parts": "vision,language:attention"}, "the vision tower or the projector is trained"),
        ({"share_features": False}, "not with share_features=false"),
        ({"cache_vision": "off", "cache_vision_gb": 1}, "cache_vision_gb limits cache_vision, which is off"),
        ({"cache_vision": "gpu"}, "cache_vision is 'gpu'; valid: off, ram, disk"),
    ):
        given = {"cache_vision": "ram", "model": str(model_folder("llava")), "progress": False, **options}
        with pytest.raises(ConfigError, match=said):
            sft.train(data, tmp_path / "run", **given)
