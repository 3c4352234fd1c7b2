"""mDPO: besides the better answer, the picture that belongs to it is preferred, and the better answer stays likely.

Paper: https://arxiv.org/abs/2406.11839; reference implementation: https://github.com/luka-group/mDPO (mdpo_trainer.py)

With r(v, y) = beta * (log p(y | v, x) - log p_ref(y | v, x)) for picture v, question x and answer y, chosen y_w, and v'
the spoiled picture, a pair's loss is the DPO loss plus

    image_weight  * -log sigmoid(r(v, y_w) - r(v', y_w))       conditional preference
    anchor_weight * -log sigmoid(r(v, y_w) - anchor_delta)     anchored preference

averaged over the pairs of a batch; the paper's weights are 1 and its delta is 0. A pair without a picture has no
conditional term.

The paper's v' is a random crop of at most 20 % of the picture, brought back to its size (``crop``: 1 to 20 % of the
area, sides between 3:4 and 4:3, as torchvision's RandomResizedCrop draws them). ``noise`` is white noise, ``mask`` the
picture's mean colour. Deviation: the reference implementation draws a new crop at every step; here a picture is
spoiled by seed and row number, the same way in every epoch, so that the reference's log-probabilities of it can be
computed before training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import logsigmoid

from vlmtrain.collate import Collator, PreferenceCollator, decode, rendered
from vlmtrain.family import Family
from vlmtrain.forwards import Recorder
from vlmtrain.keys import Preference
from vlmtrain.trl_seam import answer_log_probs

__all__ = ["ConditionalCollator", "ConditionalLoss", "corrupt", "is_conditional"]

PREFIX = "corrupted_"


def is_conditional(preference: Preference) -> bool:
    """Whether a run has a term beyond TRL's losses."""
    return bool(preference.image_weight or preference.anchor_weight)


def corrupt(picture: Image.Image, how: str, source: random.Random) -> Image.Image:
    """A picture spoiled, of the same size: it takes as many tokens.

    Args:
        picture: RGB.
        how: ``crop``, ``noise`` or ``mask``.
        source: what is random about it.
    """
    width, height = picture.size
    if how == "noise":
        return Image.frombytes("RGB", picture.size, source.randbytes(width * height * 3))
    if how == "mask":
        mean = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        return Image.new("RGB", picture.size, mean)
    share = source.uniform(0.01, 0.2)
    ratio = math.exp(source.uniform(math.log(3 / 4), math.log(4 / 3)))
    area = width * height * share
    # A long, thin picture has no room for the shape drawn: then as much of it as there is.
    wide = min(width, max(1, round(math.sqrt(area * ratio))))
    high = min(height, max(1, round(area / wide)))
    left, top = source.randint(0, width - wide), source.randint(0, height - high)
    part = picture.crop((left, top, left + wide, top + high))
    return part.resize(picture.size, Image.Resampling.BICUBIC)


