"""Adapter folders: found by path or hub id, read, checked against a base, and put on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from vlmtrain.family import Family

__all__ = [
    "Contents",
    "adapter_file",
    "adapter_folder",
    "add_adapter",
    "apply_adapter",
    "check_base",
    "contents",
    "read_run",
    "read_weights",
    "recorded_settings",
    "weight_names",
]

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Not wanted of an adapter on the hub: what only its training needed.
_IGNORED = ["checkpoint*/*", "runs/*", "*.pt", "*.pth", "optimizer*", "training_args.bin"]


@dataclass(frozen=True, slots=True)
class Contents:
    """What an adapter's weights belong to, as full names of modules.

    Attributes:
        adapted: modules with matrices beside their weights.
        whole: modules that the adapter has weights of its own for.
        saved: ``modules_to_save`` of its configuration.
    """

    adapted: frozenset[str]
    whole: frozenset[str]
    saved: frozenset[str]


def adapter_folder(adapter: str | Path) -> Path:
    """The folder of an adapter; one that is named by a hub id is fetched.

    Raises:
        MissingError: no such folder, no such hub id, or no finished adapter there.
        ConfigError: a whole model where an adapter is wanted.
    """
    folder = Path(adapter).expanduser()
    name = str(adapter)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.parent.is_dir():
            raise MissingError(f"no adapter folder {adapter}")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, ignore_patterns=_IGNORED))
        except (OSError, ValueError) as error:
            first = " ".join(str(error).split()).split(". ")[0]
            raise MissingError(f"no adapter folder {adapter}, and as a hub id it cannot be had: {first}") from error
    if not (folder / "adapter_config.json").is_file():
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            raise ConfigError(f"{adapter} is a whole model, not an adapter: give it as --model")
        unfinished = (folder / "checkpoints").is_dir()
        why = "the run was never finished: use --resume" if unfinished else "no adapter_config.json in it"
        raise MissingError(f"{adapter} is not an adapter: {why}")
    adapter_file(folder)
    return folder


def adapter_file(folder: Path) -> Path:
    """The weights of an adapter folder; before 2024 peft wrote them as a pickle.

    Raises:
        MissingError: there are none.
    """
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise MissingError(f"{folder} has no {_FILES[0]}")


def read_run(adapter: str | Path) -> dict[str, Any]:
    """What a run folder says about itself (``vlmtrain.json``); a plain PEFT adapter gives its base only.

    Raises:
        MissingError: no such folder, or no adapter in it.
    """
    folder = adapter_folder(adapter)
    own = folder / "vlmtrain.json"
    if own.is_file():
        return dict(json.loads(own.read_text(encoding="utf-8")))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return {"base": config.get("base_model_name_or_path")}


def recorded_settings(adapter: str | Path) -> dict[str, Any]:
    """The configuration keys of an adapter that is trained further, as its own folder has them."""
    before = read_run(adapter).get("config", {})
    own = json.loads((adapter_folder(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    kind = str(own.get("peft_type", "LORA")).lower()
    return {
        "tuner": "dora" if own.get("use_dora") else kind,
        "init": "default",
        "lora_r": own.get("target_r", own.get("r")),
        "lora_alpha": own.get("lora_alpha", own.get("alpha")),
        "lora_dropout": own.get("lora_dropout", own.get("rank_dropout", 0.0)),
        "parts": before.get("parts"),
        "lora_last_layers": before.get("lora_last_layers"),
        "rslora": own.get("use_rslora", False),
        "bias": own.get("bias", "none"),
        **{key: own.get(key) for key in ("target_modules", "modules_to_save")},
    }


def check_base(adapter: Path, name: str, recorded: str, base_hash: str) -> None:
    """Refuse a base of another name and other weights: it would run, and talk nonsense.

    Args:
        adapter: its folder.
        name: the base as the user named it.
        recorded: the base's name as run folders record it.
        base_hash: its fingerprint.

    Raises:
        ConfigError: it is not the adapter's base.
    """
    run = read_run(adapter)
    base = run.get("base")
    if run.get("base_hash") not in (None, base_hash) and recorded != base:
        raise ConfigError(f"{adapter} was trained on {base}, not on {name}: their weights differ")


def apply_adapter(model: Any, adapter: Path, name: str, family: Family, trainable: bool) -> Any:
    """A ``PeftModel``: the base with the adapter on it, every weight of it in its place.

    peft leaves out weights it cannot place, and fills gaps with fresh ones, without a word. An adapter whose modules
    had other names when it was made is renamed (``vlmtrain.legacy``).

    Raises:
        ConfigError: a weight of the adapter has no place in this base or another size than its place, one is missing,
            or it is no adapter of weights.
    """
    from peft import PeftConfig, get_peft_model

    from vlmtrain.initial import take_off
    from vlmtrain.legacy import modernized

    config: Any = PeftConfig.from_pretrained(str(adapter))
    if config.is_prompt_learning or not hasattr(config, "target_modules"):
        raise ConfigError(f"{adapter} is a {config.peft_type} adapter; expected one of weights, like LORA or LOHA")
    wanted = f"{adapter} was made for another base than {name}"
    weights, config, _ = modernized(model, family, _outer(read_weights(adapter)), config)
    _check_modules(model, weights, wanted)
    config.inference_mode = not trainable
    try:
        net = get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{wanted}: {' '.join(str(error).split()).split('. ')[0]}") from error
    # Embeddings that were enlarged are saved whole, under their own names.
    embeddings = {key: tuple(value.shape) for key, value in net.state_dict().items() if key in weights}
    _place(net, adapter, weights, "default", embeddings, wanted)
    take_off(net, adapter)
    return net


def add_adapter(net: Any, adapter: Path, name: str, family: Family, slot: str) -> Contents:
    """Put one more adapter on a ``PeftModel``, switched off; every weight of it in its place, as above.

    The modules it changes are named one by one: a pattern that finds them in a bare base could find more here.

    Args:
        net: with other adapters of the same kind.
        adapter: its folder.
        name: of the base, for messages.
        family: of the base.
        slot: what peft is to call it.

    Returns:
        What the adapter consists of.

    Raises:
        ConfigError: as :func:`apply_adapter`; the model is as it was before.
    """
    from peft import PeftConfig

    from vlmtrain.legacy import modernized

    wanted = f"{adapter} was made for another base than {name}"
    config: Any = PeftConfig.from_pretrained(str(adapter))
    weights, config, _ = modernized(net.get_base_model(), family, _outer(read_weights(adapter)), config)
    found = contents(weights, config.modules_to_save)
    config.target_modules = set(found.adapted)
    config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    config.inference_mode = True
    active = net.active_adapter
    try:
        net.add_adapter(slot, config)
        _place(net, adapter, weights, slot, {}, wanted)
    except (ValueError, TypeError, RuntimeError) as error:
        if slot in net.peft_config:
            net.delete_adapter(slot)
        net.set_adapter(active, inference_mode=True)
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{wanted}: {' '.join(str(error).split()).split('. ')[0]}") from error
    net.set_adapter(active, inference_mode=True)
    net.eval()
    return found


def contents(weights: Iterable[str], saved: Iterable[str] | None) -> Contents:
    """What an adapter's weights belong to.

    Args:
        weights: the names they are saved under.
        saved: ``modules_to_save`` of its configuration.
    """
    from vlmtrain.legacy import is_adapted, module_of

    names = list(weights)
    adapted = {module_of(key) for key in names if is_adapted(key)}
    whole = {module_of(key) for key in names} - adapted
    return Contents(frozenset(adapted), frozenset(whole), frozenset(saved or ()))


def _place(
    net: Any, adapter: Path, weights: dict[str, Any], slot: str, places: Mapping[str, tuple[int, ...]], wanted: str
) -> None:
    """Load weights into a fresh adapter, all of them and no others."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    # peft would ask the hub whether the base has other embeddings.
    own = get_peft_model_state_dict(net, adapter_name=slot, save_embedding_layers=False)
    places = {**places, **{key: tuple(value.shape) for key, value in own.items()}}
    for key, value in weights.items():
        if places.get(key) != tuple(value.shape):
            found = f"expected {places[key]}, got {tuple(value.shape)}" if key in places else "nothing takes it"
            raise ConfigError(f"{wanted}: weight {key}: {found}")
    missing = sorted(_outer(own).keys() - weights.keys())
    if missing:
        raise ConfigError(f"{adapter} lacks {len(missing)} of the weights its configuration asks for: {missing[0]}")
    left = set_peft_model_state_dict(net, weights, adapter_name=slot).unexpected_keys
    if left:
        raise ConfigError(f"{wanted}: {len(left)} weights could not be placed, the first is {left[0]}")


