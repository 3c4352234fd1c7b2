"""What was trained, written into a folder; and the libraries kept quiet meanwhile."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["quiet", "save"]


def save(model: Any, processor: Any, out: Path, base: str, *, checkpoint: bool = False, state: Any = None) -> None:
    """Write an adapter, or a full model, with its processor and generation config into a folder.

    Args:
        model: a ``PeftModel`` (its ``default`` adapter is written) or a transformers model.
        processor: written beside it, chat template included.
        out: the folder; made if it is not there.
        base: the base model's recorded name.
        checkpoint: write what a half-way run needs to go on with, not what others load.
        state: the weights, where several processes hold them in parts; None takes the model's own.
    """
    from peft import PeftModel

    from vlmtrain.adalora import all_ranks

    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        if isinstance(model, PeftModel):
            model.peft_config["default"].base_model_name_or_path = base
            with all_ranks(model) if checkpoint else contextlib.nullcontext():
                model.save_pretrained(
                    str(out), selected_adapters=["default"], save_embedding_layers=False, state_dict=state
                )
            # peft's own card names the folder the base was loaded from.
            (out / "README.md").unlink(missing_ok=True)
            base_model = model.get_base_model()
            # A classifier's classes are named in its config.
            settings = base_model.generation_config if base_model.can_generate() else base_model.config
            settings.save_pretrained(str(out))
        else:
            # The trainer reads a checkpoint by the names of the modules, which older formats do not have.
            model.save_pretrained(str(out), save_original_format=not checkpoint, state_dict=state)
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
