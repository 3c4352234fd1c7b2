"""An adapter and its base as one plain model folder that loads without peft."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, OutputExistsError
from vlmtrain.adapters import adapter_folder, read_run
from vlmtrain.card import merged_card
from vlmtrain.model import DTYPES, Loaded, load, quiet

__all__ = ["fold", "merge"]

_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)
# What of a run folder also tells how the merged model came to be.
_KEPT = ("vlmtrain.json", "metrics.json")


def merge(
    run: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    shard_size: str = "5GB",
    device: str = "cpu",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    hub_private: bool = False,
) -> Path:
    """Add an adapter's weights to its base and write the result.

    The folder holds weights (in shards with an index when they are large), processor, chat template, generation
    config and a model card. The base is loaded in 16 or 32 bits, also when the adapter was trained on a quantized
    one: what was rounded to 4 bits must not be what is shipped. Sums are rounded once: they are made in the base's own
    type, and cast after.

    Args:
        run: a run folder, or any PEFT adapter folder.
        out: the folder to write.
        model: the base; None takes the one the adapter names.
        dtype: of the merged weights; ``auto`` keeps the base's.
        shard_size: most bytes of one file of weights, like ``5GB``.
        device: where to add; the CPU needs no GPU memory.
        trust_remote_code: run code that comes with a hub model.
        overwrite: replace a merged model that is there.
        push_to_hub: ``ORG/NAME`` to upload the folder to.
        hub_private: a repository that is made is private.

    Returns:
        ``out``.

    Raises:
        OutputExistsError: ``out`` is not empty.
        ConfigError: the base is quantized itself, or weights do not fit the type.
        VlmError: the adapter or its base cannot be loaded, or do not belong together.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    if not _SIZE.fullmatch(shard_size):
        raise ConfigError(f"--shard-size is {shard_size!r}, expected a number and a unit, like 5GB or 500MB")
    read_run(run)
    _check_out(out, model, overwrite)
    if push_to_hub:
        from vlmtrain.hub import check_access

        check_access(push_to_hub)
    loaded = load(model, run, device=device, trust_remote_code=trust_remote_code)
    folder = adapter_folder(run)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        merged = fold(loaded)
        with quiet():
            merged.config._name_or_path = ""
            _cast(merged, dtype)
            merged.save_pretrained(str(partial), max_shard_size=shard_size)
            loaded.processor.save_pretrained(str(partial))
        about = _about(folder, loaded, str(merged.dtype).removeprefix("torch."))
        (partial / "README.md").write_text(merged_card(*about), encoding="utf-8")
        # Written beside and moved: a folder that is there is a whole model.
        old = out.with_name(out.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if out.is_dir():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if push_to_hub:
        from vlmtrain.hub import push

        push(out, push_to_hub, private=hub_private)
    return out


def fold(loaded: Loaded) -> Any:
    """A model with its adapter's weights added to its own; the adapter is gone, the ``PeftModel`` is used up.

    Raises:
        ConfigError: the base is quantized, or the sum is not finite.
    """
    if getattr(loaded.model.config, "quantization_config", None):
        raise ConfigError(f"{loaded.base} is quantized itself: give the unquantized model as --model")
    with quiet():
        _part(loaded.model.get_base_model())
        try:
            merged = loaded.model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ConfigError(f"the adapter cannot be merged: {' '.join(str(error).split())}") from error
        _untie(merged)
    return merged


def _check_out(out: Path, model: str | None, overwrite: bool) -> None:
    if model and out.resolve() == Path(model).resolve():
        raise OutputExistsError(f"--out {out} is the base itself: choose another folder")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if out.is_file() or not (out / "config.json").is_file():
            raise OutputExistsError(f"{out} is not empty and not a model folder: choose another --out")
        if not overwrite:
            raise OutputExistsError(f"{out} holds a model: --overwrite replaces it")


def _cast(model: Any, dtype: str) -> None:
    import torch

    if dtype == "auto":
        return
    kind = getattr(torch, dtype)
    for name, parameter in model.named_parameters():
        cast = parameter.data.to(kind)
        if not torch.isfinite(cast).all() and torch.isfinite(parameter.data).all():
            largest = float(parameter.data.abs().max())
            raise ConfigError(f"{name} holds {largest:.3g}, more than {dtype} can: use --dtype bfloat16 or float32")
        parameter.data = cast


def _about(folder: Path, loaded: Any, dtype: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What is known of the run, of its figures, and the type of the merged weights."""
    found = []
    for name in _KEPT:
        file = folder / name
        found.append(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
    return {"base": loaded.base, "family": loaded.family.name, **found[0]}, found[1], dtype


def _part(model: Any) -> None:
    """Give a tied head weights of its own where it or the embedding has an adapter.

    Each has what was learned added to it; weights they share would get it for the other one, too.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not any(isinstance(layer, BaseTunerLayer) for layer in (head, words)):
        return
    head, words = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in (head, words))
    if head.weight is words.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _untie(model: Any) -> None:
    """A head that was trained in full is not the embedding any more; a tied config would drop it when saved."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not words.weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
