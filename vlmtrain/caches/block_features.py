"""A classifier cut in two before its first trained block: what enters that block, and what is made of it.

The blocks of a model are the entries of its outermost ``ModuleList``: layers of a ViT, stages of a Swin Transformer or
a ConvNeXT. Nothing of a model's forward is written again here. It runs as it is, once with an entry that stops it
where the trained blocks begin, once with entries that hand on what was kept in place of the blocks below. That both
halves together are the whole is tried on the first batch (:func:`cut`), for whatever else a forward might do.

The idea is that of frozen-feature caches for partial fine-tuning; no reference implementation is followed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from vlmtrain.dropout import drops

__all__ = ["Cut", "cut", "take_activations"]


class _Reached(Exception):  # noqa: N818
    """The forward has come to the first trained block."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


class _StandIn(nn.Module):
    """Takes the place of a module for one forward; whoever asks for anything else of it gets the module's own."""

    def __init__(self, instead: nn.Module) -> None:
        super().__init__()
        self.__dict__["instead"] = instead

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["instead"], name)


class _Stop(_StandIn):
    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        raise _Reached(hidden)


class _Gives(_StandIn):
    def __init__(self, instead: nn.Module, output: Any) -> None:
        super().__init__(instead)
        self.__dict__["output"] = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["output"]


class Cut:
    """A model whose forward can stop before a block, and go on from there.

    Attributes:
        first: number of the first trained block; ``count`` is how many there are.
    """

    def __init__(self, net: Any, blocks: nn.ModuleList, first: int, holder: nn.Module) -> None:
        """Cut ``net`` before ``blocks[first]``; ``holder.embeddings`` is what turns pixels into the first input."""
        self.plain, self.blocks, self.first, self.holder = net.forward, blocks, first, holder
        self.count = len(blocks)
        self.pixels: tuple[torch.Size, torch.dtype] | None = None
        self._embedded: Any = None
        self._outputs: list[Any] = []

    def below(self, pixels: torch.Tensor) -> torch.Tensor:
        """What enters the first trained block, ``[B, ...]``, of ``pixels`` ``[B, 3, H, W]``; without a graph."""
        with torch.no_grad(), _swapped(self.blocks, {str(self.first): _Stop(self.blocks[self.first])}):
            try:
                self.plain(pixel_values=pixels)
            except _Reached as reached:
                return reached.hidden
        raise RuntimeError("the forward has not come to its first trained block")

    def above(self, hidden: torch.Tensor) -> Any:
        """The model's output for what :meth:`below` gave, ``[B, ...]``."""
        assert self.pixels is not None
        size = len(hidden)
        shape, dtype = self.pixels
        nothing = torch.zeros((), dtype=dtype, device=hidden.device).expand(size, *shape)
        given: dict[str, nn.Module] = {}
        for number, output in enumerate(self._outputs):
            known = _filled(output, size, hidden.device)
            output = hidden if isinstance(known, torch.Tensor) else (hidden, *known[1:])
            given[str(number)] = _Gives(self.blocks[number], output)
        embedded = _Gives(self.holder.embeddings, _filled(self._embedded, size, hidden.device))  # type: ignore[arg-type]
        with _swapped(self.blocks, given), _swapped(self.holder, {"embeddings": embedded}):
            return self.plain(pixel_values=nothing)

    def tried(self, pixels: torch.Tensor) -> torch.Tensor | str:
        """Run a batch whole, note what modules below give, and see whether the halves give the same.

        Args:
            pixels: ``[B, 3, H, W]``.

        Returns:
            What enters the first trained block; or why the model cannot be cut, in a few words.
        """
        seen: list[nn.Module] = []
        entered: list[torch.Tensor] = []
        outputs: dict[nn.Module, Any] = {}

        def enter(module: nn.Module, args: Any) -> None:
            if module is self.blocks[self.first]:
                entered.extend(args[:1])
            elif not entered:
                seen.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            outputs[module] = output

        lower: list[nn.Module] = [self.holder.embeddings, *self.blocks[: self.first]]  # type: ignore[list-item]
        hooks = [register_module_forward_pre_hook(enter)]
        hooks += [module.register_forward_hook(leave) for module in lower]
        try:
            with torch.no_grad():
                whole = self.plain(pixel_values=pixels).logits
        finally:
            for hook in hooks:
                hook.remove()
        last = outputs.get(self.blocks[self.first - 1])
        if type(last) is tuple:
            last = last[0] if last else None
        if not entered or not isinstance(last, torch.Tensor) or last is not entered[0]:
            return "a block takes something else than what the one before it gives"
        if reason := _changes(seen):
            return reason
        self.pixels = (pixels.shape[1:], pixels.dtype)
        self._embedded, *self._outputs = (_emptied(outputs[module], len(pixels)) for module in lower)
        try:
            with torch.no_grad():
                again = self.above(last).logits
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:80]
            return f"its forward reads more below than what its blocks hand on ({said})"
        return last if torch.equal(whole, again) else "its blocks are not all that tells pictures apart"


