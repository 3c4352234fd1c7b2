"""A batch like those of training, of the size that is asked about: real pixels and token ids, invented content."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch

from vlmdata.errors import ConfigError
from vlmtrain.planning.shapes import Shape
from vlmtrain.sharing import Share

__all__ = ["Load", "make_batch", "tokens_of"]


@dataclass(frozen=True, slots=True)
class Load:
    """The largest row of a batch.

    Attributes:
        length: tokens, those of its images too.
        answer: how many of them are learned.
        images: how many images.
        size: width and height of each.
        rows: of a dataset, the longest first; they stand for themselves and the rest is of no use.
    """

    length: int = 1024
    answer: int = 128
    images: int = 1
    size: tuple[int, int] = (640, 480)
    rows: Any = None


def tokens_of(shape: Shape, size: tuple[int, int]) -> int:
    """How many tokens an image of that width and height takes."""
    from vlmtrain.trl_seam import image_tokens

    return image_tokens(shape.processor, [size], shape.family)[0]


def make_batch(
    shape: Shape, rows: int, load: Load, *, pairs: bool = False, share: Share | None = None, reads: bool = False
) -> dict[str, Any]:
    """What a collator makes of ``rows`` rows, or pairs of answers, of that size; those of a pair may be folded.

    All rows are as long as the load says but for one token: rows of exactly one length would have no padding, and
    attention without a mask takes less memory than it does in training.

    Args:
        shape: of the model.
        rows: or pairs, so many.
        load: the largest row.
        pairs: of answers.
        share: how pairs fold, if they do.
        reads: say where hidden states are read.

    Raises:
        ConfigError: the images alone take more tokens than the row has, or the family does not take so many.
    """
    if shape.family.task == "classify":
        return _pictures(shape, rows, load)
    from vlmtrain.collate import IGNORED, Collator, PreferenceCollator
    from vlmtrain.lean.last_layer import with_places

    collate: Any = (PreferenceCollator if pairs else Collator)(shape.processor, shape.family)
    if load.rows is not None:
        collate.share, collate.reads = share, reads
        # Fewer rows than a batch has: some twice.
        return dict(collate([load.rows[number % len(load.rows)] for number in range(rows)]))
    limit = shape.family.max_images
    if limit is not None and load.images > limit:
        raise ConfigError(f"--images is {load.images}, {shape.name} takes at most {limit} in a row")
    picture = _picture(load.size)
    user = {"role": "user", "content": [{"type": "image", "text": None}] * load.images + [_text("Go.")]}
    answer = [{"role": "assistant", "content": [_text("A")]}]
    row: dict[str, Any] = {"id": "row", "row": 0, "images": [{"bytes": picture, "path": None}] * load.images}
    if pairs:
        row |= {"prompt": [user], "chosen": answer, "rejected": answer}
    else:
        row |= {"messages": [user, *answer]}
    found = collate([row] * rows)
    short = found["input_ids"].shape[1]
    batch = _stretch(found, load)
    if share is not None:
        ids = batch["input_ids"]
        if pairs:
            answers = batch["completion_mask"].bool()
            # Answers that differ from their first token on; an image belongs to the prompt, however short that is.
            answers[:rows], answers[:, : short - 1] = False, False
            ids = ids.masked_fill(answers, 0)
        groups = [(at, rows + at) if pairs else (at,) for at in range(rows)]
        grown = {"input_ids": ids, "attention_mask": batch["attention_mask"]}
        batch |= share(grown, groups, [load.images] * rows)
    if reads:
        batch = with_places(batch, batch["completion_mask"] if pairs else batch["labels"] != IGNORED)
    return batch


def _stretch(batch: dict[str, Any], load: Load) -> dict[str, Any]:
    """The batch with every row brought to the length asked for, the answer at its end."""
    short = batch["input_ids"].shape[1]
    if short > load.length:
        raise ConfigError(
            f"--length is {load.length}, and {load.images} images of {load.size[0]}x{load.size[1]} with a word of "
            f"text take {short} tokens: raise it, or lower --max-image-tokens"
        )
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.dim() >= 2 and value.shape[1] == short and key != "pixel_values":
            more = value[:, -1:].expand(-1, load.length - short, *value.shape[2:])
            batch[key] = torch.cat([value, more], 1)
    answer = min(load.answer, load.length - 1)
    learned = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
    learned[:, load.length - answer :] = True
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    batch["attention_mask"][1:, -1] = 0
    learned[1:, -1] = False
    if "labels" in batch:
        batch["labels"] = torch.where(learned, batch["input_ids"], -100)
    if "completion_mask" in batch:
        batch["completion_mask"] = learned.long()
    return batch


def _pictures(shape: Shape, rows: int, load: Load) -> dict[str, Any]:
    from PIL import Image

    made = shape.processor(images=[Image.new("RGB", load.size, (90, 120, 150))], return_tensors="pt")
    pixels = made["pixel_values"]
    return {"pixel_values": pixels.repeat(rows, *[1] * (pixels.dim() - 1)), "labels": torch.zeros(rows).long()}


def _picture(size: tuple[int, int]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    # Not black: Idefics2 takes an image of zeros for padding.
    Image.new("RGB", size, (90, 120, 150)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}
