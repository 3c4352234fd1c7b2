"""A model cut before its first trained block: both halves are the whole, or it is said why they cannot be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vlmtrain.caches.block_features import Cut, cut, take_activations


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(4, 4)])
        self.calls = 0

    def forward(self, hidden: torch.Tensor, scale: float = 1.0) -> Any:
        self.calls += 1
        return (hidden + scale * torch.tanh(self.inner[0](hidden)), scale + 1.0)


class Classifier(nn.Module):
    """Blocks that hand on a number beside the activations, as stages of a Swin Transformer do their size."""

    way = "plain"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Linear(3 * 2 * 2, 4)
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.extra: nn.Module = nn.Identity()
        self.classifier = nn.Linear(4, 5)
        self.requires_grad_(False)
        self.layers[2].requires_grad_(True)
        self.classifier.requires_grad_(True)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        hidden = embedded = self.embeddings(pixel_values.flatten(1))
        scale = 1.0
        for block in self.layers:
            hidden = self.extra(hidden)
            if self.way == "between":
                hidden = hidden * 1.0
            if self.way == "keyword":
                hidden, scale = block(hidden=hidden, scale=scale)
            else:
                hidden, scale = block(hidden, scale)
        if self.way == "skip":
            hidden = hidden + embedded
        if self.way == "shortcut":
            hidden = hidden + pixel_values.mean()
        return SimpleNamespace(logits=self.classifier(hidden))


def made(way: str = "plain") -> tuple[Classifier, Any]:
    net = Classifier()
    net.way = way
    return net, cut(net, "classifier")


def test_both_halves_are_the_whole_for_any_number_of_pictures() -> None:
    net, found = made()
    assert isinstance(found, Cut) and (found.first, found.count) == (2, 4)
    pixels = torch.randn(6, 3, 2, 2)
    whole = net(pixel_values=pixels).logits
    sample = found.tried(pixels)
    assert isinstance(sample, torch.Tensor) and not sample.requires_grad
    calls = [block.calls for block in net.layers]
    for size in (6, 4, 1):
        below = found.below(pixels[:size])
        torch.testing.assert_close(below, sample[:size])
        torch.testing.assert_close(found.above(below).logits, whole[:size])
    assert [block.calls - before for block, before in zip(net.layers, calls, strict=True)] == [3, 3, 3, 3]
    assert torch.equal(net(pixel_values=pixels).logits, whole), "the model is as it was"


def test_gradients_are_those_of_the_whole() -> None:
    net, found = made()
    pixels = torch.randn(6, 3, 2, 2)
    assert isinstance(found.tried(pixels), torch.Tensor)
    gradients = []
    for output in (found.plain(pixel_values=pixels), found.above(found.below(pixels))):
        net.zero_grad()
        output.logits.square().sum().backward()
        gradients.append({name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 4
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_forward_takes_activations_pictures_or_both() -> None:
    net, found = made()
    pixels = torch.randn(6, 3, 2, 2)
    below = found.tried(pixels)
    whole = net(pixel_values=pixels).logits
    take_activations(net, found)
    assert torch.equal(net(pixel_values=pixels).logits, whole)
    torch.testing.assert_close(net(activations=below, places=list(range(6))).logits, whole)
    net.layers[0].calls = 0
    kept, others = [4, 1, 2], [0, 3, 5]
    mixed = net(pixel_values=pixels[others], activations=below[kept], places=kept).logits
    torch.testing.assert_close(mixed, whole)
    assert net.layers[0].calls == 1


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("skip", "its blocks are not all that tells pictures apart"),
        ("shortcut", "its blocks are not all that tells pictures apart"),
        ("between", "a block takes something else than what the one before it gives"),
        ("keyword", "a block takes something else than what the one before it gives"),
    ],
)
def test_a_forward_that_is_no_chain_is_found_out(way: str, reason: str) -> None:
    net, found = made(way)
    pixels = torch.randn(6, 3, 2, 2)
    whole = net(pixel_values=pixels).logits
    assert found.tried(pixels) == reason
    assert torch.equal(net(pixel_values=pixels).logits, whole)


def test_a_forward_that_fails_without_its_pictures_is_found_out() -> None:
    net, found = made()
    whole = found.plain

    def fussy(pixel_values: torch.Tensor) -> Any:
        if not pixel_values.any():
            raise ValueError("expected pictures")
        return whole(pixel_values=pixel_values)

    found.plain = fussy
    reason = "its forward reads more below than what its blocks hand on (expected pictures)"
    assert found.tried(torch.randn(6, 3, 2, 2)) == reason
    assert isinstance(net.layers[0], Block), "every block is in its place again"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (nn.Dropout(0.25), "Dropout drops 25% of its values at random"),
        (nn.BatchNorm1d(4, affine=False), "batch normalization counts along"),
        (nn.LayerNorm(4), "something below the first trained block is trained"),
    ],
)
def test_what_is_not_the_same_every_time_is_found_out(extra: nn.Module, reason: str) -> None:
    net, found = made()
    net.embeddings = nn.Sequential(net.embeddings, extra.eval())
    assert found.tried(torch.randn(6, 3, 2, 2)) == reason


def test_what_is_not_the_same_above_does_not_matter() -> None:
    net, found = made()
    net.eval()
    net.layers[2].inner[0] = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    net.classifier = nn.Sequential(nn.Dropout(0.5), net.classifier).eval()
    assert isinstance(found.tried(torch.randn(6, 3, 2, 2)), torch.Tensor)


def test_where_nothing_can_be_cut() -> None:
    net = Classifier()
    net.layers[0].requires_grad_(True)
    assert cut(net, "classifier") == "the first block is trained"
    net.layers.requires_grad_(False)
    assert cut(net, "classifier") == "no block is trained"
    net.layers[1].requires_grad_(True)
    net.others = nn.ModuleList([nn.Linear(2, 2)])
    assert cut(net, "classifier") == "blocks are trained in several places"
    net.others.requires_grad_(False)
    found = cut(net, "classifier")
    assert isinstance(found, Cut) and found.first == 1
    del net.embeddings
    assert cut(net, "classifier") == "it has no embeddings beside its blocks"
