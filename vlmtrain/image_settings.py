"""Settings of a model's image processor, changed by name: the size it brings pictures to, whether it cuts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError, choices

if TYPE_CHECKING:
    from vlmtrain.family import Family

__all__ = ["change_images", "try_images"]

# What a processor notes of itself, and what belongs to a single call.
_NOT_SETTINGS = {"_processor_class", "data_format", "image_processor_type", "input_data_format", "processor_class"}

_QUESTION = {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]}


def change_images(processor: Any, settings: Mapping[str, Any]) -> None:
    """Give a processor's image processor other settings; they are saved with it.

    Args:
        processor: of a model, or an image processor alone.
        settings: name to value, such as ``{do_image_splitting: false, size: {longest_edge: 490, shortest_edge: 189}}``.

    Raises:
        ConfigError: a setting it does not have, or one it cannot work with.
    """
    from PIL import Image

    alone = not hasattr(processor, "image_processor")
    images = processor if alone else processor.image_processor
    has = {key: value for key, value in images.to_dict().items() if key not in _NOT_SETTINGS}
    unknown = sorted(set(settings) - has.keys())
    if unknown:
        name = type(images).__name__
        raise ConfigError(f"image_processor has no setting {', '.join(unknown)}; {name} has: {choices(has)}")
    for key, value in settings.items():
        _check(key, has[key], value)
    before = dict(vars(images))
    try:
        # Made anew: that is where sizes are read and checked.
        vars(images).update(vars(type(images).from_dict({**images.to_dict(), **settings})))
        images(Image.new("RGB", (64, 48)), return_tensors="np")
    except Exception as error:
        vars(images).update(before)
        first = " ".join(str(error).split()).split(". ")[0]
        raise ConfigError(f"image_processor cannot work with {dict(settings)}: {first}") from error


def try_images(net: Any, processor: Any, family: Family, settings: Mapping[str, Any]) -> None:
    """Show the model one picture under these settings: many towers take one size alone, which no processor knows.

    The picture is square, so that settings that work for some pictures pass; without ``do_resize`` only pictures that
    have the model's size do, and nothing is tried.

    Args:
        net: the model.
        processor: of the model, with the settings.
        family: of the model.
        settings: those that are not its own; without any nothing is tried.

    Raises:
        ConfigError: the model cannot work with it.
    """
    import torch
    from PIL import Image

    from vlmtrain.collate import prompt_batch
    from vlmtrain.trl_seam import image_tokens

    if not settings or settings.get("do_resize") is False:
        return
    picture = Image.new("RGB", (64, 64))
    try:
        batch: Mapping[str, Any]
        if family.task == "classify":
            batch = {"pixel_values": processor(images=[picture], return_tensors="pt")["pixel_values"]}
        else:
            # Row lengths are counted by other code than the one that makes the pixels.
            image_tokens(processor, [picture.size], family)
            batch = prompt_batch(processor, family, [[_QUESTION]], [[picture]])
        with torch.no_grad():
            net(**{k: v.to(net.device, net.dtype if v.is_floating_point() else None) for k, v in batch.items()})
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        first = " ".join(str(error).split()).split(". ")[0]
        raise ConfigError(f"image_processor: the model cannot work with {dict(settings)}: {first}") from error


def _check(key: str, old: Any, new: Any) -> None:
    """A value of the kind that was there; where that is no plain value the processor itself has to tell."""
    for kind, words in ((bool, "true or false"), ((int, float), "a number"), (str, "a text")):
        if isinstance(old, kind):
            if not isinstance(new, kind) or (isinstance(new, bool) and not isinstance(old, bool)):
                raise ConfigError(f"image_processor: {key} is {new!r}, expected {words} like {old!r}")
            return