def cut(net: Any, head: str) -> Cut | str:
    """Where a model can be cut; or why it cannot, in a few words.

    Args:
        net: the transformers model, its trained parameters known by ``requires_grad``.
        head: name of the module that tells classes apart.
    """
    trained = [name for name, weight in net.named_parameters() if weight.requires_grad]
    trained = [name for name in trained if not name.startswith(f"{head}.")]
    lists = [name for name, module in net.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    first: dict[str, int] = {}
    for name in outer:
        numbers = [int(one[len(name) + 1 :].partition(".")[0]) for one in trained if one.startswith(f"{name}.")]
        if numbers:
            first[name] = min(numbers)
    if len(first) != 1:
        return "no block is trained" if not first else "blocks are trained in several places"
    name, number = first.popitem()
    if number == 0:
        return "the first block is trained"
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        holder = net.get_submodule(parent)
        if isinstance(getattr(holder, "embeddings", None), nn.Module):
            return Cut(net, net.get_submodule(name), number, holder)
    return "it has no embeddings beside its blocks"


def take_activations(net: Any, made: Cut) -> None:
    """Make a classifier's forward take ``activations`` in place of pictures, some or all; pictures it takes as before.

    The forward, not a function beside it: whatever wraps the model to join the gradients of processes sees it run.

    Args:
        net: the transformers model.
        made: where it is cut.
    """
    plain = net.forward

    def forward(
        *args: Any, activations: torch.Tensor | None = None, places: list[int] | None = None, **inputs: Any
    ) -> Any:
        if activations is None:
            return plain(*args, **inputs)
        pixels = inputs.get("pixel_values")
        if pixels is None or places is None:
            return made.above(activations)
        fresh = made.below(pixels)
        hidden = fresh.new_empty(len(fresh) + len(activations), *fresh.shape[1:])
        taken = set(places)
        hidden[places] = activations
        hidden[[place for place in range(len(hidden)) if place not in taken]] = fresh
        return made.above(hidden)

    net.forward = forward


def _changes(seen: list[nn.Module]) -> str | None:
    """Why modules that ran before the first trained block would give something else another time."""
    for module in seen:
        if any(weight.requires_grad for weight in module.parameters(recurse=False)):
            return "something below the first trained block is trained"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            return "batch normalization counts along"
        if why := drops(module):
            return why
    return None


@contextlib.contextmanager
def _swapped(owner: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules in the places of an owner's, for as long as it lasts."""
    own: dict[str, Any] = owner._modules
    before = {name: own[name] for name in others}
    own.update(others)
    try:
        yield
    finally:
        own.update(before)


class _Shape(tuple[Any, ...]):
    """(entries per picture, shape of each, type): what is left of a tensor nobody reads the numbers of."""


def _emptied(value: Any, size: int) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() and len(value) % size == 0:
        return _Shape((len(value) // size, value.shape[1:], value.dtype))
    return type(value)(_emptied(one, size) for one in value) if isinstance(value, tuple | list) else value


def _filled(value: Any, size: int, device: torch.device) -> Any:
    if isinstance(value, _Shape):
        each, shape, dtype = value
        return torch.zeros((), dtype=dtype, device=device).expand(each * size, *shape)
    return type(value)(_filled(one, size, device) for one in value) if isinstance(value, tuple | list) else value