class ConditionalCollator(PreferenceCollator):
    """Pairs, and each pair's chosen answer on spoiled pictures.

    Besides the keys of :class:`~vlmtrain.collate.PreferenceCollator` a batch has those of an SFT batch of the B chosen
    answers, named ``corrupted_...``: ``corrupted_input_ids`` and ``corrupted_labels`` ``[B, T]``, pixels and the rest.

    Attributes:
        corrupted_reference: row number -> log-probability of the chosen answer on the spoiled pictures under the
            reference; where it is set it comes along as ``ref_corrupted_logps`` ``[B]``.
    """

    corrupted_reference: Mapping[int, float] | None = None

    def __init__(self, processor: Any, family: Family, how: str, seed: int) -> None:
        """Take the processor as it is to be used, and how pictures are spoiled."""
        super().__init__(processor, family)
        self.spoiled = _Spoiled(processor, family, how, seed)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; images are decoded here, twice each."""
        batch = super().__call__(rows)
        batch |= {PREFIX + key: value for key, value in self.spoiled(rows).items()}
        batch["has_image"] = torch.tensor([bool(row["images"]) for row in rows])
        if self.corrupted_reference is not None:
            batch["ref_corrupted_logps"] = torch.tensor([self.corrupted_reference[row["row"]] for row in rows])
        return batch


class _Spoiled(Collator):
    """The chosen answers of pairs as SFT rows whose pictures are spoiled."""

    def __init__(self, processor: Any, family: Family, how: str, seed: int) -> None:
        super().__init__(processor, family)
        self.how, self.seed = how, seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return super().__call__([{**row, **rendered(self.processor, row, "chosen")._asdict()} for row in rows])

    def images(self, row: Mapping[str, Any]) -> list[Image.Image]:
        # An int, a string: equal in every process, unlike a hash of objects.
        source = random.Random(f"{self.seed} {row['row']}")
        return [corrupt(picture, self.how, source) for picture in decode(row)]


class ConditionalLoss:
    """Put before a DPOTrainer behind ``TrainerSeam``: its loss with the conditional and the anchored term.

    Log-probabilities of the reference are always given to TRL in the batch: computed before training, or, with
    ``live``, right before they are needed.

    Attributes:
        preference: the keys of the run.
        live: whether the reference is asked in every step.
    """

    preference: Preference
    live: bool = False

    def reference_columns(self, batch: dict[str, Any]) -> list[torch.Tensor]:
        """Log-probabilities of chosen, rejected and, where pictures are spoiled, chosen on those: each ``[B]``."""
        trainer: Any = self
        spoiled = _take_spoiled(batch)
        batch.pop("has_image", None)
        columns = super().reference_columns(batch)  # type: ignore[misc]
        if spoiled:
            with trainer.as_reference() as net:
                columns.append(answer_log_probs(net, trainer.with_features(spoiled, sides=1)))
        return list(columns)

    def reference_inputs(self, row: Mapping[str, Any]) -> list[Any]:
        """What the reference's figures of a row depend on: also how its pictures are spoiled, by its number."""
        trainer: Any = self
        found: list[Any] = super().reference_inputs(row)  # type: ignore[misc]
        collator = trainer.data_collator.collate
        if not isinstance(collator, ConditionalCollator):
            return found
        return [*found, collator.spoiled.how, collator.spoiled.seed, row["row"]]

    def loss_of(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss and the two terms."""
        trainer: Any = self
        spoiled = trainer.with_features(_take_spoiled(inputs), sides=1)
        has_image, reference = inputs.pop("has_image", None), inputs.pop("ref_corrupted_logps", None)
        if self.live:
            with trainer.as_reference() as net:
                inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = answer_log_probs(net, inputs).chunk(2)
                reference = answer_log_probs(net, spoiled) if spoiled else None
        recorder = Recorder(model)
        loss = super().loss_of(recorder, inputs, *args, **kwargs)  # type: ignore[misc]
        chosen = recorder.outputs[0].log_probs.sum(1).chunk(2)[0]
        reward = self.preference.beta * (chosen - inputs["ref_chosen_logps"])
        extra = -self.preference.anchor_weight * logsigmoid(reward - self.preference.anchor_delta)
        if spoiled:
            corrupted = self.preference.beta * (answer_log_probs(model, spoiled) - reference)
            margin = reward - corrupted
            extra = extra - self.preference.image_weight * logsigmoid(margin) * has_image
            shown = {"corrupted": corrupted, "image_margins": margin, "image_accuracies": (margin > 0).float()}
            trainer.record({f"rewards/{name}": values for name, values in shown.items()}, where=has_image)
        if isinstance(loss, tuple):
            return (loss[0] + extra.mean(), *loss[1:])
        return loss + extra.mean()


def _take_spoiled(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(PREFIX): inputs.pop(key) for key in list(inputs) if key.startswith(PREFIX)}
