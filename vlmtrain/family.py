"""What a model family is, and how families are found: by the file names in ``vlmtrain/families``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmdata.errors import ConfigError, choices
from vlmdata.leaves import leaf_names, load_leaf

__all__ = ["Family", "KINDS", "PARTS", "for_model", "load", "names"]

PARTS = ("vision", "projector", "language")
KINDS = ("attention", "mlp")


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: everything the trainers must know about it that the libraries do not tell.

    Attributes:
        name: its file name.
        model_types: values of ``config.model_type`` this family serves.
        url: where the architecture is described.
        summary: one line for listings.
        targets: part (vision, projector, language) -> kind (attention, mlp) -> regular expression that a module's
            full name matches as a whole. A part without one of the kinds leaves it out.
        towers: prefixes of the modules that turn pixels into image features (tower and projector). When nothing
            below them is trained, they run without a graph.
        chat_template: used, and saved with the adapter, when the model's processor has none.
        max_images: most images in one row; None is no limit.
        nested_images: the processor wants one list of images per text, not one flat list.
        set_budget: (processor, tokens, count) makes the processor shrink every image to at most that many tokens;
            count gives an image's tokens from its width and height. It raises ConfigError where the family cannot;
            None is a family whose images always take the same.
        feature_inputs: keys of a batch that ``get_image_features`` takes besides ``pixel_values``.
        auto_class: the transformers class that loads the model.
    """

    name: str
    model_types: tuple[str, ...]
    url: str
    summary: str
    targets: Mapping[str, Mapping[str, str]] = field(repr=False)
    towers: tuple[str, ...]
    chat_template: str = field(repr=False)
    max_images: int | None = None
    nested_images: bool = False
    set_budget: Callable[[Any, int, Callable[[int, int], int]], None] | None = None
    feature_inputs: tuple[str, ...] = ()
    auto_class: str = "AutoModelForImageTextToText"

    def target_regex(self, parts: tuple[str, ...], kinds: tuple[str, ...]) -> str:
        """One regular expression over module names for peft's ``target_modules``.

        Raises:
            ConfigError: an unknown part or kind, or a part that has no layer of a chosen kind.
        """
        patterns: list[str] = []
        for part in parts:
            if part not in self.targets:
                raise ConfigError(f"no part named {part!r} in this model; valid: {choices(self.targets)}")
            chosen = [self.targets[part][kind] for kind in kinds if kind in self.targets[part]]
            if not chosen:
                has = choices(self.targets[part])
                raise ConfigError(f"the {part} of this model has no {' or '.join(kinds)} layers; it has: {has}")
            patterns += chosen
        return "|".join(f"(?:{pattern})" for pattern in patterns)


def names() -> list[str]:
    """All family names, sorted; nothing is imported."""
    return leaf_names("vlmtrain.families")


def load(name: str) -> Family:
    """The family of that name.

    Raises:
        MissingError: there is no such family.
    """
    family: Family = load_leaf("vlmtrain.families", name, "FAMILY", "model family")
    return family


def for_model(config: Any, model: str = "this model") -> Family:
    """The family that serves a transformers config.

    Args:
        config: a ``PretrainedConfig``, or anything with ``model_type``.
        model: the model's name, for the error message.

    Raises:
        ConfigError: no family serves this architecture.
    """
    kind = getattr(config, "model_type", None)
    served = _by_type()
    if kind in served:
        return load(served[kind])
    sees = any(getattr(config, key, None) is not None for key in ("vision_config", "vision_tower"))
    what = "is a vision-language model of an unknown family" if sees else "is not a vision-language model"
    raise ConfigError(f"{model} {what}: its model_type is {kind!r}; families: {choices(names())}")


@functools.cache
def _by_type() -> dict[str, str]:
    return {kind: name for name in names() for kind in load(name).model_types}
