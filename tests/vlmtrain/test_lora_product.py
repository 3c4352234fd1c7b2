"""LoRA layers that compute their result at once, against peft's own."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_family_training import MAKE, all_parts, gradients, same, started, write

from vlmtrain import family as families
from vlmtrain import sft
from vlmtrain.job import Job
from vlmtrain.lean import lora_product
from vlmtrain.lean.lora_product import fuse
from vlmtrain.training import begin


def network(dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.SiLU(), torch.nn.Linear(9, 4, bias=False)).to(dtype)
    given = {"r": 3, "lora_alpha": 5, "target_modules": ["0", "2"], **settings}
    net = get_peft_model(layers, LoraConfig(**given))
    for name, weight in net.named_parameters():
        if "lora_" in name and weight.ndim == 2:
            torch.nn.init.normal_(weight, 0, 0.5)
    return net


def results(net: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What comes out, and every gradient."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert x.grad is not None
    return [y, x.grad, *(p.grad for p in net.parameters() if p.grad is not None)]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A mark for each result computed at once."""
    calls: list[int] = []
    plain = lora_product._Product.apply
    monkeypatch.setattr(lora_product._Product, "apply", lambda *given: (calls.append(1), plain(*given))[1])
    return calls


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (6,), (1, 0, 6)])
def test_results_and_gradients_are_pefts(shape: tuple[int, ...], fused: list[int]) -> None:
    net, x = network(), torch.randn(shape)
    before, names = results(net, x), [name for name, _ in net.named_modules()]
    assert fuse(net) == 2
    for one, other in zip(before, results(net, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(fused) == 2 and names == [name for name, _ in net.named_modules()]


def test_in_16_bits_it_is_as_near_to_the_truth(fused: list[int]) -> None:
    """Adapters in float32 under autocast, as TRL has them, too."""
    torch.manual_seed(1)
    x = torch.randn(64, 6)
    exact = results(network(), x)
    for autocast in (False, True):
        net = network(torch.bfloat16)
        if not autocast:
            net = net.to(torch.bfloat16)
        given = x if autocast else x.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            plain = results(net, given)
            fuse(net)
            now = results(net, given)
        for truth, one, other in zip(exact, plain, now, strict=True):
            assert one.dtype == other.dtype
            assert (other.float() - truth).norm() < 2 * (one.float() - truth).norm() + 1e-3
    assert len(fused) == 4


def test_what_is_not_plain_is_pefts_own(fused: list[int]) -> None:
    x = torch.randn(5, 6)
    for settings in ({"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}, {"bias": "all"}):
        net = network(**settings)
        torch.manual_seed(3)
        before = results(net, x)
        fuse(net)
        torch.manual_seed(3)
        for one, other in zip(before, results(net, x), strict=True):
            torch.testing.assert_close(one, other, msg=str(settings))
        # Of two layers the second has no bias to be trained.
        assert len(fused) == (settings == {"bias": "all"}), settings
        fused.clear()
    net = network()
    fuse(net)
    first, between, second = net.get_base_model()
    with net.disable_adapter():
        assert torch.equal(net(x), second.base_layer(between(first.base_layer(x))))
    assert not fused
    net.add_adapter("other", LoraConfig(r=2, target_modules=["0"]))
    net.base_model.set_adapter(["default", "other"])
    net(x)
    assert not fused, "two adapters at once are added by peft"
    seen: list[int] = []
    hooked = network()
    fuse(hooked)
    for layer in (0, 2):
        hooked.get_base_model()[layer].lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
    hooked(x)
    assert len(seen) == 2 and not fused, "hooks are called"
    merged = network()
    expected = merged(x)
    fuse(merged)
    merged.merge_adapter()
    torch.testing.assert_close(merged(x), expected)
    assert not fused


def test_dropout_that_rests_and_copies(fused: list[int]) -> None:
    net, x = network(lora_dropout=0.5).eval(), torch.randn(5, 6)
    expected = net(x)
    fuse(net)
    torch.testing.assert_close(net(x), expected)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    torch.testing.assert_close(twin(x), expected)
    assert len(fused) == 4


@pytest.mark.parametrize(("name", "method"), [("llava", "dpo"), ("qwen2_vl", "sft")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_the_same(
    name: str,
    method: str,
    checkpointing: bool,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    fused: list[int],
) -> None:
    """Every part of the model trained: loss and gradients with and without."""
    family, found = families.load(name), {}
    for on in (True, False):
        trainer, _ = started(
            method, family, model_folder(name), tmp_path / str(on), fused_lora=on, eval_fraction=0.0,
            gradient_checkpointing=checkpointing, parts=all_parts(family),
        )  # fmt: skip
        found[on] = gradients(trainer, checkpointing)
        assert bool(fused) is on
        fused.clear()
    same(found[True], found[False])


def test_an_adapter_that_is_given_is_fused_or_not_as_asked(
    model_folder: Callable[[str], Path], tmp_path: Path, fused: list[int]
) -> None:
    family, base = families.load("llava"), model_folder("llava")
    adapter = sft.train(write(tmp_path, family, "sft"), tmp_path / "run", model=str(base), max_steps=1, progress=False)
    fused.clear()
    for on in (True, False):
        trainer, _ = started("dpo", family, base, tmp_path / str(on), adapter=str(adapter.out), fused_lora=on)
        trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)[:1]))
        assert bool(fused) is on
        fused.clear()


def test_a_run_says_why_not(model_folder: Callable[[str], Path], tmp_path: Path, capsys: Any) -> None:
    data = write(tmp_path, families.load("llava"), "sft")
    options = {"model": str(model_folder("llava")), "lora_dropout": 0.1}
    job = begin("sft", data=[data], out=tmp_path / "run", progress=True, options=options)
    assert isinstance(job, Job)
    MAKE["sft"](job)
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "LoRA's product is peft's own: with lora_dropout it sees less than the base" in said
