"""Which layers recompute: those asked for, whoever switches checkpointing on; nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import labelled_rows
import pytest
import torch
from click.testing import CliRunner
from test_family_training import gradients, started
from trl.models.utils import disable_gradient_checkpointing

from vlmdata.errors import ConfigError
from vlmtrain import classify
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


@pytest.mark.parametrize(("count", "expected"), [(None, [2, 1]), (1, [2, 1]), (2, [2, 2])])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_so_many_layers_are_computed_twice(
    method: str, count: int | None, expected: list[int], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    family = families.load("llava")
    options = {"gradient_checkpointing": True, "checkpoint_layers": count, "eval_fraction": 0.0}
    trainer, _ = started(method, family, model_folder("llava"), tmp_path, **options)
    off = gradients(trainer)
    seen = [times(layer) for layer in layers_of(trainer.net, family).values()]
    on = gradients(trainer, checkpointing=True)
    assert [len(found) for found in seen] == expected
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
    recompute_first(trainer.net, family, None, reentrant=True)
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
        assert flags == [number < (count or len(flags) - 1) for number in range(len(flags))]


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
