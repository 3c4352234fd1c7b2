"""Counters that machine and load cannot change."""

from __future__ import annotations

from typing import Any

__all__ = ["count"]

_TOWERS = ("vision_tower", "visual", "vision_model")
_LANGUAGE = ("language_model", "text_model")


def count(model: Any) -> dict[str, int]:
    """Count, from now on, what goes through the parts of a vision-language model.

    Returns:
        ``tower_images``: images through the tower (tiles, of models that cut images; patches, of Qwen's);
        ``lm_tokens``: tokens through the language model, padding too. They grow as the model runs.
    """
    counts = {"tower_images": 0, "lm_tokens": 0}

    def tower(module: Any, args: Any, kwargs: Any) -> None:
        seen = args[0] if args else kwargs.get("pixel_values", kwargs.get("hidden_states"))
        counts["tower_images"] += seen.shape[0]

    def language(module: Any, args: Any, kwargs: Any) -> None:
        counts["lm_tokens"] += kwargs["inputs_embeds"].shape[:2].numel()

    inside: list[str] = []
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        # CLIP's tower has a vision_model of its own in older releases.
        if kind in (*_TOWERS, *_LANGUAGE) and not any(name.startswith(f"{outer}.") for outer in inside):
            inside.append(name)
            module.register_forward_pre_hook(tower if kind in _TOWERS else language, with_kwargs=True)
    return counts
