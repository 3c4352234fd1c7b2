"""An adapter on the last blocks of a model alone: which blocks there are, and the expression that finds their layers.

Blocks are the entries of the outermost ``ModuleList`` around a part's layers: layers of a transformer, stages of a Swin
Transformer or a ConvNeXT. The vision and the language part have them; what joins the two has none that stand in a row.

peft's ``layers_to_transform`` does the same for targets that are names, with one number for towers of any depth; it
takes no expression. So the blocks become part of the expression, which every version of peft reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from vlmdata.errors import ConfigError
from vlmtrain.family import KINDS, Family
from vlmtrain.parts import matched

__all__ = ["blocks_of", "only_last"]


def blocks_of(family: Family, modules: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the blocks of each part that has them, in the order they run.

    Args:
        family: of the model.
        modules: all modules by their full names.
    """
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    found = {}
    for part in family.targets:
        if part == "projector":
            continue
        layers = matched(family.target_regex((part,), KINDS), list(modules))
        stacks = [name for name in outer if any(layer.startswith(f"{name}.") for layer in layers)]
        found[part] = [f"{name}.{number}" for name in stacks for number in range(len(modules[name]))]
    return found


def only_last(targets: str | Collection[str], count: int, family: Family, modules: Mapping[str, Any]) -> str:
    """Targets of an adapter, less those that stand before the last so many blocks of their part.

    Args:
        targets: an expression that a module's full name matches as a whole, names, or ``all-linear``, which takes the
            linear layers of these blocks and leaves out what stands in no block.
        count: of blocks.
        family: of the model.
        modules: all modules by their full names.

    Returns:
        An expression for peft's ``target_modules``.

    Raises:
        ConfigError: a target stands in no block, a part has fewer blocks, or none of the targets is in the last ones.
    """
    blocks = blocks_of(family, modules)
    every = targets == "all-linear"
    regex = targets if isinstance(targets, str) else rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(targets)))})"
    chosen = [name for name, module in modules.items() if _linear(module)] if every else matched(regex, list(modules))
    last: list[str] = []
    inside: set[str] = set()
    for part, row in blocks.items():
        mine = [name for name in chosen if name.startswith(tuple(f"{block}." for block in row))]
        inside.update(mine)
        if mine and count > len(row):
            raise ConfigError(f"lora_last_layers is {count}, expected at most {len(row)}, the blocks of the {part}")
        last += row[-count:] if mine else []
    outside = [name for name in chosen if name not in inside]
    if outside and not every:
        raise ConfigError(
            f"lora_last_layers counts blocks of {' and '.join(blocks)}, and {outside[0]} is in none: leave it out of "
            "parts or target_modules, or lora_last_layers out"
        )
    kept = [name for name in chosen if name.startswith(tuple(f"{block}." for block in last))]
    if not kept:
        raise ConfigError(f"lora_last_layers is {count}: no layer that was chosen is in the last blocks; take more")
    if every:
        return "|".join(map(re.escape, kept))
    return rf"(?=(?:{'|'.join(map(re.escape, last))})\.)(?:{regex})"


def _linear(module: Any) -> bool:
    """As peft has it for ``all-linear``; those of fewer bits are among them."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