def read_weights(folder: Path) -> dict[str, Any]:
    """The weights of an adapter folder by the names they are saved under."""
    file = adapter_file(folder)
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(file))
    import torch

    return dict(torch.load(file, map_location="cpu", weights_only=True))


def weight_names(folder: Path) -> list[str]:
    """The names an adapter's weights are saved under, without what is saved twice."""
    file = adapter_file(folder)
    if file.suffix != ".safetensors":
        return list(_outer(read_weights(folder)))
    from safetensors import safe_open

    with safe_open(str(file), "pt") as stream:
        return list(_outer(dict.fromkeys(stream.keys())))


def _outer(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Without what peft saves twice: with ``bias: all``, the insides of modules that are saved whole."""
    return {k: v for k, v in weights.items() if ".original_module." not in k and ".modules_to_save." not in k}


def _check_modules(model: Any, weights: Mapping[str, Any], wanted: str) -> None:
    """Every weight has a module, and every LoRA weight one of its size."""
    from vlmtrain.legacy import is_shared, module_of

    modules = dict(model.named_modules())
    sides = ((".lora_A.weight", "in_features", 1), (".lora_B.weight", "out_features", 0))
    for key, value in weights.items():
        if is_shared(key):
            continue
        name = module_of(key)
        if name not in modules:
            raise ConfigError(f"{wanted}: {name}: no such module")
        for half, attribute, axis in sides:
            width = getattr(modules[name], attribute, None)
            if key.endswith(half) and width is not None and width != value.shape[axis]:
                raise ConfigError(f"{wanted}: {name}: its {attribute} is {width}, not {value.shape[axis]}")
