"""What is trained: an adapter of one kind or another, or chosen parts of the model itself.

Papers: LoRA https://arxiv.org/abs/2106.09685, rsLoRA https://arxiv.org/abs/2312.03732, DoRA
https://arxiv.org/abs/2402.09353, LoHa https://arxiv.org/abs/2108.06098, LoKr https://arxiv.org/abs/2309.14859,
AdaLoRA https://arxiv.org/abs/2303.10512. The layers are peft's.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from vlmdata.errors import ConfigError, choices
from vlmtrain import config as configs
from vlmtrain.adapters import recorded_settings
from vlmtrain.config import Config
from vlmtrain.family import Family
from vlmtrain.keys import Adapter
from vlmtrain.last_blocks import only_last
from vlmtrain.legacy import by_family
from vlmtrain.model import Loaded
from vlmtrain.parts import matched, parts_of

__all__ = ["MUTATING", "adapter_config", "check_tuner", "weights_dtype", "whole_parts"]

# First weights that take something out of the base: the adapter alone does not say what was learned.
MUTATING = ("olora", "pissa", "pissa_niter_16")
_LORA_ONLY = ("bias", "rslora", "init", "lora_dropout")
# Tuner -> keys that mean something to it, beyond the rank, its scale and the layers.
_HAS: dict[str, tuple[str, ...]] = {
    "lora": _LORA_ONLY,
    "dora": _LORA_ONLY,
    "adalora": ("bias", "lora_dropout"),
    "loha": (),
    "lokr": (),
}


def check_tuner(config: Config) -> None:
    """Refuse keys that the chosen tuner does not know, before anything is loaded.

    Raises:
        ConfigError: one line with the first key that would do nothing, or a combination that cannot be.
    """
    lora, quantize = config.lora, config.base.quantize
    defaults = {item.name: item.default for item in dataclasses.fields(Adapter)}
    if config.base.adapter is not None:
        _check_reference(config, config.base.adapter)
        return
    if lora.tuner == "full":
        if quantize != "none":
            raise ConfigError(f"tuner full trains the weights themselves, not {quantize} ones: quantize none, or lora")
        if config.base.dtype == "float16":
            raise ConfigError("tuner full cannot learn in float16 weights: --dtype auto, float32 or bfloat16")
        idle = config.asked & defaults.keys() - {"tuner", "parts"}
        if idle:
            raise ConfigError(f"tuner full has no {', '.join(sorted(idle))}; parts says what is trained")
        return
    for key in _LORA_ONLY:
        if key not in _HAS[lora.tuner] and getattr(lora, key) != defaults[key]:
            has = [name for name, known in _HAS.items() if key in known]
            raise ConfigError(f"tuner {lora.tuner} has no {key}, got {getattr(lora, key)}; it is for {choices(has)}")
    _check_first_weights(config)
    preference = config.preference or config.unpaired
    if lora.bias != "none" and getattr(preference, "reference", "") == "live":
        # Peft switches an adapter off, and leaves the biases as they were trained.
        raise ConfigError(f"bias {lora.bias} would be trained in the reference too: reference precompute, or bias none")


def _check_reference(config: Config, adapter: str) -> None:
    """Peft holds one adapter at a time that moves ranks or biases; a preference run needs a second as its reference."""
    own = recorded_settings(adapter)
    kind = "adalora" if own["tuner"] == "adalora" else f"bias {own['bias']}" if own["bias"] != "none" else ""
    if kind and config.method in ("dpo", "kto"):
        merge = f"vlmtrain merge {adapter} --out MODEL, then --model MODEL"
        raise ConfigError(f"an adapter with {kind} cannot be its own reference in {config.method}: {merge}")


def _check_first_weights(config: Config) -> None:
    lora, quantize = config.lora, config.base.quantize
    if lora.tuner in ("loha", "lokr") and quantize == "4bit":
        raise ConfigError(f"tuner {lora.tuner} cannot stand on a 4bit base: use quantize 8bit or none, or tuner lora")
    if lora.init == "loftq" and quantize != "4bit":
        raise ConfigError(f"init loftq makes up for what 4bit loses, quantize is {quantize}: give --quantize 4bit")
    if lora.init in MUTATING and quantize != "none":
        raise ConfigError(f"init {lora.init} takes its weights out of the base, which {quantize} rounds: use loftq")
    if lora.init in (*MUTATING, "loftq") and lora.tuner == "dora":
        raise ConfigError(f"init {lora.init} changes what dora measures: use tuner lora, or another init")
    if lora.init in (*MUTATING, "loftq") and config.method in ("dpo", "kto"):
        raise ConfigError(f"init {lora.init} does not start at the reference of {config.method}: use another init")
    if lora.init == "orthogonal" and lora.lora_r % 2:
        raise ConfigError(f"init orthogonal needs an even lora_r, got {lora.lora_r}")


def whole_parts(config: Config) -> Config:
    """Full training of parts that nobody named takes all of them, not the layers an adapter would stand on."""
    if config.lora.tuner != "full" or "parts" in config.given:
        return config
    parts = config.lora.parts.partition(":")[0]
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, parts=parts))


def weights_dtype(config: Config) -> str:
    """The type the base is loaded in: weights that are trained themselves are float32 unless asked otherwise.

    Steps of an optimizer are mostly smaller than what bfloat16 can tell apart; on a GPU the forward still runs in 16
    bits, under autocast, as with TRL's own loading.
    """
    full = config.lora.tuner == "full" and config.base.adapter is None
    return "float32" if full and config.base.dtype == "auto" else config.base.dtype


def adapter_config(config: Config, loaded: Loaded) -> Any:
    """The configuration of a new adapter; None with ``tuner: full``, whose parameters are set free here.

    Raises:
        ConfigError: a part or as many blocks as the model does not have, targets that match nothing, or the LM head.
    """
    lora = config.lora
    if config.classification is not None and config.classification.head_only:
        return _head_alone(loaded)
    if lora.tuner == "full":
        _free(config, loaded)
        return None
    targets = _targets(config, loaded)
    if lora.lora_last_layers is not None:
        targets = only_last(targets, lora.lora_last_layers, loaded.family, dict(loaded.model.named_modules()))
    save = list(lora.modules_to_save)
    if loaded.family.head and loaded.family.head not in save:
        save.append(loaded.family.head)
    common = {
        "target_modules": targets,
        "modules_to_save": save or None,
        "base_model_name_or_path": loaded.base,
    }
    return _KINDS[lora.tuner](lora, common)


def _head_alone(loaded: Loaded) -> Any:
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    # peft's own name for an adapter without layers.
    return LoraConfig(
        target_modules=DUMMY_TARGET_MODULES,
        modules_to_save=[loaded.family.head],
        base_model_name_or_path=loaded.base,
    )


def _lora(lora: Adapter, common: dict[str, Any]) -> Any:
    from peft import LoraConfig

    # LoftQ's first weights are set once the quantized base is there (vlmtrain.initial).
    first = True if lora.init in ("default", "loftq") else lora.init
    return LoraConfig(
        r=lora.lora_r,
        lora_alpha=_whole(lora.lora_alpha),
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        use_rslora=lora.rslora,
        use_dora=lora.tuner == "dora",
        init_lora_weights=first,
        **common,
    )


def _loha(lora: Adapter, common: dict[str, Any]) -> Any:
    from peft import LoHaConfig

    return LoHaConfig(r=lora.lora_r, alpha=_whole(lora.lora_alpha), **common)


def _lokr(lora: Adapter, common: dict[str, Any]) -> Any:
    from peft import LoKrConfig

    return LoKrConfig(r=lora.lora_r, alpha=_whole(lora.lora_alpha), **common)


def _adalora(lora: Adapter, common: dict[str, Any]) -> Any:
    """Starts at one and a half times the rank, as peft's own defaults do (12 to 8)."""
    from peft import AdaLoraConfig

    return AdaLoraConfig(
        target_r=lora.lora_r,
        init_r=math.ceil(1.5 * lora.lora_r),
        lora_alpha=_whole(lora.lora_alpha),
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        total_step=1,
        **common,
    )


