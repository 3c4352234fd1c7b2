"""Architectures without weights: packaged configurations, local models, and a stand-in for a bare parameter count.

Nothing is downloaded: a hub id is looked up among the packaged configurations and in the cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError, choices
from vlmtrain import family as families
from vlmtrain.family import Family

__all__ = ["Shape", "find_shape", "packaged_names", "parse_count", "shape_of_size"]

_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


@dataclass(slots=True)
class Shape:
    """A model that is not there.

    Attributes:
        name: as it is shown.
        config: transformers configuration.
        family: of the model.
        processor: of the model; for a packaged one with a tokenizer that knows letters only.
        dtype: of the published weights.
        real_tokenizer: texts have as many tokens as in training.
        stated: parameters of the base as the user states them; None is what the configuration gives.
    """

    name: str
    config: Any
    family: Family
    processor: Any
    dtype: str
    real_tokenizer: bool
    stated: int | None = None

    def build(self, dtype: str) -> Any:
        """The model on the meta device: shapes and types, no numbers.

        Args:
            dtype: ``auto`` is the published one.
        """
        import torch
        import transformers

        kind = getattr(torch, self.dtype if dtype == "auto" else dtype)
        with torch.device("meta"):
            return getattr(transformers, self.family.auto_class).from_config(self.config, dtype=kind)


def packaged_names() -> dict[str, str]:
    """Names of the packaged configurations, and the hub ids they are of."""
    folder = resources.files("vlmtrain.planning") / "configs"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return {file.name.removesuffix(".json"): json.loads(file.read_text(encoding="utf-8"))["id"] for file in files}


def find_shape(name: str, *, adapter: Path | None = None, trust_remote_code: bool = False) -> Shape:
    """A packaged name, a model folder, ``vlmtrain:tiny`` or a hub id.

    Args:
        name: of the model.
        adapter: folder of one on it, whose processor is taken where it has one.
        trust_remote_code: run code that comes with a model.

    Raises:
        MissingError: none of these, or a hub id that is neither packaged nor in the cache.
        ConfigError: a model that no family serves.
    """
    from vlmtrain.model import TINY, locate

    packaged = packaged_names()
    # Who publishes a model again, as unsloth does, leaves it its name.
    by_name = {hub.partition("/")[2].lower(): short for short, hub in packaged.items()}
    if name in packaged:
        return _packaged(name)
    if name == TINY or Path(name).expanduser().is_dir():
        return _local(locate(name), name, adapter, trust_remote_code)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return _local(str(Path(cached).parent), name, adapter, trust_remote_code)
        if short := by_name.get(name.partition("/")[2].lower()):
            return _packaged(short)
        what = "is not in the cache, and plan downloads nothing"
    else:
        what = "is no model folder and no packaged configuration"
    raise MissingError(f"{name!r} {what}: fetch it first, give --params, or one of {choices(packaged)}")


def shape_of_size(parameters: int) -> Shape:
    """A model like LLaVA of about so many parameters, for when only their number is known.

    A CLIP tower, then Llama layers as wide as the published ones of that size are: 128 units of width for each layer.
    """
    best: tuple[float, int] = (float("inf"), 0)
    vision = _towers(parameters)
    for layers in range(2, 161):
        width = 128 * layers
        inner = 256 * round(width * 8 / 3 / 256)
        count = layers * (4 * width * width + 3 * width * inner) + 2 * 32064 * width + _tower_size(vision)
        best = min(best, (abs(count - parameters), layers))
    layers = best[1]
    spec = _spec("llava-1.5-7b")
    spec["config"]["vision_config"] |= vision
    spec["config"]["text_config"] |= {
        "hidden_size": 128 * layers,
        "intermediate_size": 256 * round(128 * layers * 8 / 3 / 256),
        "num_hidden_layers": layers,
        "num_attention_heads": layers,
        "num_key_value_heads": layers,
        "max_position_embeddings": 32768,
    }
    shape = _from_spec(spec, f"a model of {parameters / 1e9:.3g} billion parameters")
    shape.stated, shape.dtype = parameters, "bfloat16"
    return shape


def parse_count(text: str) -> int:
    """``8e9``, ``8000000000``, ``8b`` or ``350M`` as a number of parameters.

    Raises:
        ConfigError: it is none, or not between a thousand and ten trillion.
    """
    raw = text.strip().lower().replace("_", "").replace(",", "")
    scale = _SUFFIXES.get(raw[-1:], 1.0)
    try:
        count = float(raw[:-1] if raw[-1:] in _SUFFIXES else raw) * scale
    except ValueError:
        raise ConfigError(f"--params is {text!r}, expected a number of parameters like 8e9 or 8B") from None
    if not 1e3 <= count <= 1e13:
        raise ConfigError(f"--params is {text!r}, expected between a thousand and 1e13 parameters")
    return round(count)


def _towers(parameters: int) -> dict[str, int]:
    """CLIP's large tower; for small models one that leaves most of the parameters to the language model."""
    if parameters >= 2e9:
        return {}
    layers = max(2, min(12, round(parameters / 5e7)))
    width = 64 * layers
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": layers,
    }


def _tower_size(vision: dict[str, int]) -> int:
    width, layers = vision.get("hidden_size", 1024), vision.get("num_hidden_layers", 24)
    return 12 * width * width * layers + 588 * width


def _spec(name: str) -> dict[str, Any]:
    file = resources.files("vlmtrain.planning") / "configs" / f"{name}.json"
    spec: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return spec


def _packaged(name: str) -> Shape:
    spec = _spec(name)
    return _from_spec(spec, spec["id"])


def _from_spec(spec: dict[str, Any], name: str) -> Shape:
    from transformers import AutoConfig

    from vlmtrain.planning.stand_in import make_processor

    settings = dict(spec["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    family = families.for_model(config, name)
    processor = make_processor(spec, config, family)
    return Shape(name, config, family, processor, spec["dtype"], real_tokenizer=False)


def _local(folder: str, name: str, adapter: Path | None, trust_remote_code: bool) -> Shape:
    from transformers import AutoConfig

    from vlmtrain import classifiers
    from vlmtrain.bases import named
    from vlmtrain.model import load_processor, quiet

    with quiet():
        with named(name):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        family = families.for_model(config, name)
        reader = classifiers.load_image_processor if family.task == "classify" else load_processor
        own = adapter is not None and any(adapter.glob("*processor_config.json"))
        processor = reader(str(adapter) if own else folder, family, name, trust_remote_code)
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    return Shape(name, config, family, processor, dtype, real_tokenizer=True)
