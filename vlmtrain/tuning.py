"""What is trained: the adapter's configuration for peft, from the keys of a run."""

from __future__ import annotations

from typing import Any

from vlmdata.errors import ConfigError, choices
from vlmtrain import config as configs
from vlmtrain.config import Config
from vlmtrain.model import Loaded

__all__ = ["adapter_config"]


def adapter_config(config: Config, loaded: Loaded) -> Any:
    """The configuration of a new adapter.

    Raises:
        ConfigError: targets that match nothing, or the LM head.
    """
    from peft import LoraConfig

    lora = config.lora
    names = [name for name, _ in loaded.model.named_modules()]
    leaves = {name.rpartition(".")[2] for name in names}
    for key in ("target_modules", "modules_to_save"):
        for wanted in getattr(lora, key):
            if wanted != "all-linear" and not any(name == wanted or name.endswith("." + wanted) for name in names):
                linear = {n.rpartition(".")[2] for n, m in loaded.model.named_modules() if hasattr(m, "in_features")}
                raise ConfigError(f"{key}: no module named {wanted!r}; linear layers: {choices(linear & leaves)}")
    head = loaded.model.get_output_embeddings()
    own = {name.rpartition(".")[2] for name, module in loaded.model.named_modules() if module is head}
    if own & set(lora.target_modules):
        raise ConfigError(f"target_modules: {choices(own)} is the LM head, which takes no LoRA; use modules_to_save")
    if lora.target_modules:
        targets: Any = "all-linear" if "all-linear" in lora.target_modules else list(lora.target_modules)
    else:
        targets = loaded.family.target_regex(*configs.parse_parts(lora.parts))
    return LoraConfig(
        r=lora.lora_r,
        lora_alpha=int(lora.lora_alpha) if lora.lora_alpha == int(lora.lora_alpha) else lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        modules_to_save=list(lora.modules_to_save) or None,
        bias=lora.bias,
        use_rslora=lora.rslora,
        base_model_name_or_path=loaded.base,
    )
