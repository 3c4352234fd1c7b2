"""Models by name: load a base with or without an adapter, check that they belong together, save what was trained."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DependencyError, MissingError
from vlmtrain import family as families
from vlmtrain.adapters import adapter_folder, apply_adapter, check_base, read_run
from vlmtrain.family import Family

__all__ = [
    "DTYPES",
    "Loaded",
    "QUANTIZE",
    "TINY",
    "fingerprint",
    "load",
    "locate",
    "quiet",
    "read_run",
    "recorded_name",
    "save",
    "set_budget",
]

TINY = "vlmtrain:tiny"
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZE = ("none", "8bit", "4bit")


@dataclass(slots=True)
class Loaded:
    """A model ready to use.

    Attributes:
        model: a transformers model, or a ``PeftModel`` when there is an adapter.
        processor: with a chat template, and the image budget set.
        family: the model's family.
        base: the base model's name as it is recorded: a hub id, ``vlmtrain:tiny`` or a folder's own name, never a path.
        base_hash: fingerprint of the base's weights, see :func:`fingerprint`.
    """

    model: Any
    processor: Any
    family: Family
    base: str
    base_hash: str


def load(
    model: str | None,
    adapter: str | Path | None = None,
    *,
    dtype: str = "auto",
    quantize: str = "none",
    device: str | None = None,
    max_image_tokens: int | None = None,
    trust_remote_code: bool = False,
    trainable: bool = False,
) -> Loaded:
    """Load a base model and, on top of it, an adapter.

    Args:
        model: ``vlmtrain:tiny``, a folder or a hub id; None takes the base the adapter was trained on.
        adapter: a run folder, or any PEFT adapter folder.
        dtype: ``auto`` keeps the type of the checkpoint.
        quantize: ``8bit`` or ``4bit`` load the base through bitsandbytes.
        device: None is the accelerator where there is one, else the CPU.
        max_image_tokens: most tokens one image may take.
        trust_remote_code: run code that comes with a hub model.
        trainable: the adapter is to be trained further.

    Raises:
        ConfigError: not a vision-language model, an unknown family, a processor without images, an adapter that
            belongs to another base, or a device that cannot do what was asked.
        MissingError: no such model or adapter.
        DependencyError: quantization without bitsandbytes.
    """
    import torch
    from transformers import AutoConfig

    name = _base_name(model, adapter)
    source = locate(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        _fit_threads()
    _check_numbers(dtype, quantize, device)
    with quiet():
        with _named(name):
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        family = families.for_model(config, name)
        folder = adapter_folder(adapter) if adapter else None
        own = folder is not None and (folder / "processor_config.json").is_file()
        processor = _load_processor(str(folder) if own else source, family, name, trust_remote_code)
        if max_image_tokens is not None:
            set_budget(processor, family, max_image_tokens)
        base_hash = fingerprint(source)
        if folder is not None:
            check_base(folder, name, recorded_name(name), base_hash)
        net = _load_base(source, name, family, dtype, quantize, device, trust_remote_code)
        _align_tokens(net, processor)
        if device.startswith("cuda") and net.dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
            raise ConfigError(f"the weights of {name} are bfloat16, which this GPU has not: --dtype float16 or float32")
        if folder is not None:
            net = apply_adapter(net, folder, name, trainable)
    if not trainable:
        net.eval()
    return Loaded(net, processor, family, recorded_name(name), base_hash)


def locate(name: str) -> str:
    """What transformers is to load for a model's name: a folder or a hub id.

    Raises:
        MissingError: the name means a folder, and there is none.
        ConfigError: the folder is an adapter, not a model.
    """
    if name == TINY:
        folder = resources.files("vlmtrain") / "tiny" / "model"
        if not (folder / "config.json").is_file():
            raise MissingError(f"{TINY} is not in this installation: vlmtrain/tiny/model is missing")
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            if (path / "adapter_config.json").is_file():
                raise ConfigError(f"{name} is an adapter, not a model: give it as --adapter")
            raise MissingError(f"{name} is not a model folder: it has no config.json")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.is_file():
        raise MissingError(f"no model {name!r}: expected {TINY}, a model folder or a hub id like ORG/NAME")
    return name


def recorded_name(name: str) -> str:
    """A model's name as it may be written into a run folder: a local folder loses its path."""
    return Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name


