"""Which layers recompute: those asked for, whoever switches checkpointing on; nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import labelled_rows
import pytest
import torch
from click.testing import CliRunner
from killed import killed_before
from run_files import same
from test_family_training import gradients, started
from trl.models.utils import disable_gradient_checkpointing

from vlmdata.errors import ConfigError
from vlmtrain import classify, sft
from vlmtrain import family as families
from vlmtrain.cli import main
from vlmtrain.config import resolve
from vlmtrain.lean.recompute import recompute_first, recomputes
from vlmtrain.parts import layers_of


def times(layer: Any) -> list[int]:
    """Grows by one each time a layer is computed, by its first linear layer."""
    found: list[int] = []
    linear = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
    linear.register_forward_pre_hook(lambda module, args: found.append(1))
    return found


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("sft", {}, [2, 1]),
        ("dpo", {}, [2, 1]),
        ("sft", {"checkpoint_layers": 1}, [2, 1]),
        ("dpo", {"checkpoint_layers": 2}, [2, 2]),
        ("sft", {"skip_unread": False}, [2, 2]),
        ("sft", {"skip_unread": False, "checkpoint_layers": 1}, [2, 1]),
    ],
)
def test_so_many_layers_are_computed_twice(
    method: str,
    options: dict[str, Any],
    expected: list[int],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Unset, all of them do, but for a last one that computes only what is read."""
    family = families.load("llava")
    given = {"gradient_checkpointing": True, "eval_fraction": 0.0, **options}
    trainer, _ = started(method, family, model_folder("llava"), tmp_path, **given)
    # Before both: a layer that is watched is computed in another order.
    seen = [times(layer) for layer in layers_of(trainer.net, family).values()]
    off = gradients(trainer)
    assert [len(found) for found in seen] == [1, 1]
    on = gradients(trainer, checkpointing=True)
    assert [len(found) - 1 for found in seen] == expected
    assert on[0] == off[0]
    for name, grad in on[1].items():
        assert torch.equal(grad, off[1][name]), name


def test_a_reference_in_between_changes_nothing(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """TRL switches off and on again around each live reference pass: the choice stays, and no hook is left behind."""
    family = families.load("llava")
    options = {"gradient_checkpointing": True, "reference": "live"}
    trainer, _ = started("dpo", family, model_folder("llava"), tmp_path, **options)
    trainer.model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)

    def state() -> tuple[list[bool], list[int]]:
        layers = layers_of(trainer.net, family).values()
        return [layer.gradient_checkpointing for layer in layers], [
            len(m._forward_hooks) for m in trainer.net.modules()
        ]

    before = state()
    assert before[0] == [True, False]
    for _ in range(3):
        with disable_gradient_checkpointing(trainer.model, trainer.args.activation_checkpointing_kwargs):
            assert state()[0] == [False, False]
    assert state() == before


def test_nothing_is_differentiated_for_nobody(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Frozen embeddings have no graph, so that the first layer's input has no gradient."""
    family = families.load("llava")
    trainer, _ = started("sft", family, model_folder("llava"), tmp_path, gradient_checkpointing=True)
    first = next(iter(layers_of(trainer.net, family).values()))
    asked: list[bool] = []
    first.register_forward_pre_hook(lambda module, args: asked.append(args[0].requires_grad))
    gradients(trainer, checkpointing=True)
    assert asked == [False]


def test_reentrant_checkpoints_keep_their_inputs_gradients(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """DeepSpeed's third stage is driven so by TRL."""
    family = families.load("llava")
    trainer, _ = started("sft", family, model_folder("llava"), tmp_path)
    recompute_first(trainer.net, family, None, keep_last=False, reentrant=True)
    trainer.net.enable_input_require_grads()
    assert trainer.net.get_input_embeddings()(torch.tensor([[1]])).requires_grad


def test_a_classifier(vit: Path, tmp_path: Path) -> None:
    data, seen = labelled_rows.write(tmp_path / "data", 4), {}
    for count in (None, 1):
        job = classify.begin(
            data=[data], out=tmp_path / f"run-{count}", progress=False,
            options={"model": str(vit), "gradient_checkpointing": True, "checkpoint_layers": count},
        )  # fmt: skip
        trainer = classify.make_trainer(job)
        trainer.model.activation_checkpointing_enable()
        layers = layers_of(trainer.net, job.loaded.family).values()
        seen[count] = [layer.gradient_checkpointing for layer in layers]
    for count, flags in seen.items():
        assert flags == [number < (count or len(flags)) for number in range(len(flags))]


def test_what_waits_for_another_forward_keeps_no_layer(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """mDPO's pairs wait for the backward of the spoiled pictures."""
    family = families.load("llava")
    options = {"gradient_checkpointing": True, "image_weight": 1.0}
    trainer, _ = started("dpo", family, model_folder("llava"), tmp_path, **options)
    trainer.model.activation_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in layers_of(trainer.net, family).values())


@pytest.mark.parametrize("layers", [1, 2])
def test_a_run_goes_on_with_other_layers(layers: int, base: Path, tmp_path: Path) -> None:
    """Weights are those of a run that recomputes nothing."""
    data = rows.write(tmp_path / "data", rows.colours(8))
    options: dict[str, Any] = {"model": str(base), "max_steps": 4, "save_steps": 2, "progress": False}
    whole = sft.train(data, tmp_path / "whole", **options).out
    with killed_before(sft, 4):
        sft.train(data, tmp_path / "killed", **options)
    again = sft.train(data, tmp_path / "killed", resume=True, checkpoint_layers=layers, **options)
    assert again.metrics["resumed_from_step"] == 2 and same(whole, again.out)


def test_more_layers_than_there_are(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint_layers 3: llava has 2 here; expected at most that"):
        started("sft", families.load("llava"), model_folder("llava"), tmp_path, checkpoint_layers=3)


@pytest.mark.parametrize("command", [["sft", "--data", "nowhere", "--out", "run"], ["plan"]])
def test_layers_without_recomputing_are_refused(command: list[str]) -> None:
    sets = ["--set", "checkpoint_layers=3", "--set", "gradient_checkpointing=false"]
    found = CliRunner().invoke(main, [*command, "--model", "vlmtrain:tiny", *sets])
    assert found.exit_code == 2
    assert "checkpoint_layers says how many layers recompute: not with gradient_checkpointing=false" in found.output


@pytest.mark.parametrize(
    ("keys", "device", "expected"),
    [
        ({}, "cpu", False),
        ({}, "cuda", True),
        ({"checkpoint_layers": 2}, "cpu", True),
        ({"gradient_checkpointing": True}, "cpu", True),
        ({"gradient_checkpointing": False}, "cuda", False),
    ],
)
def test_who_recomputes(keys: dict[str, Any], device: str, expected: bool) -> None:
    assert recomputes(resolve("sft", keys).training, device) is expected
