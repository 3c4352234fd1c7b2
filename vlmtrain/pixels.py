"""Pictures for image classifiers: a random view of each for training, a fixed one for evaluation.

Training takes torchvision's RandomResizedCrop and a horizontal flip, evaluation a resize and a centre crop, as PEFT's
image classification guide (https://huggingface.co/docs/peft/main/en/task_guides/image_classification_lora). One
deviation: the evaluation view is a setting of the image processor that is saved with the model, so that whoever loads
it sees pictures the way they were evaluated; the guide trains on one view and classifies another, squashed one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torchvision.transforms import v2
from transformers.image_utils import pil_torch_interpolation_mapping

from vlmdata.errors import ConfigError
from vlmtrain.collate import decode
from vlmtrain.ordering import Grouped

__all__ = ["PassOrder", "PictureCollator", "Pictures", "RandomView", "crop_centre", "view_size"]


def view_size(processor: Any) -> tuple[int, int]:
    """Height and width of the pictures an image processor makes.

    Raises:
        ConfigError: they have no fixed size.
    """
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = size.get("height"), size.get("width")
    if height and width:
        return int(height), int(width)
    if edge := size.get("shortest_edge"):
        return int(edge), int(edge)
    raise ConfigError(f"the image processor {type(processor).__name__} makes no pictures of a fixed size: {size}")


def crop_centre(processor: Any) -> None:
    """Make a processor that squashes pictures into its size resize and crop them instead; others stay."""
    size = processor.size
    if getattr(processor, "do_center_crop", False) or not (size.get("height") and size.get("width")):
        return
    height, width = view_size(processor)
    processor.crop_size = type(size)(height=height, width=width)
    processor.size = type(size)(shortest_edge=max(height, width))
    processor.do_center_crop = True


class RandomView:
    """A random crop and flip of a picture, the same for the same seed, pass and row, whatever was done before."""

    def __init__(self, processor: Any, seed: int, *, crop_scale: float) -> None:
        """Take size and normalization from the image processor.

        Args:
            processor: of the model.
            seed: of the run.
            crop_scale: smallest share of a picture's area that a crop shows; the largest is all of it.
        """
        self.processor, self.seed = processor, seed
        mode = pil_torch_interpolation_mapping[processor.resample]
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(view_size(processor), scale=(crop_scale, 1.0), interpolation=mode),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
            ]
        )

    def __call__(self, picture: Image, epoch: int, row: int) -> torch.Tensor:
        """Pixels ``[3, H, W]``, scaled and normalized as the image processor does it."""
        digest = hashlib.sha256(f"{self.seed}:{epoch}:{row}".encode()).digest()
        # torchvision draws from torch's CPU generator only; seeding through torch would restart the GPU's as well.
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(int.from_bytes(digest[:8]) >> 1)
        try:
            pixels: torch.Tensor = self.transform(picture)
        finally:
            torch.set_rng_state(before)
        return self._normalized(pixels.float())

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        p = self.processor
        if p.do_rescale:
            pixels = pixels * p.rescale_factor
        if p.do_normalize:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (p.image_mean, p.image_std))
            pixels = (pixels - mean) / std
        return pixels


class Pictures(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows to train on, numbered on from pass to pass, so that a worker knows which pass a row is wanted for."""

    def __init__(self, rows: Any) -> None:
        """Take rows of :func:`vlmtrain.data.open_data`."""
        self.rows = rows

    def __len__(self) -> int:
        """Rows of one pass."""
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Row ``number % len`` with its ``epoch``, ``number // len``."""
        epoch, row = divmod(int(number), len(self.rows))
        return {**self.rows[row], "epoch": epoch}


class PassOrder(torch.utils.data.Sampler[int]):
    """The order of a pass over :class:`Pictures`: row numbers that carry the pass."""

    def __init__(self, order: Grouped, size: int) -> None:
        """Take the order of row numbers, and how many rows there are to choose from."""
        self.order, self.size = order, size

    def set_epoch(self, epoch: int) -> None:
        """The pass that is to come next."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        """Rows of a pass."""
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        """Numbers for :class:`Pictures`."""
        for row in self.order:
            yield self.order.epoch * self.size + row


class PictureCollator:
    """Labelled rows to batches: ``pixel_values`` ``[B, 3, H, W]`` and ``labels`` ``[B]``.

    Rows of a training pass get their random view where there is one; all others the image processor's.
    """

    def __init__(self, processor: Any, view: RandomView | None) -> None:
        """Take the processor as it is to be used; ``view`` is None to train on the evaluation view."""
        self.processor, self.view = processor, view

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch; the rows' pictures are decoded here."""
        pictures = [decode(row)[0] for row in rows]
        if self.view is not None and "epoch" in rows[0]:
            views = [self.view(p, row["epoch"], row["row"]) for p, row in zip(pictures, rows, strict=True)]
            pixels = torch.stack(views)
        else:
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}
