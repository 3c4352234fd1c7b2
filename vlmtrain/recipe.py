"""Recipes: YAML files with the training keys of a published run, its data and its evaluation.

A recipe has the keys of ``vlmtrain.keys`` and ``method``, ``summary``, ``follows``; and three blocks that turn it into
commands from raw data to a report (``vlmtrain.recipe_steps``)::

    data: {source: the_cauldron, options: {config: geomverse, limit: 3000}, parts: "train=0.95,test=0.05"}
    merge: {dtype: bfloat16}
    report: {task: vqa, part: test, base: true, options: {max-new-tokens: 1024}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError, choices
from vlmtrain.keys import METHODS

__all__ = ["Data", "Recipe", "Report", "load_recipe", "recipe_names", "recipe_text"]


@dataclass(frozen=True, slots=True)
class Data:
    """What a recipe trains on.

    Attributes:
        source: of ``vlmdata sources``.
        options: of ``vlmdata convert``, by the names of its flags.
        parts: shares or sizes for ``vlmdata split``; None trains on all rows.
        split: more options of ``vlmdata split``.
        train: the part that is trained on.
        evaluate: the part that is looked at during training; None is none.
    """

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: str | None = None
    split: Mapping[str, Any] = field(default_factory=dict)
    train: str = "train"
    evaluate: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How the result is scored.

    Attributes:
        task: of ``vlmeval``.
        options: of that command, by the names of its flags.
        part: the part of the data that is asked; None is a benchmark that has its own data.
        base: the base model is asked too, and the two are compared.
    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    part: str | None = None
    base: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A packaged or own YAML file.

    Attributes:
        name: its file name.
        given: as it was named: a packaged recipe or a path.
        method: the command it is for.
        summary: one line.
        follows: what it reproduces.
        values: configuration keys.
        data: None where the recipe does not say.
        merge: options of ``vlmtrain merge``; None is not merged.
        report: None where the recipe does not say.
    """

    name: str
    given: str
    method: str
    summary: str
    follows: str
    values: Mapping[str, Any]
    data: Data | None = None
    merge: Mapping[str, Any] | None = None
    report: Report | None = None


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
        try:
            return Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"recipe {name} is not UTF-8 text") from error
    raise MissingError(f"no recipe {name!r}: expected a YAML file or one of {choices(recipe_names())}")


def load_recipe(name: str) -> Recipe:
    """Read a recipe; its training keys are checked by ``vlmtrain.config.resolve``.

    Raises:
        MissingError: no such recipe.
        ConfigError: not a mapping, without a method, or with a block that cannot be read.
    """
    import yaml

    try:
        raw = yaml.safe_load(recipe_text(name))
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {name} is a {type(raw).__name__}, expected keys and values")
    method = raw.pop("method", None)
    if method not in METHODS:
        raise ConfigError(f"recipe {name}: method is {method!r}; valid: {choices(METHODS)}")
    summary, follows = str(raw.pop("summary", "")), str(raw.pop("follows", ""))
    data = _block(name, "data", raw.pop("data", None), Data)
    report = _block(name, "report", raw.pop("report", None), Report)
    merge = raw.pop("merge", None)
    if merge is not None and not isinstance(merge, dict):
        raise ConfigError(f"recipe {name}: merge is {merge!r}, expected options of vlmtrain merge")
    return Recipe(Path(name).stem, name, method, summary, follows, raw, data, merge, report)


def _block(recipe: str, name: str, value: Any, kind: type[Any]) -> Any:
    """A block as its dataclass."""
    if value is None:
        return None
    known = list(kind.__dataclass_fields__)
    if not isinstance(value, dict):
        raise ConfigError(f"recipe {recipe}: {name} is a {type(value).__name__}, expected keys: {choices(known)}")
    strange = sorted(set(map(str, value)) - set(known))
    if strange:
        raise ConfigError(f"recipe {recipe}: {name} has no key {strange[0]!r}; valid: {choices(known)}")
    if not isinstance(value.get(known[0]), str):
        raise ConfigError(f"recipe {recipe}: {name} needs a {known[0]}, got {value.get(known[0])!r}")
    for key in ("options", "split"):
        if not isinstance(value.get(key, {}), dict):
            raise ConfigError(f"recipe {recipe}: {name}.{key} is {value[key]!r}, expected flags and values")
    return kind(**value)
