"""Things found by their file names: sources, targets of exports, engines, model families, tasks."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any

from vlmdata.errors import MissingError, choices

__all__ = ["leaf_names", "load_leaf"]


def leaf_names(folder: str) -> list[str]:
    """Names of the modules in a package such as ``vlmdata.sources``, sorted; none of them is imported."""
    found = importlib.util.find_spec(folder)
    return sorted(module.name for module in pkgutil.iter_modules(found.submodule_search_locations if found else []))


def load_leaf(folder: str, name: str, attribute: str, what: str, more: str = "") -> Any:
    """What a module of the package defines under a name that all of them share.

    Args:
        folder: the package.
        name: of the module.
        attribute: the shared name, such as ``SOURCE``.
        what: what such a thing is called in a message.
        more: what the message says besides the valid names.

    Raises:
        MissingError: there is no such module.
    """
    valid = leaf_names(folder)
    if name not in valid:
        raise MissingError(f"no {what} named {name!r}; valid: {choices(valid)}{more}")
    return getattr(importlib.import_module(f"{folder}.{name}"), attribute)
