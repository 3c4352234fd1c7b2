"""What image classifiers have and text models have not: named classes, a head for them, a bare image processor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError
from vlmtrain.adapters import read_weights
from vlmtrain.family import Family

__all__ = [
    "adapter_classes",
    "check_classes",
    "check_task",
    "classes",
    "fit_config",
    "initialize_head",
    "load_image_processor",
]

_COMMANDS = {"text": "vlmtrain sft or dpo", "classify": "vlmtrain classify"}


def check_task(family: Family, task: str | None, name: str) -> None:
    """Refuse a model of another kind; None takes any.

    Raises:
        ConfigError: it is one.
    """
    if task in (None, family.task):
        return
    what = "an image classifier" if family.task == "classify" else "a vision-language model that answers in words"
    raise ConfigError(f"{name} is {what} ({family.name}): train it with {_COMMANDS[family.task]}")


def classes(config: Any) -> tuple[str, ...]:
    """The names of a classifier's classes in the order of its logits."""
    return tuple(str(config.id2label[index]) for index in sorted(config.id2label))


def adapter_classes(folder: Path, family: Family) -> tuple[str, ...] | None:
    """The classes an adapter was trained on; None when it has no head of its own.

    A run folder names them in its ``config.json``. A plain PEFT adapter only shows how many there are, by the size of
    its head: they get the names transformers would give them.
    """
    own = folder / "config.json"
    if own.is_file():
        named = json.loads(own.read_text(encoding="utf-8")).get("id2label", {})
        return tuple(named[key] for key in sorted(named, key=int))
    biases = [v for k, v in read_weights(folder).items() if f".{family.head}." in k and k.endswith("bias")]
    return tuple(f"LABEL_{i}" for i in range(len(biases[0]))) if biases else None


def fit_config(config: Any, family: Family, labels: Sequence[str] | None, name: str) -> bool:
    """Write class names into a classifier's configuration, before its weights are read.

    Args:
        config: of the base; changed.
        family: of the base.
        labels: names in index order; None keeps the base's own head.
        name: the base's name, for error messages.

    Returns:
        Whether the head has to be new: the base has none, or one for other classes. A head of the same number of
        classes with other names is not kept; it would look trained, and mean something else.

    Raises:
        ConfigError: no labels are given and the base has no head.
    """
    kinds = config.architectures or ()
    made = [kind for kind in kinds if kind.endswith("ForImageClassification")]
    # DeiT's distilled checkpoints name a class with two heads that cannot be trained.
    config.architectures = made
    if labels is None:
        if not any("ForImageClassification" in kind for kind in kinds):
            raise ConfigError(f"{name} has no head that tells classes apart: train one with vlmtrain classify")
        return False
    if made and classes(config) == tuple(labels):
        return False
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    return True


def initialize_head(model: Any, family: Family, seed: int) -> None:
    """Draw a new head's weights: normal of ``initializer_range``, zero biases, as these architectures do it.

    Drawn here and not by transformers, which would keep a head of the same size and take whatever state its random
    numbers are in.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.get_submodule(family.head).parameters():
            drawn = torch.zeros(weight.shape)
            if weight.dim() > 1:
                drawn.normal_(0.0, getattr(model.config, "initializer_range", 0.02), generator=generator)
            weight.copy_(drawn)


def load_image_processor(source: str, family: Family, name: str, trust_remote_code: bool) -> Any:
    """The image processor of a model or run folder, or of a hub id.

    Raises:
        MissingError: there is none.
    """
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split()).split(". ")[0]
        raise MissingError(f"{name} has no image processor: {first}") from error


def check_classes(given: Sequence[str] | None, own: Sequence[str] | None, name: str) -> None:
    """An adapter that is trained further keeps its classes.

    Raises:
        ConfigError: the data have others.
    """
    if given is not None and own is not None and tuple(given) != tuple(own):
        strange = sorted({*given} - {*own}) or sorted({*own} - {*given}) or ["another order"]
        shown = ", ".join(strange[:3])
        raise ConfigError(f"{name} tells {len(own)} classes apart, the data have {len(given)}; not the same: {shown}")
