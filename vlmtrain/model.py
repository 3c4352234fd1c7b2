"""Models by name: load a base with or without an adapter, check that they belong together, save what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain import classifiers
from vlmtrain import family as families
from vlmtrain.adapters import adapter_folder, apply_adapter, check_base, read_run
from vlmtrain.bases import (
    DTYPES,
    TINY,
    Base,
    check_numbers,
    fingerprint,
    fit_threads,
    load_base,
    locate,
    named,
    recorded_name,
    spread,
)
from vlmtrain.family import Family
from vlmtrain.image_settings import change_images, try_images
from vlmtrain.quantization import QUANTIZE
from vlmtrain.saving import quiet, save

__all__ = [
    "DTYPES",
    "Loaded",
    "QUANTIZE",
    "TINY",
    "base_name",
    "fingerprint",
    "load",
    "load_processor",
    "locate",
    "quiet",
    "read_processor",
    "read_run",
    "recorded_name",
    "save",
    "set_budget",
]


@dataclass(slots=True)
class Loaded:
    """A model ready to use.

    Attributes:
        model: a transformers model, or a ``PeftModel`` when there is an adapter.
        processor: with a chat template, and the image budget set.
        family: the model's family.
        base: the base model's name as it is recorded: a hub id, ``vlmtrain:tiny`` or a folder's own name, never a path.
        base_hash: fingerprint of the base's weights, see :func:`fingerprint`.
        new_head: a classifier's head has no trained weights yet.
    """

    model: Any
    processor: Any
    family: Family
    base: str
    base_hash: str
    new_head: bool = False


def load(
    model: str | None,
    adapter: str | Path | None = None,
    *,
    dtype: str = "auto",
    quantize: str = "none",
    quantize_parts: Sequence[str] | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_image_tokens: int | None = None,
    image_processor: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    trainable: bool = False,
    task: str | None = None,
    labels: Sequence[str] | None = None,
) -> Loaded:
    """Load a base model and, on top of it, an adapter.

    Args:
        model: ``vlmtrain:tiny``, a folder or a hub id; None takes the base the adapter was trained on.
        adapter: a run folder, or any PEFT adapter folder.
        dtype: ``auto`` keeps the type of the checkpoint.
        quantize: ``8bit`` or ``4bit`` load the base through bitsandbytes.
        quantize_parts: the parts of the base that this is done to; None is those the adapter was trained with, else
            the language model.
        device: None is the accelerator where there is one, else the CPU.
        device_map: spread the model over several devices: a word of ``vlmtrain.bases.SPREADS`` or module names to
            devices, as accelerate takes them.
        max_image_tokens: most tokens one image may take.
        image_processor: settings of the image processor that are to be others than those it comes with.
        trust_remote_code: run code that comes with a hub model.
        trainable: the adapter is to be trained further.
        task: refuse families of another task; see ``Family.task``.
        labels: names of the classes an image classifier is to tell apart; None takes its own.

    Raises:
        ConfigError: not a vision-language model or image classifier, an unknown family, a processor without images,
            an adapter that belongs to another base, or a device that cannot do what was asked.
        MissingError: no such model or adapter.
        DependencyError: quantization without bitsandbytes.
    """
    import torch
    from transformers import AutoConfig

    name = base_name(model, adapter)
    source = locate(name)
    device_map = spread(device_map, device)
    if quantize_parts is None:
        quantize_parts = _quantized_parts(adapter)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        fit_threads()
    check_numbers(dtype, quantize, quantize_parts, device)
    with quiet():
        with named(name):
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        family = families.for_model(config, name)
        folder = adapter_folder(adapter) if adapter else None
        classifiers.check_task(family, task, name)
        classify = family.task == "classify"
        processor = read_processor(folder, source, family, name, trust_remote_code)
        if image_processor:
            change_images(processor, image_processor)
        if max_image_tokens is not None:
            set_budget(processor, family, max_image_tokens)
        base_hash = fingerprint(source)
        if folder is not None:
            check_base(folder, name, recorded_name(name), base_hash)
        trained, other_head = _fit_head(config, family, folder, labels, name) if classify else (None, False)
        shape = {"config": config, "ignore_mismatched_sizes": True} if other_head else {}
        base = Base(source, name, family, config, trust_remote_code)
        bits: dict[str, Any] = {"quantize": quantize, "quantize_parts": quantize_parts}
        net = load_base(base, dtype, device, **bits, shape=shape, device_map=device_map)
        if other_head:
            net.config.architectures = [type(net).__name__]
        if not classify:
            _align_tokens(net, processor)
        if family.prepare_model is not None:
            family.prepare_model(net, processor)
        _check_weights(net, name, device)
        try_images(net, processor, family, image_processor or {})
        if folder is not None:
            net = apply_adapter(net, folder, name, family, trainable)
    if not trainable:
        net.eval()
    return Loaded(net, processor, family, recorded_name(name), base_hash, other_head and trained is None)


def _fit_head(
    config: Any, family: Family, folder: Path | None, labels: Sequence[str] | None, name: str
) -> tuple[tuple[str, ...] | None, bool]:
    """The classes an adapter was trained on, written into the base's config; and whether the head has to be new."""
    trained = classifiers.adapter_classes(folder, family) if folder is not None else None
    classifiers.check_classes(labels, trained, str(folder))
    return trained, classifiers.fit_config(config, family, trained or labels, name)


