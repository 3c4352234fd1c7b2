"""What fits on which card, and what each knob would change; figures are rehearsals of their own."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain.auto_batch import least_batch, smaller
from vlmtrain.config import Config
from vlmtrain.planning.batches import Load, tokens_of
from vlmtrain.planning.rehearse import Memory, rehearse, stored_bytes
from vlmtrain.planning.shapes import Shape

__all__ = ["CARDS", "Card", "Knob", "advise", "needed", "usable"]

# What nvidia-smi shows on the smallest common card of each size, MiB: L4, L40S, H100.
CARDS = {24: 23034, 48: 46068, 80: 81559}
# The CUDA context with its libraries, and the allocator's loss to fragments.
CONTEXT = 600 << 20
FRAGMENTS = 1.05
# Keys that change what stays on the device, and nothing of what comes and goes.
_STORED = {"optimizer", "lora_r"}
_NONE_RECOMPUTED = {"gradient_checkpointing": False, "checkpoint_layers": None}


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting turned.

    Attributes:
        keys: configuration keys and their new values.
        text: what to write on the command line.
        peak: bytes after it.
    """

    keys: dict[str, Any]
    text: str
    peak: int


@dataclass(frozen=True, slots=True)
class Card:
    """Whether a run fits.

    Attributes:
        size: of the card, as it is sold.
        fits: as it is set.
        knobs: to turn, in this order, until it fits; empty where it does, or where nothing helps.
        after: bytes with all of them turned.
        faster: what to turn so that fewer layers recompute and it still fits; empty where nothing does.
        faster_peak: bytes after it.
    """

    size: int
    fits: bool
    knobs: tuple[str, ...]
    after: int
    faster: str = ""
    faster_peak: int = 0


def usable(card: int) -> int:
    """Bytes of a card's memory that a process can have beside its CUDA context."""
    return (CARDS[card] << 20) - CONTEXT


def needed(peak: int) -> int:
    """Bytes to keep free for tensors of that peak."""
    return round(peak * FRAGMENTS)


