"""Rows to batches: one processor call on the full text of every row, in the dataloader workers.

TRL encodes prompt and completion apart and joins the token ids; that loses what a processor derives from the whole
row. Here the processor sees the whole row, and the labels are found in its output: character spans of the answers
(``vlmtrain.chat``), moved behind the expanded images, then mapped to tokens.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from vlmdata.errors import ConfigError, DataError
from vlmtrain.chat import Messages, add_special_tokens, has_image_mark, render, render_prompt
from vlmtrain.family import Family

__all__ = ["IGNORED", "Collator", "answer_mask", "decode", "prompt_batch"]

IGNORED = -100


def prompt_batch(
    processor: Any, family: Family, conversations: Sequence[Messages], images: Sequence[Sequence[Image.Image]]
) -> BatchFeature:
    """Prompts for generation, padded on the left, generation prompt at the end.

    Args:
        processor: of the model, as ``vlmtrain.model.load`` returns it.
        family: the model's family.
        conversations: message lists in shard form, one per prompt, each ending with a user's turn.
        images: for each prompt its images, in the order of its image parts.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[B, T]``, pixels as the family wants them, all on the CPU.

    Raises:
        DataError: image parts and images do not match, or a text contains the model's image token.
        ConfigError: more images in one prompt than the family takes.
    """
    for index, (messages, shown) in enumerate(zip(conversations, images, strict=True)):
        places = sum(part["type"] == "image" for turn in messages for part in turn["content"])
        if places != len(shown):
            raise DataError(f"prompt {index} has {places} image parts and {len(shown)} images")
        if has_image_mark(processor, messages):
            raise DataError(f"prompt {index} contains the text {processor.image_token!r}, this model's image token")
        if family.max_images is not None and places > family.max_images:
            raise ConfigError(f"prompt {index} has {places} images; this family takes at most {family.max_images}")
    texts = [render_prompt(processor, messages) for messages in conversations]
    return _encode(processor, family, texts, [list(shown) for shown in images], side="left")


class Collator:
    """Rows of messages shards to SFT batches.

    A batch holds ``input_ids``, ``attention_mask`` and ``labels`` ``[B, T]``, padded on the right, and the pixels.
    Labels are the tokens of the answers with their end tokens, everything else is ``IGNORED``.
    """

    def __init__(self, processor: Any, family: Family) -> None:
        """Take the processor as it is to be used: image budget set, chat template present."""
        self.processor, self.family = processor, family

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; the rows' images are decoded here."""
        rendered = [render(self.processor, row["messages"]) for row in rows]
        images = [decode(row) for row in rows]
        batch = _encode(self.processor, self.family, [r.text for r in rendered], images, side="right", offsets=True)
        mask = answer_mask(batch, [r.answers for r in rendered])
        labels = batch["input_ids"].masked_fill(~mask, IGNORED)
        return {**batch, "labels": labels}


def decode(row: Mapping[str, Any]) -> list[Image.Image]:
    """The images of a row, RGB, reduced to ``row["image_scale"]`` where the length policy set one.

    Raises:
        DataError: an image cannot be decoded; the row is named.
    """
    images = []
    for index, image in enumerate(row["images"]):
        try:
            picture = Image.open(io.BytesIO(image["bytes"]))
            images.append(picture if picture.mode == "RGB" else picture.convert("RGB"))
            picture.load()
        except (OSError, SyntaxError, TypeError, ValueError) as error:
            raise DataError(f"image {index} of row {row.get('id')!r} cannot be decoded: {error}") from error
    return images


def answer_mask(batch: dict[str, Any], answers: Sequence[Sequence[tuple[int, int]]]) -> torch.Tensor:
    """Which tokens belong to an answer; takes the offsets out of the batch.

    Args:
        batch: processor output with ``offset_mapping`` and, where images were expanded, ``text_replacement_offsets``.
        answers: per row the character spans in the text before expansion.

    Returns:
        Boolean mask ``[B, T]``.
    """
    offsets = torch.as_tensor(batch.pop("offset_mapping"))
    replaced = batch.pop("text_replacement_offsets", None) or [[]] * len(answers)
    mask = torch.zeros(offsets.shape[:2], dtype=torch.bool)
    for row, spans in enumerate(answers):
        ends = [r["span"][1] for r in replaced[row]]
        gains = [0, *(r["new_span"][1] - r["span"][1] for r in replaced[row])]
        for start, stop in spans:
            start, stop = (place + gains[bisect.bisect_right(ends, place)] for place in (start, stop))
            # Zero-width tokens (padding, added specials) overlap nothing.
            mask[row] |= (offsets[row, :, 0] < stop) & (offsets[row, :, 1] > start)
    return mask


def _encode(
    processor: Any,
    family: Family,
    texts: list[str],
    images: list[list[Image.Image]],
    *,
    side: str,
    offsets: bool = False,
) -> BatchFeature:
    """One processor call for the batch; no row of it depends on another but for padding."""
    pictures: Any = images if family.nested_images else [image for row in images for image in row]
    special = {add_special_tokens(processor, text) for text in texts}
    if len(special) > 1:
        raise DataError("the chat template writes the BOS token for some rows only")
    kwargs = dict.fromkeys(("return_offsets_mapping", "return_text_replacement_offsets"), True) if offsets else {}
    return processor(
        text=texts,
        images=pictures if any(images) else None,
        return_tensors="pt",
        padding=True,
        padding_side=side,
        add_special_tokens=special.pop(),
        **kwargs,
    )