def set_budget(processor: Any, family: Family, max_image_tokens: int) -> None:
    """Make the processor shrink images to at most that many tokens each.

    Raises:
        ConfigError: fewer than one, or fewer than this family's images always take.
    """
    if max_image_tokens < 1:
        raise ConfigError(f"--max-image-tokens is at least 1, got {max_image_tokens}")
    from vlmtrain.trl_seam import image_tokens

    def count(width: int, height: int) -> int:
        return image_tokens(processor, [(width, height)], family)[0]

    if family.set_budget is not None:
        family.set_budget(processor, max_image_tokens, count)
        return
    fixed = count(64, 64)
    if fixed > max_image_tokens:
        raise ConfigError(f"an image always takes {fixed} tokens here; --max-image-tokens {max_image_tokens} is less")


def _check_weights(net: Any, name: str, device: str) -> None:
    import torch

    if device.startswith("cuda") and net.dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(f"the weights of {name} are bfloat16, which this GPU has not: --dtype float16 or float32")


def _quantized_parts(adapter: str | Path | None) -> tuple[str, ...]:
    before = read_run(adapter).get("config", {}) if adapter else {}
    return tuple(before.get("quantize_parts", ("language",)))


def read_processor(folder: Path | None, source: str, family: Family, name: str, trust_remote_code: bool) -> Any:
    """The adapter's own processor where it has one, else the base's.

    Args:
        folder: of the adapter.
        source: of the base, see ``locate``.
        family: of the base.
        name: of the base, for messages.
        trust_remote_code: run code that comes with a hub model.

    Raises:
        VlmError: it cannot be had, or takes no images; see :func:`load_processor`.
    """
    classify = family.task == "classify"
    saved = "preprocessor_config.json" if classify else "processor_config.json"
    own = folder is not None and (folder / saved).is_file()
    read = classifiers.load_image_processor if classify else load_processor
    return read(str(folder) if own else source, family, name, trust_remote_code)


def base_name(model: str | None, adapter: str | Path | None) -> str:
    """The base that is to be loaded: the one that is given, or the one the adapter names.

    Raises:
        ConfigError: neither is given, or the adapter was trained on a local folder.
        MissingError: there is no such adapter.
    """
    if model:
        if adapter:
            read_run(adapter)
        return model
    if not adapter:
        raise ConfigError(f"no model given: expected --model {TINY}, a model folder or a hub id, or --adapter")
    base = read_run(adapter).get("base")
    if not base or (base != TINY and base.count("/") != 1):
        raise ConfigError(f"{adapter} was trained on a local folder ({base or 'not recorded'}): give it as --model")
    return str(base)


def load_processor(source: str, family: Family, name: str, trust_remote_code: bool = False) -> Any:
    """The processor of a text model: with chat template and padding token, mended by its family.

    Raises:
        ConfigError: it does not take images with text, or has no fast tokenizer.
        MissingError: there is none.
    """
    from transformers import AutoProcessor

    with named(name):
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ConfigError(f"the processor of {name} is a {type(processor).__name__}: it does not take images with text")
    if not processor.chat_template:
        processor.chat_template = processor.tokenizer.chat_template or family.chat_template
    if not processor.tokenizer.is_fast:
        raise ConfigError(f"the tokenizer of {name} has no fast version, which is needed to find the answers' tokens")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if family.prepare_processor is not None:
        family.prepare_processor(processor)
    return processor


def _align_tokens(model: Any, processor: Any) -> None:
    """Generation stops where training taught the model to stop, and pads with the tokenizer's pad token."""
    from vlmtrain.chat import end_token

    config, tokenizer = model.generation_config, processor.tokenizer
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = [token for token in stops if token is not None]
    end = tokenizer.convert_tokens_to_ids(end_token(processor))
    if end is not None and end not in stops:
        stops.append(end)
    config.eos_token_id = stops[0] if len(stops) == 1 else stops
    config.pad_token_id = tokenizer.pad_token_id
