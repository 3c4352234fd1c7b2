"""What a run depends on: recipe YAML, flags and ``--set`` become one checked, complete configuration.

All keys live in one name space, the same for a recipe, a flag (with dashes), ``--set`` and the Python API. Every fault
is reported at once.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError, choices
from vlmtrain.family import KINDS, PARTS
from vlmtrain.keys import (
    GROUPS,
    LOSSES,
    METHODS,
    Adapter,
    Base,
    Classification,
    Length,
    Preference,
    Rows,
    Supervision,
    Training,
    Unpaired,
    Watching,
)

__all__ = [
    "Config",
    "Recipe",
    "keys",
    "load_recipe",
    "parse_parts",
    "recipe_names",
    "recipe_text",
    "resolve",
]


@dataclass(frozen=True, slots=True)
class Config:
    """Everything but the data and the output folder.

    Attributes:
        method: ``sft``, ``dpo``, ``kto`` or ``classify``.
        recipe: name of the recipe it started from.
        given: the keys that were set by anybody; the others are defaults.
        asked: the keys among them that stand on the command line or were passed by the caller, not in the recipe.

    The groups that the method does not have are None (``vlmtrain.keys``).
    """

    method: str
    base: Base = field(default_factory=Base)
    lora: Adapter = field(default_factory=Adapter)
    training: Training = field(default_factory=Training)
    rows: Rows = field(default_factory=Rows)
    watching: Watching = field(default_factory=Watching)
    length: Length | None = None
    supervision: Supervision | None = None
    preference: Preference | None = None
    unpaired: Unpaired | None = None
    classification: Classification | None = None
    recipe: str | None = None
    given: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """Flat, without paths: model and adapter are recorded elsewhere, by name."""
        flat: dict[str, Any] = {"method": self.method, "recipe": self.recipe}
        for group in self.groups():
            flat |= dataclasses.asdict(group)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items() if k not in ("model", "adapter")}

    def groups(self) -> Iterator[Any]:
        """The parts that apply to this method."""
        for name, (_, methods) in GROUPS.items():
            if self.method in methods:
                yield getattr(self, name)


_DEFAULTS: dict[str, dict[str, Any]] = {"dpo": {"learning_rate": 2e-5}, "kto": {"learning_rate": 2e-5}}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A packaged or own YAML file.

    Attributes:
        method: the command it is for.
        summary: one line.
        follows: what it reproduces.
        values: configuration keys.
    """

    name: str
    method: str
    summary: str
    follows: str
    values: Mapping[str, Any]


def keys(method: str) -> dict[str, dataclasses.Field[Any]]:
    """All configuration keys of a method, by name."""
    return {item.name: item for group in _groups(method).values() for item in dataclasses.fields(group)}