def advise(
    config: Config,
    shape: Shape,
    load: Load,
    memory: Memory,
    *,
    copy_base: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> tuple[list[Card], list[Knob]]:
    """Turn one knob at a time; where none alone makes room on a card, one after the other.

    Args:
        config: of the run.
        shape: of its model.
        load: its largest row.
        memory: as it is set.
        copy_base: whether a copy of the base is kept as the reference.
        step: told what is tried.

    Returns:
        The cards, and each knob alone with the peak after it.
    """

    def measure(setting: Config, keys: dict[str, Any], before: int, stored: int) -> int:
        if keys.keys() <= _STORED:
            # Nothing that moves changes by more than the trained weights' own gradients.
            return before - stored + stored_bytes(setting, shape, copy=copy_base)
        smaller = _with_budget(shape, setting)
        row = _with_room(load, shape, smaller)
        return rehearse(setting, smaller, row, device="cuda", copy=copy_base).peak

    peak = memory.peak
    stored = stored_bytes(config, shape, copy=copy_base)
    alone: list[Knob] = []
    for keys, text in _knobs(config, shape, load):
        step(text)
        with contextlib.suppress(ConfigError):
            alone.append(Knob(keys, text, measure(_turned(config, keys), keys, peak, stored)))
    found: list[Card] = []
    used: list[str] = []
    setting, now = config, peak
    remaining = [knob for knob in alone if knob.peak < peak]
    for size in sorted(CARDS, reverse=True):
        single = next((knob for knob in alone if needed(knob.peak) <= usable(size)), None)
        if needed(peak) <= usable(size) or single is not None:
            fits = needed(peak) <= usable(size)
            after = peak if fits or single is None else single.peak
            found.append(Card(size, fits, () if fits or single is None else (single.text,), after))
            continue
        while needed(now) > usable(size):
            if remaining:
                knob = remaining.pop(0)
                keys, text = knob.keys, knob.text
            elif (half := _halves(setting)) is not None:
                keys, text = half
            else:
                break
            stored = stored_bytes(setting, shape, copy=copy_base)
            setting = _turned(setting, keys)
            step(f"{size} GB: {text}")
            now = measure(setting, keys, now, stored)
            used = _replaced(used, text)
        found.append(Card(size, False, tuple(used) if needed(now) <= usable(size) else (), now))

    def recomputing(layers: int) -> int:
        keys = {"checkpoint_layers": layers} if layers else _NONE_RECOMPUTED
        step(_recomputed(layers))
        return measure(_turned(config, keys), keys, peak, stored)

    found = _faster(found, memory, recomputing) if memory.recomputed else found
    return sorted(found, key=lambda card: card.size), alone


def _faster(cards: list[Card], memory: Memory, recomputing: Callable[[int], int]) -> list[Card]:
    """Cards on which the run fits, with the fewest layers that have to recompute on them.

    Args:
        cards: all of them.
        memory: of the run as it is set.
        recomputing: the peak with so many layers recomputed.
    """
    peaks = {memory.recomputed: memory.peak}

    def fits(layers: int, room: int) -> bool:
        if layers not in peaks:
            peaks[layers] = recomputing(layers)
        return needed(peaks[layers]) <= room

    def fewest(room: int) -> int:
        # Without any, towers that are trained recompute nothing either: what that takes tells nothing of a layer.
        for layers in range(min(2, memory.recomputed)):
            if fits(layers, room):
                return layers
        # Every layer that is kept takes about as much as another.
        each = max(1, (needed(peaks[1]) - needed(memory.peak)) // max(1, memory.recomputed - 1))
        layers = min(memory.recomputed, max(1, 1 + round((needed(peaks[1]) - room) / each)))
        while layers > 1 and fits(layers - 1, room):
            layers -= 1
        while not fits(layers, room):
            layers += 1
        return layers

    found = []
    for card in cards:
        layers = fewest(usable(card.size)) if card.fits else memory.recomputed
        if layers < memory.recomputed:
            card = dataclasses.replace(card, faster=_recomputed(layers), faster_peak=peaks[layers])
        found.append(card)
    return found


def _recomputed(layers: int) -> str:
    return f"--set checkpoint_layers={layers}" if layers else "--set gradient_checkpointing=false"


def _knobs(config: Config, shape: Shape, load: Load) -> Iterator[tuple[dict[str, Any], str]]:
    """What may be turned, that which costs least first."""
    t, lora = config.training, config.lora
    if t.gradient_checkpointing is False:
        yield {"gradient_checkpointing": True}, "--set gradient_checkpointing=true"
    elif t.checkpoint_layers is not None:
        yield {"checkpoint_layers": None}, "--set checkpoint_layers=null"
    if (half := _halves(config)) is not None:
        yield half
    image = tokens_of(shape, load.size) if shape.family.task == "text" and load.images else 0
    if image > 64:
        yield {"max_image_tokens": image // 2}, f"--max-image-tokens {image // 2}"
    if config.classification is not None and config.classification.head_only:
        return
    if lora.tuner == "full":
        yield {"tuner": "lora"}, "--tuner lora"
        return
    if t.optimizer == "adamw":
        yield {"optimizer": "adamw_8bit"}, "--set optimizer=adamw_8bit"
    # Image classifiers are not quantized.
    for bits in ("8bit", "4bit") if shape.family.task == "text" else ():
        if config.base.quantize == "none" or (config.base.quantize, bits) == ("8bit", "4bit"):
            yield {"quantize": bits}, f"--quantize {bits}"
    if lora.lora_r > 8:
        yield {"lora_r": lora.lora_r // 2}, f"--lora-r {lora.lora_r // 2}"


def _halves(config: Config) -> tuple[dict[str, Any], str] | None:
    """The next smaller batch, as ``auto_batch`` would take it; None where there is none."""
    t = config.training
    found = smaller(t.batch_size, t.accumulate, least_batch(config))
    if found is None:
        return None
    return {"batch_size": found[0], "accumulate": found[1]}, f"--batch-size {found[0]} --set accumulate={found[1]}"


def _replaced(used: list[str], text: str) -> list[str]:
    """The knobs turned so far; one that is turned again takes its own place."""
    flag = text.split()[0]
    return [other for other in used if other.split()[0] != flag or flag == "--set"] + [text]


def _turned(config: Config, keys: dict[str, Any]) -> Config:
    """The configuration with other values of some keys."""
    changes: dict[str, Any] = {}
    for name in ("base", "lora", "training"):
        group = getattr(config, name)
        own = {key: value for key, value in keys.items() if key in {item.name for item in dataclasses.fields(group)}}
        if own:
            changes[name] = dataclasses.replace(group, **own)
    return dataclasses.replace(config, **changes)


def _with_budget(shape: Shape, config: Config) -> Shape:
    from vlmtrain.model import set_budget

    if config.base.max_image_tokens is None or shape.family.task == "classify":
        return shape
    lesser = copy.copy(shape)
    lesser.processor = copy.deepcopy(shape.processor)
    set_budget(lesser.processor, shape.family, config.base.max_image_tokens)
    return lesser


def _with_room(load: Load, shape: Shape, smaller: Shape) -> Load:
    """The same text beside smaller images."""
    if smaller is shape or load.rows is not None:
        return load
    saved = load.images * (tokens_of(shape, load.size) - tokens_of(smaller, load.size))
    return dataclasses.replace(load, length=max(2, load.length - saved))
