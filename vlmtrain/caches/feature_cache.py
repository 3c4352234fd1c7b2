"""What a frozen tower gives is kept: each image runs through it once for all passes, policy and reference.

Features are kept as they came out of the tower, so that every later step computes what it would have computed. They
stay in memory (``cache_vision: ram``) or in one file an image next to the checkpoints (``disk``), as many as
``cache_vision_gb`` holds; the others go through the tower whenever they are seen. Nothing that was kept is dropped, so
that workers can rely on what they were told (``vlmtrain.caches.known_images``). Files are found again by a run that is
resumed, if the same weights, settings and libraries would make them, and are removed when the run is finished.

Each process keeps what it has seen itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from vlmdata.errors import ConfigError
from vlmtrain.caches.known_images import image_inputs
from vlmtrain.dropout import drops
from vlmtrain.features import Images, Known, repeat_rows, repeated
from vlmtrain.watching.memory import machine_memory

if TYPE_CHECKING:
    from vlmtrain.config import Config
    from vlmtrain.family import Family
    from vlmtrain.job import Job

__all__ = ["FOLDER", "FeatureCache", "Files", "HEAD", "Memory", "Store", "Tensors", "check", "discard", "feature_cache"]

Tensors = dict[str, torch.Tensor]
FOLDER = "image-features"
"""Where features are kept next to the checkpoints, those of ``vlmtrain.caches.kept_activations`` too."""
HEAD = "head-features.safetensors"
"""What ``vlmtrain.caches.head_features`` keeps next to the checkpoints."""
_GIB = 2**30


class Store(Protocol):
    """Where features are kept."""

    limit: int
    bytes: int

    def put(self, key: str, found: Tensors, known: Known) -> bool:
        """Keep the features of an image; False where there is no room."""

    def get(self, key: str) -> Tensors:
        """What was kept."""


class Memory:
    """Features in the memory of this process."""

    def __init__(self, limit: int) -> None:
        """Keep at most ``limit`` bytes."""
        self.limit, self.bytes = limit, 0
        self._kept: dict[str, Tensors] = {}

    def put(self, key: str, found: Tensors, known: Known) -> bool:
        """Keep the features of an image; False where there is no room."""
        size = _size(found)
        if self.bytes + size > self.limit:
            return False
        self._kept[key] = found
        self.bytes += size
        return True

    def get(self, key: str) -> Tensors:
        """What was kept."""
        return self._kept[key]


class Files:
    """Features in files, one an image."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Keep at most ``limit`` bytes in ``folder``, those that are there counted."""
        self.folder, self.limit, self.bytes = folder, limit, 0

    def known(self) -> dict[str, Known]:
        """What is there, by key; what is not whole is removed."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, Known] = {}
        for file in sorted(self.folder.glob("*/*.safetensors")):
            try:
                with safe_open(file, "pt") as opened:
                    said = json.loads((opened.metadata() or {})["image"])
                    names = [name for name in opened.keys() if name.startswith("input.")]  # noqa: SIM118
                    inputs = {name.removeprefix("input."): opened.get_tensor(name) for name in names}
            except (SafetensorError, KeyError, ValueError):
                file.unlink(missing_ok=True)
                continue
            found[said["key"]] = Known(sys.intern(said["replacement"]), inputs, said["typed"])
            self.bytes += file.stat().st_size
        return found

    def put(self, key: str, found: Tensors, known: Known) -> bool:
        """Keep the features of an image; False where there is no room."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self.bytes + _size(found) > self.limit:
            return False
        file = self._file(key)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        said = {"key": key, "replacement": known.replacement, "typed": known.typed}
        inputs = {f"input.{name}": value.contiguous() for name, value in known.inputs.items()}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({**found, **inputs}, part, {"image": json.dumps(said)})
            part.replace(file)
        except (OSError, SafetensorError):
            # A disk without room, whatever the limit says; safetensors has an error of its own for it.
            part.unlink(missing_ok=True)
            return False
        self.bytes += file.stat().st_size
        return True

    def get(self, key: str) -> Tensors:
        """What was kept."""
        from safetensors.torch import load_file

        return {name: value for name, value in load_file(self._file(key)).items() if not name.startswith("input.")}

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


