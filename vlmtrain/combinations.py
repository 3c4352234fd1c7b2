"""Which keys go together: the one place where training and its plan refuse, before data or a model are looked at."""

from __future__ import annotations

import dataclasses

from vlmdata.errors import ConfigError
from vlmtrain.caches import feature_cache, kept_activations, reference_cache
from vlmtrain.config import Config
from vlmtrain.lean import compiling, recompute
from vlmtrain.tuning import check_tuner, whole_parts
from vlmtrain.watching import checks

__all__ = ["checked"]

# Keys all methods share that say nothing about pictures without text.
_OF_TEXT = (
    "max_image_tokens", "group_by_length", "compact_head", "share_features", "skip_unread", "cache_vision",
    "cache_vision_gb",
)  # fmt: skip


def checked(config: Config) -> Config:
    """The configuration with what follows from it for keys that nobody set.

    Args:
        config: whose keys are each valid by themselves.

    Raises:
        ConfigError: one line with the first keys that cannot be together, or would do nothing.
        MissingError: there is no such adapter to train further.
    """
    config = whole_parts(_without_precompute(config))
    _check_streaming(config)
    compiling.check(config)
    feature_cache.check(config)
    recompute.check(config)
    reference_cache.check(config)
    check_tuner(config)
    checks.check_keys(config)
    if config.method == "classify":
        _check_classifier(config)
    return config


def _without_precompute(config: Config) -> Config:
    """With streaming the reference is asked live: beforehand would be one more pass over data that is not kept."""
    if not config.rows.streaming:
        return config
    changed = {}
    for name in ("preference", "unpaired"):
        group = getattr(config, name)
        if group is not None and group.reference == "precompute":
            if "reference" in config.given:
                raise ConfigError("reference=precompute goes through all rows before training: not with streaming")
            changed[name] = dataclasses.replace(group, reference="live")
    return dataclasses.replace(config, **changed)


def _check_streaming(config: Config) -> None:
    if not config.rows.streaming:
        if "shuffle_buffer" in config.asked:
            raise ConfigError("shuffle_buffer is for streaming=true: without it all rows are shuffled")
        return
    if config.training.eval_fraction:
        raise ConfigError("--eval-fraction needs all rows at hand: with streaming, vlmdata split and --eval-data")
    if config.groups_images:
        raise ConfigError("--group-by-image needs all rows at hand: not with streaming")
    if config.method == "classify":
        raise ConfigError("streaming is for models that read text: vlmtrain classify keeps its rows")
    if config.supervision and config.supervision.weight_by:
        raise ConfigError("weight_by needs all rows at hand: leave out streaming")
    if config.unpaired:
        raise ConfigError("streaming is for sft and dpo: vlmtrain kto looks for each row's partner among all of them")


def _check_classifier(config: Config) -> None:
    settings = config.classification
    assert settings is not None
    idle = sorted(config.given & set(_OF_TEXT))
    if idle:
        raise ConfigError(f"{idle[0]} is for models that read text: an image classifier has no use for it")
    if config.base.quantize != "none":
        raise ConfigError(f"quantize is {config.base.quantize}: image classifiers are trained in 32 or 16 bits")
    lora = {"tuner", "lora_r", "lora_alpha", "lora_dropout", "parts", "target_modules", "lora_last_layers"}
    layers = sorted(config.asked & lora)
    if settings.head_only and layers:
        raise ConfigError(f"head_only trains the head and nothing else: leave out {', '.join(layers)}")
    if settings.head_only and config.base.adapter:
        raise ConfigError("head_only starts from a base; an adapter is trained further as it is")
    kept_activations.check(config)
    if settings.augment == "none" and "crop_scale" in config.asked:
        raise ConfigError("crop_scale says how augment=crop_flip crops; augment is none")
