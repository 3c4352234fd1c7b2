"""What must be written down so that an answer can be had again: hashes, revisions, settings, versions, devices."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = [
    "SAMPLING",
    "adapter_facts",
    "base_facts",
    "decoding",
    "device_facts",
    "greedy",
    "prompt_facts",
    "text_hash",
    "versions",
]

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "loftq.safetensors")
_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "accelerate", "pillow", "bitsandbytes")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What a generation config holds besides what decides about the tokens.
_ASIDE = (
    "_from_model_config",
    "bos_token_id",
    "do_sample",
    "max_length",
    "max_new_tokens",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "transformers_version",
    "use_cache",
)


def adapter_facts(folder: Path | None) -> dict[str, Any]:
    """What an adapter is known by: sha256 over the files that make up what it does, and its commit on the hub."""
    if folder is None:
        return {"adapter_sha256": None}
    digest = hashlib.sha256()
    for name in _FILES:
        path = folder / name
        if path.is_file():
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    facts = {"adapter_sha256": digest.hexdigest()}
    snapshot = _COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots"
    return {**facts, "adapter_revision": folder.name} if snapshot else facts


def base_facts(loaded: Any) -> dict[str, Any]:
    """What a loaded base is known by."""
    found = {
        "base": loaded.base,
        "base_hash": loaded.base_hash,
        "family": loaded.family.name,
        "loaded_dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    commit = getattr(loaded.model.config, "_commit_hash", None)
    return {**found, "base_revision": commit} if commit else found


def prompt_facts(loaded: Any, prompt_format: Any) -> dict[str, Any]:
    """How a loaded model's prompts are written and its answers decoded."""
    return {
        "chat_template_sha256": text_hash(str(loaded.processor.chat_template)),
        "prompt_format_sha256": text_hash(prompt_format),
        "generation_config": decoding(loaded.model.generation_config),
    }


def text_hash(*parts: Any) -> str:
    """sha256 over texts and whatever else JSON can hold."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode(errors="replace")).hexdigest()


def greedy(config: Any, max_new_tokens: int) -> Any:
    """A model's own generation config, without sampling."""
    import copy

    found = copy.deepcopy(config)
    found.update(do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, max_length=None)
    found.update(**dict.fromkeys(SAMPLING))
    return found


def decoding(config: Any) -> dict[str, Any]:
    """What of a generation config is not as it comes and decides about tokens: penalties, stops, forbidden words."""
    found = greedy(config, 1).to_diff_dict()
    return {key: value for key, value in sorted(found.items()) if key not in _ASIDE and value is not None}


def versions() -> dict[str, str]:
    """Versions of the packages that compute; those that are not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_facts(model: Any) -> dict[str, Any]:
    """Where a model computes, on what, and with which attention."""
    import torch

    facts: dict[str, Any] = {"device": str(model.device)}
    spread = getattr(model, "hf_device_map", None)
    if spread and len(set(map(str, spread.values()))) > 1:
        facts["device_map"] = {name: str(place) for name, place in spread.items()}
    if torch.cuda.is_available() and model.device.type == "cuda":
        facts |= {"device_name": torch.cuda.get_device_name(model.device), "cuda": torch.version.cuda}
    return {
        **facts,
        "attention": getattr(model.config, "_attn_implementation", None),
        "threads": torch.get_num_threads(),
    }
