"""An adapter and its base as one plain model folder that loads without peft."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, OutputExistsError
from vlmtrain.adapters import read_run
from vlmtrain.model import DTYPES, load, quiet

__all__ = ["merge"]


def merge(
    run: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> Path:
    """Add an adapter's weights to its base and write the result.

    The folder holds weights (in shards with an index when they are large), processor, chat template and generation
    config. The base is loaded in 16 or 32 bits, also when the adapter was trained on a quantized one: what was
    rounded to 4 bits must not be what is shipped.

    Args:
        run: a run folder, or any PEFT adapter folder.
        out: the folder to write.
        model: the base; None takes the one the adapter names.
        dtype: of the merged weights; ``auto`` keeps the base's.
        device: where to add; the CPU needs no GPU memory.
        trust_remote_code: run code that comes with a hub model.
        overwrite: replace a merged model that is there.

    Returns:
        ``out``.

    Raises:
        OutputExistsError: ``out`` is not empty.
        VlmError: the adapter or its base cannot be loaded, or do not belong together.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    read_run(run)
    out = Path(out)
    if model and out.resolve() == Path(model).resolve():
        raise OutputExistsError(f"--out {out} is the base itself: choose another folder")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if out.is_file() or not (out / "config.json").is_file():
            raise OutputExistsError(f"{out} is not empty and not a model folder: choose another --out")
        if not overwrite:
            raise OutputExistsError(f"{out} holds a model: --overwrite replaces it")
    loaded = load(model, run, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    with quiet():
        merged = loaded.model.merge_and_unload(safe_merge=True)
        merged.config._name_or_path = ""
        _untie(merged)
        # Written beside and moved: a folder that is there is a whole model.
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        merged.save_pretrained(str(partial))
        loaded.processor.save_pretrained(str(partial))
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def _untie(model: Any) -> None:
    """A head that was trained in full is not the embedding any more; a tied config would drop it when saved."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not words.weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
