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

from vlmtrain import narrow
from vlmtrain.collate import Collator
from vlmtrain.model import load
from vlmtrain.pixels import view_size


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