class FeatureCache:
    """Features of images, in place of their pixels.

    Attributes:
        known: what collators have to know of images that are kept, by key; grows while the run goes on.
        tower_images: images that went through the tower so far.
    """

    def __init__(self, store: Memory | Files, token: str, say: Any = None) -> None:
        """Keep features in ``store``.

        Args:
            store: where.
            token: text of the token an image's features take the place of.
            say: tells the user a line.
        """
        self.store, self.token, self.say = store, token, say
        self.known: dict[str, Known] = store.known() if isinstance(store, Files) else {}
        self.tower_images = 0
        self.full = False

    def in_place_of_pixels(
        self, net: Any, family: Family, inputs: Mapping[str, Any], images: Images, copies: int
    ) -> dict[str, Any]:
        """What the model's forward takes for that many copies of the rows; to be called without a graph.

        Args:
            net: the transformers model, its tower frozen.
            family: the model's family.
            inputs: a batch of :func:`vlmtrain.caches.known_images.encode_known`.
            images: those that belong to it.
            copies: of the rows.
        """
        found = self._fresh(net, family, inputs, images) if images.fresh else {}
        device = inputs["input_ids"].device
        of = [found[key] if key in found else self.store.get(key) for key in images.keys]
        belongs = {"pixel_values", *family.feature_inputs, *family.pixel_inputs}
        rest = {key: value for key, value in inputs.items() if key not in belongs}
        kept = {key: inputs[key] for key in image_inputs(family)}
        if copies > 1:
            kept = (family.repeat or repeat_rows)(kept, copies)
        features = repeated(self._joined(of, device), copies)
        return {**rest, **kept, "mm_encoder_outputs": {"image": features}}

    def figures(self) -> dict[str, int]:
        """For ``metrics.json``: images that are kept, their bytes, and images that went through the tower."""
        return {"images": len(self.known), "bytes": self.store.bytes, "tower_images": self.tower_images}

    def _fresh(self, net: Any, family: Family, inputs: Mapping[str, Any], images: Images) -> dict[str, Tensors]:
        """Features of the images whose pixels are there, by key; kept where there is room."""
        wanted = {images.keys[place] for place in images.fresh}
        if wanted <= self.known.keys():
            return {}
        seen = {"pixel_values": inputs["pixel_values"]}
        each = image_inputs(family)
        for key in family.feature_inputs:
            if key in inputs:
                seen[key] = inputs[key][images.fresh] if key in each else inputs[key]
        output = net.get_image_features(**seen, return_dict=True)
        self.tower_images += len(images.fresh)
        counts = [known.replacement.count(self.token) for known in images.known]
        parts = self._split(output, counts)
        found: dict[str, Tensors] = {}
        for place, known, part in zip(images.fresh, images.known, parts, strict=True):
            key = images.keys[place]
            found[key] = part
            if key in self.known or self.full:
                continue
            # A tensor that came from a worker holds a file of shared memory open for as long as it lives.
            inputs = {name: value.clone() for name, value in known.inputs.items()}
            own = Known(sys.intern(known.replacement), inputs, known.typed)
            if self.store.put(key, {name: value.cpu() for name, value in part.items()}, own):
                self.known[key] = own
            else:
                self.full = True
                if self.say is not None:
                    size = f"{self.store.bytes / _GIB:.2f} GiB"
                    self.say(f"vision {len(self.known):,} images are kept in {size}; there is no room for more")
        return found

    def _split(self, output: Any, counts: Sequence[int]) -> list[Tensors]:
        """Features of each image, from those of a batch and the number of tokens of each."""
        pooled = output.pooler_output
        # How features come, a list or a tensor, is how the model's forward takes them.
        name = "stacked" if isinstance(pooled, torch.Tensor) else "listed"
        flat = torch.cat(tuple(pooled)) if name == "listed" else pooled
        per_entry = math.prod(flat.shape[1:-1])
        if sum(counts) != len(flat) * per_entry or any(count % per_entry for count in counts):
            raise ConfigError(
                f"cache_vision: this model has {len(flat) * per_entry} features for the {sum(counts)} places of its "
                "images, so that they cannot be told apart: leave it out"
            )
        entries = [count // per_entry for count in counts]
        parts = [{name: part.clone()} for part in flat.split(entries)]
        for number, layer in enumerate(getattr(output, "deepstack_features", None) or ()):
            pieces = layer.split(list(counts)) if isinstance(layer, torch.Tensor) else layer
            for part, piece in zip(parts, pieces, strict=True):
                part[f"layer.{number}"] = piece.clone()
        return parts

    def _joined(self, parts: Sequence[Tensors], device: Any) -> Any:
        """Features of a batch from those of each image."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        listed = "listed" in parts[0]
        pooled = [part["listed" if listed else "stacked"].to(device) for part in parts]
        output = BaseModelOutputWithPooling(pooler_output=pooled if listed else torch.cat(pooled))
        layers = sum(name.startswith("layer.") for name in parts[0])
        if layers:
            output.deepstack_features = [
                [part[f"layer.{number}"].to(device) for part in parts] for number in range(layers)
            ]
        return output


def check(config: Config) -> None:
    """Refuse what can be seen to be wrong before a model is loaded.

    Raises:
        ConfigError: nothing would be kept, or a limit has nothing to limit.
    """
    training = config.training
    if training.cache_vision == "off":
        if training.cache_vision_gb is not None:
            raise ConfigError("cache_vision_gb limits cache_vision, which is off: ram or disk")
        return
    if not training.share_features:
        raise ConfigError("cache_vision keeps what share_features computes once: not with share_features=false")


def feature_cache(trainer: Any, job: Job) -> FeatureCache | None:
    """The cache of a prepared job; None where none is wanted.

    Args:
        trainer: behind ``TrainerSeam``.
        job: what it was made from.

    Raises:
        ConfigError: the features of an image are not the same every time, or not its own.
    """
    training, family = job.config.training, job.loaded.family
    if training.cache_vision == "off":
        return None
    if reason := _obstacle(trainer, family):
        raise ConfigError(f"cache_vision: {reason}; leave it out")
    if training.cache_vision == "ram":
        limit = machine_memory() // 4 // job.processes
        store: Memory | Files = Memory(_limit(training.cache_vision_gb, limit))
    else:
        folder = job.folder.checkpoints / FOLDER / _fingerprint(job)
        free = shutil.disk_usage(job.folder.checkpoints).free
        store = Files(folder, _limit(training.cache_vision_gb, free // 2 // job.processes))
    token = job.loaded.processor.tokenizer.convert_ids_to_tokens(trainer.net.config.image_token_id)
    cache = FeatureCache(store, token, job.reporter.say)
    found = f"; {len(cache.known):,} images are there already" if cache.known else ""
    where = "memory" if training.cache_vision == "ram" else "files"
    job.reporter.say(f"vision features of images are kept in {where}, at most {store.limit / _GIB:.1f} GiB{found}")
    return cache


def discard(checkpoints: Path) -> None:
    """Remove what was kept for a run that is finished; its checkpoints stay."""
    shutil.rmtree(checkpoints / FOLDER, ignore_errors=True)
    (checkpoints / HEAD).unlink(missing_ok=True)


def _limit(asked: float | None, otherwise: int) -> int:
    return otherwise if asked is None else int(asked * _GIB)


def _obstacle(trainer: Any, family: Family) -> str | None:
    if family.features is not None:
        return f"{family.name} hands features on a row at a time, not an image"
    if trainer.is_sharded:
        return "processes hold the weights in parts"
    if not trainer.tower_is_frozen:
        return "the vision tower or the projector is trained"
    net = trainer.net
    for name, module in net.named_modules():
        if f"{name}.".startswith(family.towers) and (why := drops(module)):
            return f"what is frozen is not the same every time, its {why}"
    return None


def _fingerprint(job: Job) -> str:
    """What features depend on besides the image."""
    identity, settings = job.identity, job.identity["config"]
    said = {
        "base": [identity["base"], identity["base_hash"], identity["adapter"]],
        "settings": {key: settings[key] for key in ("dtype", "quantize", "quantize_parts", "max_image_tokens")},
        "computed": [str(job.loaded.model.dtype), job.device],
        "processor": json.loads(job.loaded.processor.image_processor.to_json_string()),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _size(found: Mapping[str, torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in found.values())
