"""The last layer computed only where it is read: nothing is changed by it, and less is computed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_family_training import MAKE, all_parts, gradients, same, started, write

from vlmtrain import family as families
from vlmtrain.job import Job
from vlmtrain.lean.last_layer import places
from vlmtrain.training import begin

FOLDING = [name for name in families.names() if families.load(name).folds]
QUICK = ("llava", "qwen3_vl")
METHODS: dict[str, dict[str, Any]] = {"sft": {"packing": False, "share_prefix": False}, "dpo": {"share_prefix": False}}


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_what_stands_before_a_learned_token_is_read(learned: list[list[bool]]) -> None:
    expected = [row * 4 + at - 1 for row, own in enumerate(learned) for at in range(1, 4) if own[at]]
    assert places(torch.tensor(learned), None).tolist() == expected


def test_a_token_that_two_rows_share_is_read_once() -> None:
    unfold = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 5]])
    learned = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]])
    assert places(learned, unfold).tolist() == [1, 2]


def through(layer: Any) -> dict[str, list[int]]:
    """Tokens that each part of a layer gets from now on."""
    found: dict[str, list[int]] = {}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp"):
        # What goes into the module itself: what is taken of it is taken before.
        inner = layer.get_submodule(name)
        own = found.setdefault(name, [])
        inner.register_forward_pre_hook(lambda module, args, own=own: own.append(args[0].shape[:-1].numel()))
    return found


def layers_of(net: Any) -> Any:
    (found,) = (m for name, m in net.named_modules() if name.endswith(("language_model.layers", "text_model.layers")))
    return found


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FOLDING if name not in QUICK)]
)
def test_loss_and_gradients_are_the_same(
    name: str, method: str, folded: bool, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every part trained, checkpointing on where rows are folded; tokens of the last layer counted."""
    family, found = families.load(name), {}
    options = {} if folded else METHODS[method]
    for skips in (True, False):
        trainer, _ = started(
            method, family, model_folder(name), tmp_path / str(skips), skip_unread=skips, eval_fraction=0.0,
            gradient_checkpointing=folded, parts=all_parts(family), **options,
        )  # fmt: skip
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert ("read" in batch.get("sharing", {})) is skips
        layers = layers_of(trainer.net)
        last, first = through(layers[-1]), through(layers[0])
        found[skips] = gradients(trainer, folded)
        whole = set(first["mlp"])
        assert set(first["self_attn.q_proj"]) == whole == set(last["self_attn.k_proj"]), "all others see all tokens"
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp"):
            assert set(last[part]) == ({len(batch["sharing"]["read"])} if skips else whole), part
            assert max(last[part]) < min(whole) or not skips
    same(found[True], found[False])


def test_a_second_forward_in_the_step_leaves_the_first_its_places(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """mDPO's spoiled pictures: the backward recomputes the layers of the answers after another forward."""
    family, found = families.load("llava"), {}
    for skips in (True, False):
        trainer, _ = started(
            "dpo", family, model_folder("llava"), tmp_path / str(skips), skip_unread=skips, eval_fraction=0.0,
            gradient_checkpointing=True, image_weight=1.0, share_prefix=skips,
        )  # fmt: skip
        found[skips] = gradients(trainer, True)
    same(found[True], found[False])


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("llava", {"compact_head": False}, "compact_head=false reads every position"),
        ("gemma3", {}, "rows share nothing"),
    ],
)
def test_what_cannot_says_why(
    name: str, options: dict[str, Any], reason: str, model_folder: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    data = write(tmp_path, families.load(name), "sft")
    given = {"model": str(model_folder(name)), **options}
    job = begin("sft", data=[data], out=tmp_path / "run", progress=True, options=given)
    assert isinstance(job, Job)
    trainer = MAKE["sft"](job)
    assert not trainer.data_collator.collate.reads
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert f"the last layer computes every token: {reason}" in said
