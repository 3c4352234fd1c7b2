"""Which part of a model a module belongs to: vision, projector or language; and the layers of what is trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vlmtrain.family import KINDS, Family

__all__ = ["layers_of", "matched", "parts_of"]


def parts_of(names: Iterable[str], family: Family, modules: Sequence[str]) -> dict[str, str]:
    """Which part each parameter or module belongs to.

    The projector is what stands around its target layers without holding layers of another part; what else is below
    the towers is vision; all the rest is language.

    Args:
        names: full names of parameters or modules.
        family: of the model.
        modules: full names of all modules.
    """
    roots = _projector(family, modules)

    def part(name: str) -> str:
        if any(name == root or name.startswith(root + ".") for root in roots):
            return "projector"
        return "vision" if name.startswith(family.towers) else "language"

    return {name: part(name) for name in names}


def _projector(family: Family, modules: Sequence[str]) -> set[str]:
    if "projector" not in family.targets:
        return set()
    own = matched(family.target_regex(("projector",), KINDS), modules)
    rest = tuple(part for part in family.targets if part != "projector")
    others = matched(family.target_regex(rest, KINDS), modules)
    roots: set[str] = set()
    for name in own:
        while "." in name:
            parent = name.rpartition(".")[0]
            if any(other.startswith(parent + ".") for other in others):
                break
            name = parent
        roots.add(name)
    return roots


def matched(regex: str, modules: Sequence[str]) -> list[str]:
    """The modules whose full name the expression matches as a whole."""
    pattern = re.compile(regex)
    return [name for name in modules if pattern.fullmatch(name)]


def layers_of(net: Any, family: Family) -> dict[str, Any]:
    """The layers of a transformers model that can recompute, in order: of its language model, else of its tower.

    Args:
        net: the model.
        family: the model's family; one of image classifiers has a tower alone.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    def wanted(name: str) -> bool:
        return name.startswith(family.towers) is (family.task == "classify")

    modules = net.named_modules()
    return {n: m for n, m in modules if isinstance(m, GradientCheckpointingLayer) and wanted(n)}
