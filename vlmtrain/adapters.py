"""Adapter folders: found by path or hub id, read, checked against a base, and put on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError

__all__ = ["adapter_folder", "apply_adapter", "check_base", "read_run"]


def adapter_folder(adapter: str | Path) -> Path:
    """The folder of an adapter; one that is named by a hub id is fetched.

    Raises:
        MissingError: no such folder, no such hub id, or no finished adapter there.
    """
    folder = Path(adapter).expanduser()
    name = str(adapter)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.parent.is_dir():
            raise MissingError(f"no adapter folder {adapter}")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name))
        except (OSError, ValueError) as error:
            first = " ".join(str(error).split()).split(". ")[0]
            raise MissingError(f"no adapter folder {adapter}, and as a hub id it cannot be had: {first}") from error
    if not (folder / "adapter_config.json").is_file():
        unfinished = (folder / "checkpoints").is_dir()
        why = "the run was never finished: use --resume" if unfinished else "no adapter_config.json in it"
        raise MissingError(f"{adapter} is not an adapter: {why}")
    if not (folder / "adapter_model.safetensors").is_file():
        raise MissingError(f"{adapter} has no adapter_model.safetensors")
    return folder


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


def apply_adapter(model: Any, adapter: Path, name: str, trainable: bool) -> Any:
    """A ``PeftModel``: the base with the adapter on it.

    Raises:
        ConfigError: a weight of the adapter has no place in this base; peft would leave it out without a word.
    """
    from peft import PeftModel
    from safetensors import safe_open

    with safe_open(str(adapter / "adapter_model.safetensors"), "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    _check_fit(model, shapes, adapter, name)
    return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)


def _check_fit(model: Any, shapes: Mapping[str, tuple[int, ...]], adapter: Path, name: str) -> None:
    """Every LoRA weight has a module of its size; peft would skip what it cannot place without a word."""
    modules = dict(model.named_modules())
    for key, shape in shapes.items():
        for half, attribute, axis in ((".lora_A.weight", "in_features", 1), (".lora_B.weight", "out_features", 0)):
            if not key.endswith(half):
                continue
            module = modules.get(key.removeprefix("base_model.model.").removesuffix(half))
            width = getattr(module, attribute, None)
            if width is not None and width == shape[axis]:
                continue
            found = "no such module" if module is None else f"its {attribute} is {width}, not {shape[axis]}"
            raise ConfigError(f"{adapter} was made for another base than {name}: {key.removesuffix(half)}: {found}")
