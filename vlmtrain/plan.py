"""``vlmtrain plan``: what a run takes before anything is loaded or downloaded.

The model is built from its configuration on the meta device, where tensors have shapes and no memory, and one training
step is rehearsed there (``vlmtrain.planning.rehearse``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError
from vlmtrain import config as configs
from vlmtrain.config import Config

if TYPE_CHECKING:
    from vlmtrain.planning.advice import Card, Knob
    from vlmtrain.planning.batches import Load
    from vlmtrain.planning.rehearse import Memory
    from vlmtrain.planning.shapes import Shape
    from vlmtrain.planning.visual import Visual

__all__ = ["Plan", "plan"]


@dataclass(slots=True)
class Plan:
    """What was found.

    Attributes:
        config: of the run.
        model: its name.
        memory: bytes by item.
        load: the largest row.
        device: ``cuda`` or ``cpu``.
        rule_of_thumb: only counts times bytes; no activations, logits and images.
        cards: what fits where; empty when it was not asked for.
        knobs: what each would change.
        visual: tokens of the dataset, where one was given.
    """

    config: Config
    model: str
    memory: Memory
    load: Load
    device: str
    rule_of_thumb: bool = False
    cards: list[Card] = field(default_factory=list)
    knobs: list[Knob] = field(default_factory=list)
    visual: Visual | None = None

    def to_json(self) -> dict[str, Any]:
        """All figures, bytes as whole numbers."""
        found: dict[str, Any] = {
            "method": self.config.method,
            "model": self.model,
            "device": self.device,
            "config": self.config.to_json(),
            "parameters": self.memory.base,
            "trained_parameters": self.memory.trained,
            "row": {"length": self.load.length, "answer": self.load.answer, "images": self.load.images},
            "batch": self.memory.batch,
            "rule_of_thumb": self.rule_of_thumb,
            "bytes": {**self.memory.items, "peak": self.memory.peak},
            "most": self.memory.most,
            "when": self.memory.phase,
            "cards": [dataclasses.asdict(card) for card in self.cards],
            "knobs": [{"change": knob.text, "keys": knob.keys, "peak": knob.peak} for knob in self.knobs],
        }
        found["row"]["image_size"] = list(self.load.size)
        if self.visual is not None:
            found["data"] = self.visual.to_json()
        return found


def plan(
    method: str | None = None,
    *,
    params: str | None = None,
    data: Sequence[str | Path] = (),
    recipe: str | None = None,
    sets: Iterable[str] = (),
    reference: str | None = None,
    device: str = "cuda",
    length: int | None = None,
    answer: int | None = None,
    images: int | None = None,
    image_size: tuple[int, int] | None = None,
    rule_of_thumb: bool = False,
    advice: bool = True,
    step: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Plan:
    """Estimate a run's memory, and count the tokens of its data.

    Args:
        method: ``sft``, ``dpo``, ``kto`` or ``classify``; None is the recipe's, else sft.
        params: a number of parameters like ``8e9``, instead of a model or in place of its own count.
        data: converted datasets; the largest batch of them is rehearsed.
        recipe: packaged recipe or YAML file to start from.
        sets: ``key=value`` strings, as on the command line.
        reference: as the key of that name, or ``copy``: a second model is kept as the reference.
        device: ``cuda`` or ``cpu``.
        length: tokens of the largest row, images too. This and the next three are known where data are given.
        answer: how many of these tokens are learned.
        images: how many the row has.
        image_size: their width and height.
        rule_of_thumb: parameters times bytes alone, all in the type of the base.
        advice: also what fits on common cards, and what each knob changes.
        step: told what is being rehearsed.
        options: configuration keys (``vlmtrain.config``): model, dtype, quantize, lora_r, batch_size ...

    Raises:
        VlmError: no such model, or settings that cannot be.
    """
    config, kept = _resolve(method, options, recipe, sets, reference)
    shape = _shape(config, params)
    from vlmtrain.planning.rehearse import rehearse
    from vlmtrain.planning.shapes import parse_count
    from vlmtrain.planning.thumb import thumb

    if params is not None:
        shape.stated = parse_count(params)
    load, visual = _load(config, shape, data, length, answer, images, image_size)
    if rule_of_thumb:
        return Plan(config, shape.name, thumb(config, shape, copy=kept), load, device, True, visual=visual)
    step("the step")
    memory = rehearse(config, shape, load, device=device, copy=kept)
    found = Plan(config, shape.name, memory, load, device, visual=visual)
    if advice and device == "cuda":
        from vlmtrain.planning.advice import advise

        found.cards, found.knobs = advise(config, shape, load, memory, copy_base=kept, step=step)
    return found


def _resolve(
    method: str | None, options: dict[str, Any], recipe: str | None, sets: Iterable[str], reference: str | None
) -> tuple[Config, bool]:
    """The configuration, and whether a copy of the base is to be kept."""
    from vlmtrain.combinations import checked
    from vlmtrain.keys import METHODS
    from vlmtrain.recipe import load_recipe

    if method is None:
        method = load_recipe(recipe).method if recipe else "sft"
    if method not in METHODS:
        raise ConfigError(f"no method {method!r}; valid: {', '.join(METHODS)}")
    kept = reference == "copy"
    if reference is not None and method not in ("dpo", "kto"):
        raise ConfigError(f"--reference is for dpo and kto, not for {method}")
    given = {**options, **({} if kept or reference is None else {"reference": reference})}
    return checked(configs.resolve(method, given, recipe=recipe, sets=sets)), kept


def _shape(config: Config, params: str | None) -> Shape:
    from vlmtrain.adapters import adapter_folder, read_run
    from vlmtrain.planning.shapes import find_shape, packaged_names, parse_count, shape_of_size

    base = config.base
    name = base.model or (read_run(base.adapter).get("base") if base.adapter else None)
    if name is None:
        if params is None:
            valid = ", ".join(packaged_names())
            raise ConfigError(f"no model given: expected --model, --params or --recipe; packaged: {valid}")
        return shape_of_size(parse_count(params))
    own = adapter_folder(base.adapter) if base.adapter else None
    return find_shape(name, adapter=own, trust_remote_code=base.trust_remote_code)


def _load(
    config: Config,
    shape: Shape,
    data: Sequence[str | Path],
    length: int | None,
    answer: int | None,
    images: int | None,
    image_size: tuple[int, int] | None,
) -> tuple[Load, Visual | None]:
    """The largest row: of the data, else as it is given, else an image of 640x480 and 512 tokens of text."""
    from vlmtrain.classifiers import check_task
    from vlmtrain.image_settings import change_images
    from vlmtrain.model import set_budget
    from vlmtrain.planning.batches import Load, tokens_of

    check_task(shape.family, "classify" if config.method == "classify" else "text", shape.name)
    if config.method == "classify":
        if data:
            raise ConfigError("--data counts the tokens of rows, and classified images have none: leave it out")
        return Load(length=0, answer=0, images=1, size=image_size or (640, 480)), None
    if config.base.image_processor:
        change_images(shape.processor, config.base.image_processor)
    if config.base.max_image_tokens is not None:
        set_budget(shape.processor, shape.family, config.base.max_image_tokens)
    if data:
        from vlmtrain.planning.visual import count_rows

        given = [n for n, v in (("length", length), ("images", images), ("image-size", image_size)) if v is not None]
        if given:
            raise ConfigError(f"--{given[0]} and --data exclude each other: the data have it")
        visual = count_rows(config, shape, data)
        load = visual.load if visual.longest is None else dataclasses.replace(visual.load, rows=visual.longest)
        return load if answer is None else dataclasses.replace(load, answer=answer), visual
    number, size = 1 if images is None else images, image_size or (640, 480)
    text = 512
    whole = length if length is not None else text + (number * tokens_of(shape, size) if number else 0)
    return Load(length=whole, answer=128 if answer is None else answer, images=number, size=size), None
