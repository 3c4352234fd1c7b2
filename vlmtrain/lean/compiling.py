"""``compile: true``: the layers of the model that is trained, compiled one by one, in place.

A layer is compiled inside gradient checkpointing, for sequences of any length, and keeps its name and its weights: a
checkpoint does not tell whether it was. Attention over folded rows (``vlmtrain.lean.branch_attention``) is left as it
is: how rows lie is another thing in every batch, and would be compiled anew each time. So are forwards with a cache of
keys, which answer a prompt. Dropout draws other numbers than without.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from vlmdata.errors import ConfigError
from vlmtrain.parts import layers_of

if TYPE_CHECKING:
    from vlmtrain.config import Config
    from vlmtrain.job import Job

__all__ = ["BACKEND", "check", "compile_layers"]

BACKEND = "inductor"
# A layer is compiled with a graph and without, with masks and without, in training and in evaluation ...
_VARIANTS = 64
_LAID: list[Any] = []


def check(config: Config) -> None:
    """Refuse what can be seen to be wrong before a model is loaded.

    Raises:
        ConfigError: weights that cannot be compiled.
    """
    if config.training.compile and config.base.quantize != "none":
        raise ConfigError(
            f"compile is for weights of 16 or 32 bits, and quantize is {config.base.quantize}: leave one of them out"
        )


def compile_layers(trainer: Any, job: Job) -> None:
    """Compile the layers of a prepared job's model, where its configuration asks for it.

    Args:
        trainer: behind ``TrainerSeam``.
        job: what it was made from.

    Raises:
        ConfigError: there is no compiler that works, or nothing it could be used on.
    """
    if not job.config.training.compile:
        return
    if trainer.is_sharded:
        raise ConfigError("compile: processes hold the weights in parts, and layers are compiled whole: leave it out")
    family = job.loaded.family
    layers = layers_of(trainer.net, family)
    if not layers:
        raise ConfigError(f"compile: {family.name} has no layers of a kind that can be compiled: leave it out")
    _try(job.device)
    _leave_folded_attention()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    found = {kind: _compiled(kind) for kind in {type(layer) for layer in layers.values()}}
    for layer in layers.values():
        layer.forward = types.MethodType(found[type(layer)], layer)
    job.reporter.say(f"compile {len(layers)} layers; the first steps take longer, as does each new kind of batch")


def _compiled(kind: type[Any]) -> Any:
    """The forward of a class of layers, compiled inside its gradient checkpointing."""
    plain = kind.forward
    # What transformers wraps with checkpointing.
    inner = torch.compile(plain.__wrapped__, backend=BACKEND, dynamic=True)

    def run(layer: Any, *args: Any, branches: Any = None, **kwargs: Any) -> Any:
        with _laid(branches):
            return inner(layer, *args, **kwargs)

    @functools.wraps(plain)
    def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:
            return plain(layer, *args, **kwargs)
        if layer.gradient_checkpointing and layer.training:
            return layer._gradient_checkpointing_func(functools.partial(run, layer, **kwargs), *args)
        return run(layer, *args, **kwargs)

    return forward


@contextlib.contextmanager
def _laid(branches: Any) -> Iterator[None]:
    """How folded rows lie, told past the compiler."""
    _LAID.append(branches)
    try:
        yield
    finally:
        _LAID.pop()


def _leave_folded_attention() -> None:
    from transformers import AttentionInterface

    from vlmtrain.lean import branch_attention

    @torch.compiler.disable
    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, branches: Any = None, **given: Any
    ) -> Any:
        laid = branches if branches is not None or not _LAID else _LAID[-1]
        return branch_attention.attention(module, query, key, value, attention_mask, laid, **given)

    AttentionInterface.register(branch_attention.NAME, attention)


def _try(device: str) -> None:
    """Compile something small.

    Raises:
        ConfigError: that does not work; why, in a few words.
    """
    try:
        torch.compile(lambda x: x * 2 + 1, backend=BACKEND)(torch.ones(4, device=device))
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        needs = "a C++ compiler, as g++" if device == "cpu" else "triton and a C compiler"
        raise ConfigError(f"compile does not work on this machine, it needs {needs}: {said}") from error
