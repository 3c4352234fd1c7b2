"""Pixels in 16 bits from the workers on: bit by bit the same losses, or left as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import fed
import labelled_rows
import pytest
import tiny_models
import torch
from accelerate.utils import send_to_device

from vlmtrain import classify, narrow, reference, training
from vlmtrain.caches import head_features, kept_activations
from vlmtrain.collate import Collator
from vlmtrain.model import load
from vlmtrain.pixels import view_size
from vlmtrain.runs import RunResult


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fed.write(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", fed.FAMILIES)
def test_pixels_in_16_bits_change_no_loss(name: str, model_folder: Callable[[str], Path]) -> None:
    """Bit by bit, on every family; the pixels themselves are others."""
    found = load(str(model_folder(name)), dtype="bfloat16", device="cpu")
    assert narrow.pixel_dtype(found.model, found.family) == torch.bfloat16
    shown = [rows.colours(4, size=size)[index] for index, size in enumerate([(40, 40), (90, 31), (33, 64)])]
    plain = Collator(found.processor, found.family)(shown)
    cast = narrow.narrowed(plain, torch.bfloat16)
    changed = [key for key in plain if isinstance(plain[key], torch.Tensor) and plain[key].dtype != cast[key].dtype]
    assert changed == ["pixel_values"] and cast["pixel_values"].dtype == torch.bfloat16
    assert not torch.equal(plain["pixel_values"], cast["pixel_values"].float())
    with torch.no_grad():
        first, second = (found.model(**batch) for batch in (plain, cast))
    assert torch.equal(first.loss, second.loss) and torch.equal(first.logits, second.logits)


@pytest.mark.parametrize(("name", "kind"), labelled_rows.kinds())
def test_so_with_classifiers(name: str, kind: str, tmp_path: Path) -> None:
    found = load(
        str(tiny_models.make(name, tmp_path / kind, kind=kind)), dtype="bfloat16", device="cpu", task="classify"
    )
    kept = narrow.pixel_dtype(found.model, found.family)
    if not found.family.casts_pixels:
        assert kept == f"{name} looks at them as they come"
        return
    assert kept == torch.bfloat16
    noise = torch.manual_seed(0)
    pixels = torch.randn(2, 3, *view_size(found.processor), generator=noise)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found.model(pixels).logits, found.model(pixels.bfloat16()).logits)


def test_pixels_stay_where_it_would_not_be_exact(
    data: dict[str, Path], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, job = fed.made("sft", data["sft"], base, tmp_path / "whole")
    assert whole.narrow is None and "32 bits" not in capsys.readouterr().err
    assert narrow.pixel_dtype(whole.net, job.loaded.family) == "the vision tower's weights are float32"
    batch = whole.data_collator(list(whole.train_dataset)[:2])
    with torch.no_grad():
        losses = [whole.compute_loss(whole.model, {**one}) for one in (batch, narrow.narrowed(batch, torch.bfloat16))]
    assert losses[0] != losses[1], "a tower of 32 bits sees the difference"
    half, job = fed.made("sft", data["sft"], base, tmp_path / "half", dtype="bfloat16", parts="vision:attention")
    assert half.narrow == torch.bfloat16, "LoRA in the tower changes nothing"
    half.net.get_parameter("model.multi_modal_projector.linear_1.bias").data = torch.ones(1)
    assert narrow.pixel_dtype(half.net, job.loaded.family) == "not all weights of the vision tower have one precision"
    said: list[str] = []
    job.reporter.say = said.append
    assert narrow.worker_dtype(half, job) is None
    assert said == ["pixels come from the workers in 32 bits: not all weights of the vision tower have one precision"]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_training_on_them_is_the_same(method: str, data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    outcomes = []
    for cast in (True, False):
        options = {"dtype": "bfloat16", "parts": "vision,language:attention", "max_steps": 3}
        more = {"image_weight": 1.0} if method == "dpo" else {}
        trainer, _ = fed.made(method, data[method], base, tmp_path / str(cast), **options, **more)
        assert trainer.narrow == torch.bfloat16
        trainer.narrow = trainer.narrow if cast else None
        kinds: set[tuple[str, torch.dtype]] = set()
        move = trainer.moved

        def moved(inputs: Any, kinds: set[tuple[str, torch.dtype]] = kinds, move: Any = move) -> Any:
            kinds |= {(key, value.dtype) for key, value in inputs.items() if key.endswith("pixel_values")}
            return move(inputs)

        trainer.moved = moved
        trainer.train()
        assert {kind for _, kind in kinds} == {torch.bfloat16 if cast else torch.float32}
        assert {key for key, _ in kinds} == {"pixel_values", *(["corrupted_pixel_values"] if more else [])}
        outcomes.append(fed.outcome(trainer))
    (weights, losses), (others, expected) = outcomes
    assert losses == expected and all(torch.equal(weights[name], others[name]) for name in weights)


class Moved:
    """In place of what brings batches to the device: remembers in which precision their pixels came."""

    def __init__(self, move: Callable[..., Any]) -> None:
        self.move, self.kinds = move, set[tuple[str, torch.dtype]]()

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        named = inputs.items() if isinstance(inputs, dict) else [("pixel_values", inputs)]
        self.kinds |= {(key, value.dtype) for key, value in named if key.endswith("pixel_values")}
        return self.move(inputs, *args, **kwargs)


def evaluated(trainer: Any) -> tuple[dict[str, float], set[tuple[str, torch.dtype]]]:
    """What an evaluation finds but for times, and how its pixels came."""
    trainer.moved = moved = Moved(trainer.moved)
    figures = {key: value for key, value in trainer.evaluate().items() if not ("second" in key or "time" in key)}
    return figures, moved.kinds


def plain_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "worker_dtype", lambda trainer, job: None)


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_evaluation_and_reference_on_them_are_the_same(
    method: str, data: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16", "eval_fraction": 0.3, "workers": 1}
    options |= {"reference_cache": False} if method != "sft" else {}
    options |= {"image_weight": 1.0} if method == "dpo" else {}
    keys = {"pixel_values", *(["corrupted_pixel_values"] if method == "dpo" else [])}
    outcomes = []
    for dtype in (torch.bfloat16, torch.float32):
        asked = Moved(send_to_device)
        monkeypatch.setattr(reference, "send_to_device", asked)
        trainer, _ = fed.made(method, data[method], base, tmp_path / str(dtype), **options)
        collate = trainer.data_collator.collate
        figures, kinds = evaluated(trainer)
        assert kinds == {(key, dtype) for key in keys} and asked.kinds == (kinds if method != "sft" else set())
        said = [getattr(collate, name, None) for name in ("reference", "corrupted_reference")]
        assert (said[0] is not None) is (method != "sft") and (said[1] is not None) is (method == "dpo")
        outcomes.append((figures, said))
        plain_pixels(monkeypatch)
    assert outcomes[0] == outcomes[1] and outcomes[0][0]["eval_loss"] > 0


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_live_reference_sees_them_in_evaluation(
    method: str, data: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are others than the reference's, so that its figures count."""
    outcomes = []
    for dtype in (torch.bfloat16, torch.float32):
        options = {"dtype": "bfloat16", "eval_fraction": 0.3, "reference": "live", "max_steps": 2}
        trainer, _ = fed.made(method, data[method], base, tmp_path / str(dtype), **options)
        trainer.train()
        figures, kinds = evaluated(trainer)
        assert kinds == {("pixel_values", dtype)}
        outcomes.append(figures)
        plain_pixels(monkeypatch)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("kept", ["features", "activations", "nothing"])