def set_budget(processor: Any, family: Family, max_image_tokens: int) -> None:
    """Make the processor shrink images to at most that many tokens each.

    Raises:
        ConfigError: fewer than one, or fewer than this family's images always take.
    """
    if max_image_tokens < 1:
        raise ConfigError(f"--max-image-tokens is at least 1, got {max_image_tokens}")
    from vlmtrain.trl_seam import image_tokens

    def count(width: int, height: int) -> int:
        return image_tokens(processor, [(width, height)])[0]

    if family.set_budget is not None:
        family.set_budget(processor, max_image_tokens, count)
        return
    fixed = count(64, 64)
    if fixed > max_image_tokens:
        raise ConfigError(f"an image always takes {fixed} tokens here; --max-image-tokens {max_image_tokens} is less")


def fingerprint(source: str) -> str:
    """A hash that tells two bases apart without reading all of their weights.

    Over every safetensors (or torch) file: its header (names, shapes, types), its size and three samples of 64 KiB.

    Args:
        source: a model folder, or the id of a hub model that has been loaded before.
    """
    folder = Path(source)
    if not folder.is_dir():
        from transformers.utils import cached_file

        folder = Path(str(cached_file(source, "config.json"))).parent
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    for path in files or [folder / "config.json"]:
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        with path.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little") if path.suffix == ".safetensors" else 0
            for start in (0, 8 + header, (size + header) // 2, size - (64 << 10)):
                stream.seek(max(0, start))
                digest.update(stream.read(64 << 10))
    return digest.hexdigest()


def save(model: Any, processor: Any, out: Path, base: str) -> None:
    """Write an adapter, or a full model, with its processor and generation config into a folder.

    Args:
        model: a ``PeftModel`` (its ``default`` adapter is written) or a transformers model.
        processor: written beside it, chat template included.
        out: the folder; made if it is not there.
        base: the base model's recorded name.
    """
    from peft import PeftModel

    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        if isinstance(model, PeftModel):
            model.peft_config["default"].base_model_name_or_path = base
            model.save_pretrained(str(out), selected_adapters=["default"], save_embedding_layers=False)
            # peft's own card names the folder the base was loaded from.
            (out / "README.md").unlink(missing_ok=True)
            model.get_base_model().generation_config.save_pretrained(str(out))
        else:
            model.save_pretrained(str(out))
        processor.save_pretrained(str(out))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and notes of the libraries; warnings of ours and errors pass."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        for module in ("transformers", "peft", "trl", "torch", "accelerate", "bitsandbytes", "huggingface_hub"):
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def _base_name(model: str | None, adapter: str | Path | None) -> str:
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


def _fit_threads() -> None:
    """No more threads than a container may use: torch counts the machine's cores, and waiting ones slow the others."""
    import torch

    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        allowed = max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return
    if "OMP_NUM_THREADS" not in os.environ and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)


def _check_numbers(dtype: str, quantize: str, device: str) -> None:
    import torch

    if dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    if quantize not in QUANTIZE:
        raise ConfigError(f"no quantization {quantize!r}; valid: {', '.join(QUANTIZE)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, and there is none")
    if dtype == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(f"{torch.cuda.get_device_name(0)} has no bfloat16: use --dtype float16 or float32")
    if quantize != "none":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise DependencyError("bitsandbytes", "quant", f"--quantize {quantize}") from None


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn the libraries' long answers about a model that cannot be had into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split()).split(". ")[0]
        raise MissingError(f"model {name!r} cannot be loaded: {first}") from error


def _load_processor(source: str, family: Family, name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoProcessor

    with _named(name):
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ConfigError(f"the processor of {name} is a {type(processor).__name__}: it does not take images with text")
    if not processor.chat_template:
        processor.chat_template = processor.tokenizer.chat_template or family.chat_template
    if not processor.tokenizer.is_fast:
        raise ConfigError(f"the tokenizer of {name} has no fast version, which is needed to find the answers' tokens")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _load_base(
    source: str, name: str, family: Family, dtype: str, quantize: str, device: str, trust_remote_code: bool
) -> Any:
    import torch
    import transformers

    kwargs: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if quantize != "none":
        half = torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported(False) else torch.float16
        compute = torch.float32 if device == "cpu" else half
        kwargs["quantization_config"] = (
            transformers.BitsAndBytesConfig(load_in_8bit=True)
            if quantize == "8bit"
            else transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
            )
        )
        kwargs["device_map"] = {"": device}
    with _named(name):
        model, info = getattr(transformers, family.auto_class).from_pretrained(
            source, trust_remote_code=trust_remote_code, output_loading_info=True, **kwargs
        )
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers fills them with random numbers and a warning.
        raise MissingError(f"the weights of {name} lack {len(missing)} tensors, the first is {missing[0]}")
    model.config._name_or_path = recorded_name(name)
    return model if quantize != "none" else model.to(device)


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
