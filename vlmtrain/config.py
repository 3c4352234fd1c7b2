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

__all__ = [
    "Adapter",
    "Base",
    "Config",
    "Length",
    "Preference",
    "Recipe",
    "Training",
    "keys",
    "load_recipe",
    "parse_parts",
    "recipe_names",
    "recipe_text",
    "resolve",
]


LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


def _key(default: Any, help: str, *, least: float | None = None, most: float | None = None, among: Any = ()) -> Any:
    """A configuration key; ``among`` are its valid values, ``least`` and ``most`` its bounds, both included."""
    if isinstance(default, tuple):
        return field(default=default, metadata={"help": help, "least": least, "most": most, "among": among})
    return field(default=default, metadata={"help": help, "least": least, "most": most, "among": tuple(among)})


@dataclass(frozen=True, slots=True)
class Base:
    """The model that is trained."""

    model: str | None = _key(None, "vlmtrain:tiny, a model folder or a hub id")
    adapter: str | None = _key(None, "adapter to train further; its settings replace the lora keys")
    dtype: str = _key("auto", "weights of the base", among=("auto", "float32", "bfloat16", "float16"))
    quantize: str = _key("none", "load the base in fewer bits", among=("none", "8bit", "4bit"))
    max_image_tokens: int | None = _key(None, "most tokens one image may take", least=1)
    trust_remote_code: bool = _key(False, "run code that comes with a hub model")


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA: where, and how much."""

    lora_r: int = _key(16, "rank", least=1)
    lora_alpha: float = _key(32, "scale is alpha / r", least=0)
    lora_dropout: float = _key(0.0, "dropout before the adapter", least=0, most=0.999)
    parts: str = _key("language:attention,mlp", "PART[,PART]:KIND[,KIND]; vision, projector, language: attention, mlp")
    target_modules: tuple[str, ...] = _key((), "module names instead of parts; all-linear is every linear layer")
    modules_to_save: tuple[str, ...] = _key((), "modules trained in full and saved with the adapter")
    bias: str = _key("none", "which biases are trained", among=("none", "all", "lora_only"))
    rslora: bool = _key(False, "scale is alpha / sqrt(r)")


@dataclass(frozen=True, slots=True)
class Training:
    """Steps and their size."""

    epochs: float = _key(1.0, "passes over the data", least=0.001)
    max_steps: int | None = _key(None, "stop after so many optimizer steps, whatever the epochs", least=1)
    batch_size: int = _key(4, "rows (dpo: pairs) per device and forward", least=1)
    accumulate: int = _key(1, "forwards per optimizer step", least=1)
    learning_rate: float = _key(2e-4, "peak learning rate", least=0)
    schedule: str = _key("linear", "learning rate over time", among=SCHEDULES)
    warmup: float = _key(0.0, "steps of warm-up; below 1 a fraction of all steps", least=0)
    weight_decay: float = _key(0.0, "AdamW's decay", least=0)
    max_grad_norm: float = _key(1.0, "gradients are clipped to this norm; 0 is off", least=0)
    optimizer: str = _key("adamw", "adamw_8bit needs bitsandbytes", among=("adamw", "adamw_8bit"))
    gradient_checkpointing: bool | None = _key(None, "recompute activations to save memory; unset is on for a GPU only")
    seed: int = _key(0, "of initial adapter weights, dropout and row order", least=0, most=2**32 - 1)
    group_by_length: bool = _key(True, "rows of like length share a batch")
    compact_head: bool = _key(True, "project answer tokens only through the LM head")
    share_features: bool = _key(True, "a frozen vision tower sees each image once per step, without a graph")
    workers: int | None = _key(None, "processes that decode images; unset is chosen by the device", least=0)
    eval_fraction: float = _key(0.0, "share of the data held out for evaluation", least=0, most=0.9)
    eval_steps: int | None = _key(None, "evaluate every so many steps; unset is after each epoch", least=1)
    save_steps: int = _key(200, "write a checkpoint every so many steps", least=1)
    keep_checkpoints: int = _key(2, "how many of the last checkpoints stay", least=1)
    logging_steps: int | None = _key(None, "log every so many steps; unset is a 100th of the run, at most 10", least=1)


@dataclass(frozen=True, slots=True)
class Length:
    """What happens to rows that do not fit."""

    max_length: int | None = _key(None, "most tokens of a row, image tokens too; unset: the model's context", least=8)
    on_long: str = _key("shrink", "longer rows: shrink images, else drop; drop; fail", among=("shrink", "drop", "fail"))


@dataclass(frozen=True, slots=True)
class Preference:
    """DPO only."""

    beta: float = _key(0.1, "how far the policy may go from the reference", least=0)
    loss_type: tuple[str, ...] = _key(("sigmoid",), "loss, or several to be added", among=LOSSES)
    loss_weights: tuple[float, ...] = _key((), "weight of each loss; unset is 1")
    label_smoothing: float = _key(0.0, "share of pairs assumed to be the wrong way round", least=0, most=0.499)
    reference: str = _key("precompute", "when the reference is asked: before, or live", among=("precompute", "live"))


@dataclass(frozen=True, slots=True)
class Config:
    """Everything but the data and the output folder.

    Attributes:
        method: ``sft`` or ``dpo``.
        recipe: name of the recipe it started from.
        given: the keys that were set by anybody; the others are defaults.
    """

    method: str
    base: Base = field(default_factory=Base)
    lora: Adapter = field(default_factory=Adapter)
    training: Training = field(default_factory=Training)
    length: Length = field(default_factory=Length)
    preference: Preference | None = None
    recipe: str | None = None
    given: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """Flat, without paths: model and adapter are recorded elsewhere, by name."""
        flat: dict[str, Any] = {"method": self.method, "recipe": self.recipe}
        for group in self.groups():
            flat |= dataclasses.asdict(group)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items() if k not in ("model", "adapter")}

    def groups(self) -> Iterator[Any]:
        """The parts that apply to this method."""
        yield from (self.base, self.lora, self.training, self.length)
        if self.preference is not None:
            yield self.preference


_GROUPS: dict[str, type[Any]] = {"base": Base, "lora": Adapter, "training": Training, "length": Length}
_DEFAULTS: dict[str, dict[str, Any]] = {"sft": {}, "dpo": {"learning_rate": 2e-5}}


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
    groups = [*_GROUPS.values(), *([Preference] if method == "dpo" else [])]
    return {item.name: item for group in groups for item in dataclasses.fields(group)}


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
    if method not in _DEFAULTS:
        raise ConfigError(f"recipe {name}: method is {method!r}; valid: {choices(_DEFAULTS)}")
    summary, follows = str(raw.pop("summary", "")), str(raw.pop("follows", ""))
    return Recipe(Path(name).stem, method, summary, follows, raw)


def resolve(method: str, options: Mapping[str, Any], *, recipe: str | None = None, sets: Iterable[str] = ()) -> Config:
    """Defaults, then the recipe, then options, then ``--set``.

    Args:
        method: ``sft`` or ``dpo``.
        options: key to value; None means not given.
        recipe: packaged name or YAML file.
        sets: ``key=value`` strings, values in YAML.

    Raises:
        ConfigError: one line with every fault found.
        MissingError: no such recipe.
    """
    faults: list[str] = []
    values = dict(_DEFAULTS[method])
    chosen = load_recipe(recipe) if recipe else None
    if chosen and chosen.method != method:
        raise ConfigError(f"recipe {chosen.name} is for vlmtrain {chosen.method}, not {method}")
    given = {k: str(v) if isinstance(v, Path) else v for k, v in options.items() if v is not None}
    extra = _parse_sets(sets, faults)
    faults += [f"{key} is given by its flag and by --set" for key in sorted(given.keys() & extra.keys())]
    explicit = {**(chosen.values if chosen else {}), **given, **extra}
    known = keys(method)
    for key, value in {**values, **explicit}.items():
        if key not in known:
            faults.append(f"unknown key {key!r}; valid: {choices(known)}")
            continue
        values[key] = _check(known[key], value, faults)
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
        for name, group in ({**_GROUPS, "preference": Preference} if method == "dpo" else _GROUPS).items()
    }
    return Config(method, **groups, recipe=chosen.name if chosen else None, given=frozenset(explicit))


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


def _check(item: dataclasses.Field[Any], value: Any, faults: list[str]) -> Any:
    """The value in the key's type; appends what is wrong with it."""
    wanted = typing.get_type_hints(_owner(item.name))[item.name]
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


def _owner(key: str) -> type[Any]:
    return next(g for g in (*_GROUPS.values(), Preference) if key in {f.name for f in dataclasses.fields(g)})