def recipe_names() -> list[str]:
    """Packaged recipes, sorted."""
    folder = resources.files("vlmtrain") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a packaged recipe, or of a file.

    Raises:
        MissingError: there is neither.
    """
    if name in recipe_names():
        return (resources.files("vlmtrain") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    raise MissingError(f"no recipe {name!r}: expected a YAML file or one of {choices(recipe_names())}")


def load_recipe(name: str) -> Recipe:
    """Read a recipe.

    Raises:
        MissingError: no such recipe.
        ConfigError: not a mapping, or without a method.
    """
    import yaml

    try:
        raw = yaml.safe_load(recipe_text(name))
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {name} is a {type(raw).__name__}, expected keys and values")
    method = raw.pop("method", None)
    if method not in METHODS:
        raise ConfigError(f"recipe {name}: method is {method!r}; valid: {choices(METHODS)}")
    summary, follows = str(raw.pop("summary", "")), str(raw.pop("follows", ""))
    return Recipe(Path(name).stem, method, summary, follows, raw)


def resolve(method: str, options: Mapping[str, Any], *, recipe: str | None = None, sets: Iterable[str] = ()) -> Config:
    """Defaults, then the recipe, then options, then ``--set``.

    Args:
        method: ``sft``, ``dpo``, ``kto`` or ``classify``.
        options: key to value; None means not given.
        recipe: packaged name or YAML file.
        sets: ``key=value`` strings, values in YAML.

    Raises:
        ConfigError: one line with every fault found.
        MissingError: no such recipe.
    """
    faults: list[str] = []
    values = dict(_DEFAULTS.get(method, {}))
    chosen = load_recipe(recipe) if recipe else None
    if chosen and chosen.method != method:
        raise ConfigError(f"recipe {chosen.name} is for vlmtrain {chosen.method}, not {method}")
    given = {k: str(v) if isinstance(v, Path) else v for k, v in options.items() if v is not None}
    extra = _parse_sets(sets, faults)
    faults += [f"{key} is given by its flag and by --set" for key in sorted(given.keys() & extra.keys())]
    explicit = {**(chosen.values if chosen else {}), **given, **extra}
    known = keys(method)
    hints = {key: kind for group in _groups(method).values() for key, kind in typing.get_type_hints(group).items()}
    for key, value in {**values, **explicit}.items():
        if key not in known:
            faults.append(f"unknown key {key!r}; valid: {choices(known)}")
            continue
        values[key] = _check(known[key], hints[key], value, faults)
    if isinstance(values.get("parts"), str):
        try:
            parse_parts(values["parts"])
        except ConfigError as error:
            faults.append(str(error))
    if values.get("adapter"):
        fixed = {item.name for item in dataclasses.fields(Adapter)} & (given.keys() | extra.keys())
        faults += [f"{key} cannot change: the adapter given has its own" for key in sorted(fixed)]
    if method == "dpo" and not faults:
        _check_losses(values, faults)
    if faults:
        raise ConfigError(f"{len(faults)} faults: " + "; ".join(faults) if len(faults) > 1 else faults[0])
    groups = {
        name: group(**{f.name: values[f.name] for f in dataclasses.fields(group) if f.name in values})
        for name, group in _groups(method).items()
    }
    asked = frozenset(given) | frozenset(extra)
    name = chosen.name if chosen else None
    return Config(method, **groups, recipe=name, given=frozenset(explicit), asked=asked)


def _check_losses(values: Mapping[str, Any], faults: list[str]) -> None:
    losses, weights = values.get("loss_type", ("sigmoid",)), values.get("loss_weights", ())
    if not losses:
        faults.append(f"loss_type is empty; valid: {', '.join(LOSSES)}")
    if weights and len(weights) != len(losses):
        faults.append(f"loss_weights has {len(weights)} numbers for {len(losses)} losses")
    if "exo_pair" in losses and not values.get("label_smoothing"):
        faults.append("loss_type exo_pair needs label_smoothing above 0, its paper takes 0.001")


def parse_parts(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``PART[,PART][:KIND[,KIND]]`` as parts and kinds; no kinds are all of them.

    Raises:
        ConfigError: a name is unknown, or there is no part.
    """
    left, _, right = text.partition(":")
    parts = tuple(dict.fromkeys(word.strip() for word in left.split(",") if word.strip()))
    kinds = tuple(dict.fromkeys(word.strip() for word in right.split(",") if word.strip())) or KINDS
    if not parts or set(parts) - set(PARTS) or set(kinds) - set(KINDS):
        valid = f"parts {', '.join(PARTS)}, kinds {', '.join(KINDS)}"
        raise ConfigError(f"parts is {text!r}, expected PART[,PART]:KIND[,KIND], {valid}")
    return parts, kinds


def _parse_sets(sets: Iterable[str], faults: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for item in sets:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            faults.append(f"--set {item!r}: expected key=value")
            continue
        try:
            found[key.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[key.strip().replace("-", "_")] = value
    return found


def _check(item: dataclasses.Field[Any], wanted: Any, value: Any, faults: list[str]) -> Any:
    """The value in the key's type; appends what is wrong with it."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    before = len(faults)
    if typing.get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        result: Any = tuple(_scalar(item, typing.get_args(kind)[0], part, faults) for part in parts)
        checked: tuple[Any, ...] = result
    else:
        result = _scalar(item, kind, value, faults)
        checked = (result,)
    if len(faults) == before:
        for one in checked:
            _check_range(item, one, faults)
    return result


def _scalar(item: dataclasses.Field[Any], kind: Any, value: Any, faults: list[str]) -> Any:
    # YAML 1.1 reads 2e-4 as a string, and a whole number is a fine float.
    words = {"true": True, "false": False}
    try:
        if kind is bool:
            return value if isinstance(value, bool) else words[str(value).lower()]
        if kind is str:
            if isinstance(value, str):
                return value.strip()
            raise ValueError
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if kind is int:
            if number != int(number):
                raise ValueError
            return int(number)
        return number
    except (KeyError, OverflowError, TypeError, ValueError):
        name = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
        faults.append(f"{item.name} is {value!r}, expected {name}")
        return value


def _check_range(item: dataclasses.Field[Any], value: Any, faults: list[str]) -> None:
    least, most, among = (item.metadata[key] for key in ("least", "most", "among"))
    if among and value not in among:
        faults.append(f"{item.name} is {value!r}; valid: {', '.join(among)}")
    elif (least is not None and not value >= least) or (most is not None and not value <= most):
        span = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
        faults.append(f"{item.name} is {value}, expected {span}")
    elif isinstance(value, float) and value == float("inf"):
        faults.append(f"{item.name} is infinite")


def _groups(method: str) -> dict[str, type[Any]]:
    return {name: group for name, (group, methods) in GROUPS.items() if method in methods}