_KINDS: dict[str, Callable[[Adapter, dict[str, Any]], Any]] = {
    "lora": _lora,
    "dora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "adalora": _adalora,
}


def _free(config: Config, loaded: Loaded) -> None:
    """Full fine-tuning: the chosen parts learn, everything else is frozen.

    A part named without kinds is trained wholly, embeddings, norms and head included; with kinds only those layers.
    """
    text = config.lora.parts
    parts, kinds = configs.parse_parts(text)
    regex = loaded.family.target_regex(parts, kinds)
    modules = [name for name, _ in loaded.model.named_modules()]
    layers = set(matched(regex, modules))
    if not layers:
        raise ConfigError(f"parts is {text}: no layer of this model matches")
    whole = ":" not in text
    head = loaded.family.head
    belongs = parts_of([name for name, _ in loaded.model.named_parameters()], loaded.family, modules)
    for name, parameter in loaded.model.named_parameters():
        chosen = belongs[name] in parts if whole else name.rpartition(".")[0] in layers
        parameter.requires_grad_(chosen or bool(head and name.startswith(head + ".")))


def _targets(config: Config, loaded: Loaded) -> Any:
    """What peft calls ``target_modules``: a regular expression, names, or its word for every linear layer."""
    lora = config.lora
    modules = dict(loaded.model.named_modules())
    targets = [_today(name, modules, loaded.family) for name in lora.target_modules]
    for key, names in (("target_modules", targets), ("modules_to_save", lora.modules_to_save)):
        for wanted in names:
            if wanted != "all-linear" and not any(name == wanted or name.endswith("." + wanted) for name in modules):
                raise ConfigError(f"{key}: no module named {wanted!r}; linear layers: {_linear(loaded)}")
    for name, module in modules.items():
        whole = [save for save in lora.modules_to_save if re.search(rf"(^|\.){re.escape(save)}($|\.)", name)]
        if whole and type(module).__name__ in ("Linear8bitLt", "Linear4bit"):
            raise ConfigError(f"modules_to_save: {whole[0]} is loaded in {config.base.quantize}, and cannot be trained")
    head = loaded.model.get_output_embeddings()
    own = {name.rpartition(".")[2] for name, module in modules.items() if head is not None and module is head}
    if own & set(targets):
        raise ConfigError(f"target_modules: {choices(own)} is the LM head, which takes no LoRA; use modules_to_save")
    if targets:
        return "all-linear" if "all-linear" in targets else targets
    regex = loaded.family.target_regex(*configs.parse_parts(lora.parts))
    if not matched(regex, list(modules)):
        raise ConfigError(f"parts is {lora.parts}: no layer of this model matches; linear layers: {_linear(loaded)}")
    return regex


def _today(name: str, modules: Mapping[str, Any], family: Family) -> str:
    """A target as it is called today, where it names no module of this model."""
    known = any(module == name or module.endswith("." + name) for module in modules)
    return name if known else by_family(name, family)


def _linear(loaded: Loaded) -> str:
    return choices({n.rpartition(".")[2] for n, m in loaded.model.named_modules() if hasattr(m, "in_features")})


def _whole(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha
