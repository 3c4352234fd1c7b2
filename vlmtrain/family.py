"""What a model family is, and how families are found: by the file names in ``vlmtrain/families``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
        vision_types: values of the vision tower's ``model_type``, where families share a model type; the one that
            names none serves all others.
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
        count_tokens: (processor, sizes) gives how many tokens take the place of each image's placeholder from its
            width and height; None where the processor itself can tell.
        expand: (processor, text, images) gives (start, stop, replacement) for each place of a text that changes before
            it is read, in order; ``images`` is how many the row has. For a processor that does not tell what it
            writes, or writes something else than the template; None is a processor that reads texts as they are.
        see: (processor, images) gives the pixel inputs of a batch from each row's pictures; None is what the image
            processor makes of them. Only with ``expand``.
        complete: (processor, batch, said) gives what else belongs to the tokens of a batch, from its ``input_ids``
            ``[B, T]``, its pixel inputs and the place of each row's first token of the assistant, T for none.
        both_ways: tokens whose ``token_type_ids`` are 0 see what comes after them, so none of them can be learned.
        features: (model, inputs, copies) gives what the model's forward takes instead of the pixel inputs, for that
            many copies of their rows; None is ``get_image_features`` and ``mm_encoder_outputs``.
        feature_inputs: keys of a batch that ``get_image_features`` takes besides ``pixel_values``.
        pixel_inputs: keys of a batch that belong to the pixels besides these, and are of no use without them.
        casts_pixels: the tower brings ``pixel_values`` to the precision of its weights before it looks at them.
        repeat: (inputs, copies) gives the pixel inputs of a batch for that many copies of its rows; None repeats
            each along its first axis.
        folds: a token sees what stands before it in its row and nothing else, so that rows can share their beginning
            (``vlmtrain.sharing``); where not, ``folds_not`` says why in a few words.
        positions: (model, rows) gives the position of each token, ``[R, T]`` or ``[3, R, T]``; None numbers them.
        refuse: (config) says in a few words what stands in the way of a model of these types; None where nothing does.
        prepare_processor: mends what a processor gets wrong, after it was loaded.
        prepare_model: (model, processor) brings a model in line with its processor, and mends what it gets wrong.
        auto_class: the transformers class that loads the model.
        task: ``text``: it answers in words; ``classify``: it tells which of its classes a picture is.
        head: the module that tells classes apart; trained in full and saved, whatever else is trained.
        renames: regular expressions and replacements that take module names of older versions of transformers, whole
            or their ends, to today's, where recipes still have them or transformers' own tables do not.
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
    count_tokens: Callable[[Any, Sequence[tuple[int, int]]], list[int]] | None = None
    expand: Callable[[Any, str, int], list[tuple[int, int, str]]] | None = None
    see: Callable[[Any, Sequence[Sequence[Any]]], dict[str, Any]] | None = None
    complete: Callable[[Any, Mapping[str, Any], Any], dict[str, Any]] | None = None
    both_ways: bool = False
    features: Callable[[Any, Mapping[str, Any], int], dict[str, Any]] | None = None
    feature_inputs: tuple[str, ...] = ()
    pixel_inputs: tuple[str, ...] = ()
    casts_pixels: bool = False
    repeat: Callable[[Mapping[str, Any], int], dict[str, Any]] | None = None
    folds: bool = False
    folds_not: str = "an image classifier"
    positions: Callable[[Any, Mapping[str, Any]], Any] | None = None
    refuse: Callable[[Any], str | None] | None = None
    prepare_processor: Callable[[Any], None] | None = None
    prepare_model: Callable[[Any, Any], None] | None = None
    vision_types: tuple[str, ...] = ()
    auto_class: str = "AutoModelForImageTextToText"
    task: Literal["text", "classify"] = "text"
    head: str = ""
    renames: tuple[tuple[str, str], ...] = ()

    def target_regex(self, parts: tuple[str, ...], kinds: tuple[str, ...]) -> str:
        """One regular expression over module names for peft's ``target_modules``.

        Raises:
            ConfigError: an unknown part or kind, or a part that has no layer of a chosen kind.
        """
        patterns: list[str] = []
        for part in parts:
            if part not in self.targets:
                whole = "; one without linear layers is trained whole by modules_to_save" if part == "projector" else ""
                raise ConfigError(f"no part named {part!r} in this model; valid: {choices(self.targets)}{whole}")
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
        ConfigError: no family serves this architecture, or not this variant of it.
    """
    kind = getattr(config, "model_type", None)
    eyes = getattr(getattr(config, "vision_config", None), "model_type", None)
    served = _by_type()
    if name := served.get((kind, eyes)) or served.get((kind, None)):
        family = load(name)
        if family.refuse is not None and (fault := family.refuse(config)):
            raise ConfigError(f"{model} {fault}")
        return family
    sees = any(getattr(config, key, None) is not None for key in ("vision_config", "vision_tower"))
    what = "is a vision-language model of an unknown family" if sees else "is not a vision-language model"
    raise ConfigError(f"{model} {what}: its model_type is {kind!r}; families: {choices(names())}")


@functools.cache
def _by_type() -> dict[tuple[str | None, str | None], str]:
    families = [load(name) for name in names()]
    return {(kind, eyes): f.name for f in families for kind in f.model_types for eyes in f.vision_types or (None,)}
