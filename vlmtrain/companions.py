"""Which adapters can share a base in memory, told from their folders before anything is loaded.

An adapter shares when switching it off leaves the base as it was, when it can stand beside the others, and when it
was trained with the same processor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain import family as families
from vlmtrain.adapters import Contents, adapter_folder, contents, read_run, weight_names
from vlmtrain.bases import fingerprint, locate, named, recorded_name
from vlmtrain.initial import LOFTQ
from vlmtrain.model import base_name, quiet, read_processor, set_budget

__all__ = ["agree", "is_whole", "loads_alone", "obstacles", "recorded_base", "run_of"]

_KINDS = ("LORA", "LOHA", "LOKR")
_FIRST = (True, False, None, "gaussian", "orthogonal")
# Keys of peft's configurations that change the base, or what stands around it.
_REACHING = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "kasa_config",
    "arrow_config",
    "megatron_config",
)
# How a tokenizer padded last is kept with it.
_PER_CALL = ("padding", "truncation")
_PARTS = ("image_processor", "tokenizer", "video_processor", "chat_template", "processor_class", "auto_map")


def is_whole(adapter: str | Path) -> bool:
    """Whether a folder given as an adapter is a whole model: the run of a full fine-tuning."""
    folder = Path(adapter).expanduser()
    return (
        (folder / "config.json").is_file()
        and not (folder / "adapter_config.json").is_file()
        and any(folder.glob("*.safetensors"))
    )


def run_of(adapter: str | Path) -> dict[str, Any]:
    """What a run says about itself, that of a full fine-tuning too; see ``vlmtrain.adapters.read_run``."""
    if not is_whole(adapter):
        return read_run(adapter)
    own = Path(adapter).expanduser() / "vlmtrain.json"
    return dict(json.loads(own.read_text(encoding="utf-8"))) if own.is_file() else {}


def recorded_base(adapter: str | Path) -> str:
    """The base a run names, that of a full fine-tuning too; see ``vlmtrain.model.base_name``."""
    if not is_whole(adapter):
        return base_name(None, adapter)
    base = run_of(adapter).get("base")
    if not base or (base.count("/") != 1 and ":" not in base):
        raise ConfigError(f"{adapter} was trained on a local folder ({base or 'not recorded'}): give it as --model")
    return str(base)


def agree(model: str | None, adapters: Sequence[str | Path]) -> None:
    """Refuse adapters of different bases, or of another one than is given, as far as their folders tell.

    Raises:
        ConfigError: they differ; both bases are named.
        MissingError: one of the adapters is not there.
    """
    runs = [(str(adapter), run_of(adapter)) for adapter in adapters]
    if model is not None:
        source = locate(model)
        digest = fingerprint(source) if Path(source).is_dir() else None
        runs = [(f"--model {model}", {"base": recorded_name(model), "base_hash": digest}), *runs]
    known = [(name, run) for name, run in runs if run.get("base")]
    for name, run in known[1:]:
        first, other = known[0]
        if run["base"] == other["base"]:
            continue
        hashes = (run.get("base_hash"), other.get("base_hash"))
        if hashes[0] is not None and hashes[0] == hashes[1]:
            continue
        if model is None or None not in hashes:
            whose = f"{first} on" if model is None else "the base is"
            raise ConfigError(
                f"{name} was trained on {run['base']}, {whose} {other['base']}: expected one base for all"
            )


def loads_alone(adapter: str | Path) -> str | None:
    """Why an adapter cannot share its base, as far as its folder tells; None where nothing stands in the way."""
    if is_whole(adapter):
        return "a whole model"
    folder = adapter_folder(adapter)
    config = _config(folder)
    kind = config["peft_type"]
    first = config.get("init_lora_weights", config.get("init_weights", True))
    if kind not in _KINDS:
        return f"a {kind} adapter"
    if config.get("bias", "none") != "none":
        return "it trains biases of the base"
    if first not in _FIRST or (folder / LOFTQ).is_file():
        return f"its first weights came out of the base ({'loftq' if (folder / LOFTQ).is_file() else first})"
    if reaching := [key for key in _REACHING if config.get(key)]:
        return f"it changes the base by {reaching[0]}"
    found = contents(weight_names(folder), config.get("modules_to_save"))
    kept = [name for name in found.whole if not any(_is_in(name, saved) for saved in found.saved)]
    if kept:
        return f"it brings {kept[0]} of its own, as for added tokens"
    return None


def _is_in(module: str, saved: str) -> bool:
    """Whether a module is one that is saved, or lies in it; peft finds those by the ends of their names."""
    parts, end = module.split("."), saved.split(".")
    return any(parts[at : at + len(end)] == end for at in range(len(parts)))


def obstacles(model: str | None, adapters: Sequence[str | Path], options: Mapping[str, Any]) -> dict[str | None, str]:
    """Why models cannot share: for each adapter that is loaded alone, and under None for the base, in a few words.

    Args:
        model: the base; None takes the one the adapters name.
        adapters: run folders, folders or hub ids of peft adapters.
        options: of ``vlmtrain.model.load``.

    Raises:
        VlmError: the base or one of the adapters cannot be had.
    """
    found: dict[str | None, str] = {}
    kind, settled = "", _Settled(model, adapters, options)
    for adapter in adapters:
        key = str(adapter)
        reason = loads_alone(adapter) or settled.differs(adapter)
        if reason is None:
            own = _config(adapter_folder(adapter)).get("peft_type", "LORA")
            kind = kind or own
            reason = f"a {own} adapter beside {kind} ones" if own != kind else settled.collides(adapter)
        if reason is not None:
            found[key] = reason
    if (reason := settled.differs(None)) is not None:
        found[None] = reason
    return found


class _Settled:
    """What those that share agree in, and what each of them trains."""

    def __init__(self, model: str | None, adapters: Sequence[str | Path], options: Mapping[str, Any]) -> None:
        from transformers import AutoConfig

        self.name = model or recorded_base(adapters[0])
        self.source, self.options = locate(self.name), options
        self.remote = bool(options.get("trust_remote_code", False))
        with quiet(), named(self.name):
            config = AutoConfig.from_pretrained(self.source, trust_remote_code=self.remote)
        self.family = families.for_model(config, self.name)
        self.aspects: dict[str, str] | None = None
        self.trained: dict[str, Contents] = {}

    def differs(self, adapter: str | Path | None) -> str | None:
        """What of its processor is not as that of the first that shares; the base's own processor for None."""
        if self.family.task == "classify":
            return "an image classifier has a head of its own"
        folder = None if adapter is None else adapter_folder(adapter)
        with quiet():
            processor = read_processor(folder, self.source, self.family, self.name, self.remote)
        if (budget := self.options.get("max_image_tokens")) is not None:
            set_budget(processor, self.family, budget)
        own = _aspects(processor)
        self.aspects = self.aspects or own
        different = [name for name in own if own[name] != self.aspects[name]]
        return f"another {' and '.join(different)}" if different else None

    def collides(self, adapter: str | Path) -> str | None:
        """Which of those before trains the same modules, and not in the same way."""
        folder = adapter_folder(adapter)
        own = contents(weight_names(folder), _config(folder).get("modules_to_save"))
        for name, other in self.trained.items():
            both = own.whole & other.whole
            if own.adapted & other.whole or own.whole & other.adapted or (both and own.saved != other.saved):
                return f"it and {name} train the same modules in different ways"
        self.trained[str(adapter)] = own
        return None


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return {**found, "peft_type": str(found.get("peft_type", "LORA")).upper()}


def _aspects(processor: Any) -> dict[str, str]:
    """What of a processor decides about what the model is shown, hashed."""
    tokenizer = processor.tokenizer
    words = {k: v for k, v in json.loads(tokenizer.backend_tokenizer.to_str()).items() if k not in _PER_CALL}
    found = {
        "chat template": processor.chat_template,
        "tokenizer": [words, tokenizer.special_tokens_map],
        "image processor": processor.image_processor.to_dict(),
        "processor": {key: value for key, value in processor.to_dict().items() if key not in _PARTS},
    }
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        for name, value in found.items()
    }
