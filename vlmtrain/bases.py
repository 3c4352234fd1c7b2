"""Base models: what their names stand for, how two are told apart, and how their weights are loaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError
from vlmtrain.family import Family
from vlmtrain.quantization import check_bits, keep_layout, keep_scales, quantized

__all__ = [
    "Base",
    "DTYPES",
    "SPREADS",
    "TINY",
    "check_numbers",
    "fingerprint",
    "fit_threads",
    "load_base",
    "locate",
    "named",
    "recorded_name",
    "spread",
]

TINY = "vlmtrain:tiny"
DTYPES = ("auto", "float32", "bfloat16", "float16")
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which accelerate spreads a model over the devices there are."""


def locate(name: str) -> str:
    """What transformers is to load for a model's name: a folder or a hub id.

    Raises:
        MissingError: the name means a folder, and there is none.
        ConfigError: the folder is an adapter, not a model.
    """
    if name == TINY:
        folder = resources.files("vlmtrain") / "tiny" / "model"
        if not (folder / "config.json").is_file():
            raise MissingError(f"{TINY} is not in this installation: vlmtrain/tiny/model is missing")
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        # The adapter of a classifier comes with a config.json, which names its classes.
        if (path / "adapter_config.json").is_file() and not any(path.glob("model*.safetensors")):
            raise ConfigError(f"{name} is an adapter, not a model: give it as --adapter")
        if not (path / "config.json").is_file():
            raise MissingError(f"{name} is not a model folder: it has no config.json")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.is_file():
        raise MissingError(f"no model {name!r}: expected {TINY}, a model folder or a hub id like ORG/NAME")
    return name


def recorded_name(name: str) -> str:
    """A model's name as it may be written into a run folder: a local folder loses its path."""
    return Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name


def fingerprint(source: str) -> str:
    """A hash that tells two bases apart without reading all of their weights.

    Over every safetensors (or torch) file: its header (names, shapes, types), its size and three samples of 64 KiB.

    Args:
        source: a model folder, or the id of a hub model that has been loaded before.
    """
    folder = Path(source)
    if not folder.is_dir():
        from transformers.utils import cached_file

        folder = Path(str(cached_file(source, "config.json"))).parent
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    for path in files or [folder / "config.json"]:
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        with path.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little") if path.suffix == ".safetensors" else 0
            for start in (0, 8 + header, (size + header) // 2, size - (64 << 10)):
                stream.seek(max(0, start))
                digest.update(stream.read(64 << 10))
    return digest.hexdigest()


def fit_threads() -> None:
    """No more threads than a container may use: torch counts the machine's cores, and waiting ones slow the others."""
    import torch

    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        allowed = max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return
    if "OMP_NUM_THREADS" not in os.environ and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)


def check_numbers(dtype: str, quantize: str, quantize_parts: Sequence[str], device: str) -> None:
    """Refuse types, bits and devices that cannot be.

    Raises:
        ConfigError: an unknown word, no such device, or a device without the type.
        DependencyError: bits without bitsandbytes.
    """
    import torch

    if dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    check_bits(quantize, tuple(quantize_parts))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, and there is none")
    if dtype == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(f"{torch.cuda.get_device_name(0)} has no bfloat16: use --dtype float16 or float32")


def spread(device_map: str | Mapping[str, Any] | None, device: str | None) -> str | dict[str, Any] | None:
    """How a model is spread over devices, checked.

    Args:
        device_map: one of ``SPREADS``, module names to devices, or the JSON text of such an object; ``""`` is the
            whole model.
        device: a single device, which excludes it.

    Raises:
        ConfigError: both are given, it is none of these, or it names a device that is not there.
    """
    if device_map is None:
        return None
    if device is not None:
        raise ConfigError(f"device {device} and device_map {device_map} exclude each other: give one of them")
    if isinstance(device_map, str) and device_map in SPREADS:
        return device_map
    wanted = f'{", ".join(SPREADS)}, or JSON like {{"": "cpu"}} or {{"model.vision_tower": 0, "": 1}}'
    try:
        found = json.loads(device_map) if isinstance(device_map, str) else dict(device_map)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"device_map is {device_map!r}; expected {wanted}; a single device is --device")
    for module, place in found.items():
        fault = _no_place(place)
        if fault:
            raise ConfigError(f"device_map puts {module or 'the model'} on {place!r}: {fault}")
    return found


def _whole(device_map: Mapping[str, Any], base: Base) -> dict[str, Any]:
    """A map that gives every weight a place; transformers would leave the others where they are."""
    import torch
    import transformers
    from accelerate.utils import check_device_map

    with torch.device("meta"):
        empty = getattr(transformers, base.family.auto_class).from_config(base.config)
    try:
        check_device_map(empty, dict(device_map))
    except ValueError as error:
        raise ConfigError(f"device_map for {base.name}: {' '.join(str(error).split())}") from error
    return dict(device_map)


def _no_place(place: Any) -> str | None:
    """Why a module cannot be put there."""
    import torch

    if place == "disk":
        return "weights on disk are not supported; expected a device like cpu or 0"
    if isinstance(place, bool) or not isinstance(place, int | str):
        return "expected a device like cpu, cuda:1 or 0"
    try:
        found = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    except RuntimeError:
        return "no such kind of device"
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} CUDA devices"
    return None


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Turn the libraries' long answers about a model that cannot be had into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split()).split(". ")[0]
        raise MissingError(f"model {name!r} cannot be loaded: {first}") from error


@dataclass(frozen=True, slots=True)
class Base:
    """A model to be loaded.

    Attributes:
        source: folder or hub id; ``name`` what the user calls it.
        config: its transformers configuration.
    """

    source: str
    name: str
    family: Family
    config: Any
    trust_remote_code: bool = False


def load_base(
    base: Base,
    dtype: str,
    device: str,
    *,
    quantize: str = "none",
    quantize_parts: Sequence[str] = ("language",),
    shape: Mapping[str, Any] | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Any:
    """A base's weights.

    Args:
        base: which.
        dtype: ``auto`` keeps the type of the checkpoint.
        device: where to.
        quantize: bits of the linear layers of ``quantize_parts``.
        quantize_parts: parts of the model.
        shape: more arguments, when a classifier's head is another than the stored one.
        device_map: how the model is spread over several devices, instead of ``device``; see :func:`spread`.

    Raises:
        MissingError: it cannot be had, or lacks tensors.
        ConfigError: it is quantized already, and other bits are asked for; or a map leaves weights without a place.
    """
    import torch
    import transformers

    family, name = base.family, base.name
    if quantize != "none" and getattr(base.config, "quantization_config", None):
        raise ConfigError(f"{name} is quantized already: --quantize none, or the unquantized model")
    bits = quantized(quantize, tuple(quantize_parts), family, base.config, device)
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    if device_map is not None:
        bits |= {"device_map": device_map if isinstance(device_map, str) else _whole(device_map, base)}
    with named(name):
        model, info = getattr(transformers, family.auto_class).from_pretrained(
            base.source,
            trust_remote_code=base.trust_remote_code,
            output_loading_info=True,
            dtype=kind,
            **bits,
            **(shape or {}),
        )
    missing = sorted(key for key in info["missing_keys"] if not shape or not key.startswith(f"{family.head}."))
    if missing:
        # transformers fills them with random numbers and a warning.
        raise MissingError(f"the weights of {name} lack {len(missing)} tensors, the first is {missing[0]}")
    model.config._name_or_path = recorded_name(name)
    keep_layout(model)
    keep_scales(model)
    return model if bits else model.to(device)
