"""What is to be watched, checked before a model is loaded."""

from __future__ import annotations

import os

from vlmdata.errors import ConfigError
from vlmtrain import evaluate
from vlmtrain.config import Config
from vlmtrain.watching import trackers

__all__ = ["CLASSIFIER_METRICS", "check", "check_keys", "keeps_best"]

CLASSIFIER_METRICS = ("accuracy", "f1", "top5")
# Key -> the key without which it does nothing.
_NEEDS = {
    "sample_rows": "sample_steps",
    "sample_tokens": "sample_steps",
    "sample_temperature": "sample_steps",
    "sample_min_p": "sample_temperature",
    "eval_amber_images": "eval_amber",
    "project": "report_to",
    "run_name": "report_to",
    "log_model": "report_to",
}


def check_keys(config: Config) -> None:
    """Refuse keys that do not go together, or would do nothing.

    Raises:
        ConfigError: the first fault.
    """
    w = config.watching
    _classifier(config) if config.method == "classify" else _metric(config)
    for key, needed in _NEEDS.items():
        if key in config.asked and not getattr(w, needed):
            raise ConfigError(f"{key} does nothing without {needed}")
    trackers.check_keys(w)


def check(config: Config, held_out: bool) -> None:
    """Refuse what cannot work with these data, on this machine.

    Args:
        config: of the run, whose keys go together (:func:`check_keys`).
        held_out: whether there are rows that are not trained on.

    Raises:
        ConfigError: the first fault.
        DependencyError: a tracker that is not installed.
        MissingError: there is no such AMBER folder, or images are not there.
        DataError: it is not one.
    """
    w = config.watching
    wanted = [key for key in ("sample_steps", "eval_amber", "keep_best", "eval_on_start") if getattr(w, key)]
    if w.eval_metric != "loss" and config.method != "classify":
        wanted.append("eval_metric")
    if wanted and not held_out:
        raise ConfigError(f"{wanted[0]} needs rows that are not trained on: give --eval-data or --eval-fraction")
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]
    whole = [key for key in wanted if key != "eval_on_start"]
    if sharded and whole:
        raise ConfigError(f"{whole[0]} needs the whole model in each process: leave it out with {sharded[0]}")
    trackers.check(w)
    if w.eval_amber:
        evaluate.Amber(w.eval_amber, w.eval_amber_images, w.eval_rows)


def keeps_best(config: Config, held_out: bool) -> bool:
    """Whether a run ends with its best weights; a classifier does where nothing else is said."""
    asked = config.watching.keep_best
    return held_out and (config.method == "classify" if asked is None else asked)


def _classifier(config: Config) -> None:
    w = config.watching
    idle = ("sample_steps", "sample_rows", "sample_tokens", "sample_temperature", "sample_min_p", "eval_tokens")
    for key in (*idle, "eval_rows", "eval_amber", "eval_amber_images"):
        if key in config.given:
            raise ConfigError(f"{key} is for models that write text, which an image classifier does not")
    if w.eval_metric not in CLASSIFIER_METRICS:
        valid = ", ".join(CLASSIFIER_METRICS)
        raise ConfigError(f"eval_metric is {w.eval_metric!r}, valid for an image classifier: {valid}")


def _metric(config: Config) -> None:
    w = config.watching
    if w.eval_metric == "top5":
        raise ConfigError("eval_metric top5 is for image classifiers")
    if w.eval_metric.startswith("amber_") and not w.eval_amber:
        raise ConfigError(f"eval_metric {w.eval_metric} needs eval_amber, the folder of AMBER's files")
    generates = w.eval_metric != "loss" or w.eval_amber
    if not generates and config.asked & {"eval_rows", "eval_tokens"}:
        raise ConfigError("eval_rows and eval_tokens do nothing while eval_metric is loss: no answer is written")
