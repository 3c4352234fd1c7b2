"""Adapters that were made when a model's modules had other names, brought to today's.

transformers renames modules between versions and converts the weights of models when it loads them; peft does so for
the weights of plain LoRA only, and not for ``target_modules``. Here the names of the modules are converted by
transformers' own tables first, then by the family's ``renames``, whatever the kind of adapter.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vlmtrain.family import Family
from vlmtrain.trl_seam import current_names

__all__ = ["by_family", "is_adapted", "is_shared", "modernized", "module_of"]

_PREFIX = "base_model.model."
_SUFFIX = re.compile(r"\.(?:lora|hada|lokr|ia3|vera|oft|boft|ranknum)_?\w*(?:\.weight|\.bias|\.base_layer)?$")
# What peft puts between a module and its weights.
_BETWEEN = (".base_layer", ".token_adapter", ".ln_tuning_layers")


def module_of(key: str) -> str:
    """The module an adapter's weight belongs to, from the name it is saved under."""
    bare = key.removeprefix(_PREFIX)
    cut = _SUFFIX.sub("", bare)
    if cut != bare:
        return cut
    name = bare.rpartition(".")[0]
    for inner in _BETWEEN:
        name = name.removesuffix(inner)
    return name


def is_adapted(key: str) -> bool:
    """Whether a weight stands beside a module's own weight."""
    return _SUFFIX.search(key.removeprefix(_PREFIX)) is not None


def is_shared(key: str) -> bool:
    """Whether a weight belongs to no module: what the layers of VeRA and its kin have in common."""
    return key.startswith("base_model.") and not key.startswith(_PREFIX)


def modernized(
    model: Any, family: Family, weights: Mapping[str, Any], config: Any
) -> tuple[dict[str, Any], Any, dict[str, str]]:
    """An adapter whose weights name modules this model has.

    Args:
        model: the base.
        family: of the base.
        weights: of the adapter, by the names they are saved under.
        config: peft's configuration of the adapter; it is not changed.

    Returns:
        Weights, configuration, and the modules that were renamed, old to new. A module that cannot be placed keeps its
        name. Nothing is touched where nothing is old.
    """
    modules = {name for name, _ in model.named_modules()}
    old = sorted({module_of(key) for key in weights} - modules)
    renamed = {name: new for name in old if (new := _today(name, model, family, modules)) is not None}
    if not renamed:
        return dict(weights), config, {}
    moved = {}
    for key, value in weights.items():
        before = module_of(key)
        head, _, tail = key.partition(before)
        moved[f"{head}{renamed.get(before, before)}{tail}"] = value
    return moved, _config(config, weights, renamed), renamed


def _today(name: str, model: Any, family: Family, modules: set[str]) -> str | None:
    (converted,) = current_names(model, [name])
    for candidate in (converted, by_family(name, family), by_family(converted, family)):
        if candidate in modules:
            return candidate
    return None


def by_family(name: str, family: Family) -> str:
    """A module's name, whole or its end, as the family's ``renames`` have it today."""
    for pattern, replacement in family.renames:
        name = re.sub(pattern, replacement, name)
    return name


def _config(config: Any, weights: Mapping[str, Any], renamed: Mapping[str, str]) -> Any:
    """Targets by the full names of the modules that have weights; ranks and scales that differ move with them."""
    config = copy.deepcopy(config)
    saved = set(config.modules_to_save or ())
    adapted = sorted({module_of(key) for key in weights if _SUFFIX.search(key)})
    whole = {module_of(key) for key in weights} - set(adapted)

    def today(names: Iterable[str]) -> list[str]:
        return [renamed.get(name, name) for name in names]

    for key in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, key, None)
        if not pattern:
            continue
        if all(isinstance(value, list) for value in pattern.values()):
            # AdaLoRA keeps a mask per matrix.
            found = {f"{renamed.get(module_of(name), module_of(name))}.lora_E": v for name, v in pattern.items()}
        else:
            found = {
                renamed.get(name, name): value
                for name in adapted
                for old, value in pattern.items()
                if re.match(rf"(.*\.)?({old})$", name)
            }
        setattr(config, key, found)
    config.target_modules = set(today(adapted))
    config.layers_to_transform = config.layers_pattern = None
    config.modules_to_save = (
        sorted(
            {renamed.get(name, name) for name in whole if any(name == s or name.endswith("." + s) for s in saved)}
            | {name for name in saved if not any(w == name or w.endswith("." + name) for w in whole)}
        )
        or None
    )
    return config