def test_so_is_what_a_classifier_keeps(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.make("vit", tmp_path / "vit")
    shards = labelled_rows.write(tmp_path / "shards", 4)
    options: dict[str, Any] = {"model": str(model), "dtype": "bfloat16", "batch_size": 6, "augment": "none"}
    options |= {"eval_fraction": 0.25, "epochs": 2, "logging_steps": 1}
    options |= {"features": {"head_only": True}, "activations": {"lora_last_layers": 1}, "nothing": {}}[kept]
    place = {"features": head_features, "activations": kept_activations}.get(kept)
    outcomes = []
    for dtype in (torch.bfloat16, torch.float32):
        computed = Moved(send_to_device)
        if place is not None:
            monkeypatch.setattr(place, "send_to_device", computed)
        job = classify.begin(data=[shards], out=tmp_path / str(dtype), progress=False, options=options)
        assert not isinstance(job, RunResult)
        trainer = classify.make_trainer(job)
        assert computed.kinds == ({("pixel_values", dtype)} if place else set())
        trainer.train()
        figures, kinds = evaluated(trainer)
        assert kinds == (set() if place else {("pixel_values", dtype)})
        outcomes.append((figures, fed.outcome(trainer)[1]))
        plain_pixels(monkeypatch)
    assert outcomes[0] == outcomes[1]
