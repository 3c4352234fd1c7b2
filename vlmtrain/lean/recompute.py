"""Which layers compute their activations again in the backward, where ``gradient_checkpointing`` saves memory so.

A last layer that computes only what is read (``vlmtrain.lean.last_layer``) is not worth it: its backward comes first,
so that what is thrown away is wanted again at once, and the little it keeps is not what a peak is made of. And a run
that would fit with half of its layers recomputed need not recompute the other half: ``checkpoint_layers`` says how
many do, the first ones, since what a later layer keeps is freed first. Loss and gradients are the same, bit for bit.

transformers (5.23) has ``every_n_layers``, which cannot name how many; TRL (1.16) forgets it where it switches
checkpointing off for a reference and on again. Both let the input embeddings require gradients, which reentrant
checkpointing needs and the one used here does not: it would take gradients through the whole first layer and a frozen
tower's embeddings for nobody, and each time checkpointing is switched on another such hook stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError
from vlmtrain.parts import layers_of

if TYPE_CHECKING:
    from vlmtrain.config import Config
    from vlmtrain.family import Family
    from vlmtrain.job import Job
    from vlmtrain.keys import Training

__all__ = ["can_recompute", "check", "choose_layers", "keeps_last", "recompute_first", "recomputes"]


def check(config: Config) -> None:
    """Refuse what can be seen to be wrong before a model is loaded.

    Raises:
        ConfigError: a number of layers, and none are to be recomputed.
    """
    if config.training.checkpoint_layers is not None and config.training.gradient_checkpointing is False:
        raise ConfigError("checkpoint_layers says how many layers recompute: not with gradient_checkpointing=false")


def recomputes(training: Training, device: str) -> bool:
    """Whether a run recomputes activations: as it says, else on a GPU, or where it says how many layers do.

    Args:
        training: of the run's configuration.
        device: ``cuda`` or ``cpu``.
    """
    if training.gradient_checkpointing is None:
        return device != "cpu" or training.checkpoint_layers is not None
    return training.gradient_checkpointing


def can_recompute(net: Any, name: str, training: Training) -> bool:
    """Whether a model has layers that recompute.

    Args:
        net: the transformers model.
        name: of the model.
        training: of the run's configuration.

    Raises:
        ConfigError: it has none, and they were asked for.
    """
    asked = [key for key in ("gradient_checkpointing", "checkpoint_layers") if getattr(training, key)]
    if asked and not net.supports_gradient_checkpointing:
        raise ConfigError(f"{name} cannot recompute activations: leave {asked[0]} out")
    return bool(net.supports_gradient_checkpointing)


def choose_layers(trainer: Any, job: Job) -> None:
    """Let a prepared trainer recompute the layers its configuration names, if it recomputes any.

    Args:
        trainer: behind ``TrainerSeam``.
        job: what it was made from.

    Raises:
        ConfigError: more layers than there are.
    """
    if not trainer.args.activation_checkpointing:
        return
    config, given = job.config, trainer.args.activation_checkpointing_kwargs or {}
    recompute_first(
        trainer.net,
        job.loaded.family,
        config.training.checkpoint_layers,
        keep_last=keeps_last(config, getattr(trainer.data_collator.collate, "reads", False)),
        reentrant=bool(given.get("use_reentrant")),
    )


def keeps_last(config: Config, reads: bool) -> bool:
    """Whether the last layer is left out where no number is given.

    Args:
        config: of the run.
        reads: the last layer computes only what is read.
    """
    # With mDPO what it keeps of one forward would wait for the backward of the other.
    return reads and not (config.preference is not None and config.preference.image_weight)


def recompute_first(net: Any, family: Family, count: int | None, *, keep_last: bool, reentrant: bool = False) -> None:
    """Whenever a model's checkpointing is switched on, let so many layers recompute; nothing is switched on here.

    Those of its towers all do, if they are trained: what lies behind them comes first in the backward.

    Args:
        net: the transformers model.
        family: the model's family.
        count: of layers of the language model, or of an image classifier; None: all of them.
        keep_last: where no number is given, leave out the last.
        reentrant: checkpoints are of the kind that needs inputs with gradients.

    Raises:
        ConfigError: fewer than ``count``.
    """
    layers = list(layers_of(net, family).values())
    if count is not None and count > len(layers):
        raise ConfigError(f"checkpoint_layers {count}: {family.name} has {len(layers)} here; expected at most that")
    kept = layers[count if count is not None else len(layers) - keep_last :]
    switch_on = net.activation_checkpointing_enable

    def activation_checkpointing_enable(*args: Any, **kwargs: Any) -> None:
        switch_on(*args, **kwargs)
        for layer in kept:
            layer.gradient_checkpointing = False

    net.activation_checkpointing_enable = activation_checkpointing_enable
    if not reentrant:
        net.disable_input_require_grads()
        net.enable_input_require_grads = lambda: None
