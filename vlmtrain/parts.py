"""Which part of a model a module belongs to: vision, projector or language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vlmtrain.family import KINDS, Family

__all__ = ["matched", "parts_of"]


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
