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
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, choices
from vlmtrain import objective
from vlmtrain.family import KINDS, PARTS
from vlmtrain.keys import (
    GROUPS,
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
from vlmtrain.recipe import load_recipe

__all__ = ["Config", "keys", "parse_parts", "resolve"]


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
        for key in ("eval_amber", "eval_amber_images"):
            flat[key] = Path(flat[key]).resolve().name if flat.get(key) else None
        return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items() if k not in ("model", "adapter")}

    @property
    def reads_meta(self) -> bool:
        """Whether a key names something in the ``meta`` of the rows."""
        weighted = self.supervision is not None and self.supervision.weight_by
        return bool(weighted or (self.unpaired is not None and self.unpaired.label_by))

    @property
    def groups_images(self) -> bool:
        """Whether rows on the same image are to share a batch."""
        return any(getattr(group, "group_by_image", False) for group in self.groups())

    def groups(self) -> Iterator[Any]:
        """The parts that apply to this method."""
        for name, (_, methods) in GROUPS.items():
            if self.method in methods:
                yield getattr(self, name)


_DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": {"learning_rate": 2e-5},
    "kto": {"learning_rate": 2e-5},
    "classify": {
        "learning_rate": 1e-3,
        "batch_size": 32,
        "lora_alpha": 16.0,
        "parts": "vision:attention",
        "eval_metric": "accuracy",
    },
}


def keys(method: str) -> dict[str, dataclasses.Field[Any]]:
    """All configuration keys of a method, by name."""
    return {item.name: item for group in _groups(method).values() for item in dataclasses.fields(group)}


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
            faults.append(f"unknown key {key!r}; {objective.ELSEWHERE.get(key) or f'valid: {choices(known)}'}")
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
    if not faults:
        faults += objective.faults(method, values)
    if faults:
        raise ConfigError(f"{len(faults)} faults: " + "; ".join(faults) if len(faults) > 1 else faults[0])
    groups = {
        name: group(**{f.name: values[f.name] for f in dataclasses.fields(group) if f.name in values})
        for name, group in _groups(method).items()
    }
    asked = frozenset(given) | frozenset(extra)
    name = chosen.name if chosen else None
    return Config(method, **groups, recipe=name, given=frozenset(explicit), asked=asked)


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
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            faults.append(f"{item.name} is {value!r}, expected settings like {{name: value, ...}}")
        return value
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
