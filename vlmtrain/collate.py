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

__all__ = ["Collator", "IGNORED", "PreferenceCollator", "answer_mask", "decode", "prompt_batch"]

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
        rendered = [_rendered(self.processor, row) for row in rows]
        texts, answers = [text for text, _ in rendered], [spans for _, spans in rendered]
        batch = _encode(self.processor, self.family, texts, [decode(row) for row in rows], side="right", offsets=True)
        mask = answer_mask(batch, answers)
        labels = batch["input_ids"].masked_fill(~mask, IGNORED)
        return {**batch, "labels": labels}


class PreferenceCollator:
    """Rows of preference shards to DPO batches in TRL's layout.

    ``input_ids``, ``attention_mask`` and ``completion_mask`` are ``[2B, T]``: B chosen rows, then their B rejected
    ones, padded on the right to the longest. The pixels are those of the B prompts, once: the trainer repeats what
    the model makes of them.

    Attributes:
        reference: row number -> log-probabilities of chosen and rejected under the reference; where it is set, they
            come along as ``ref_chosen_logps`` and ``ref_rejected_logps`` ``[B]``.
    """

    reference: Mapping[int, tuple[float, float]] | None = None

    def __init__(self, processor: Any, family: Family) -> None:
        """Take the processor as it is to be used: image budget set, chat template present."""
        self.processor, self.family = processor, family

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; the rows' images are decoded and processed once per pair."""
        sides = [[_rendered(self.processor, row, side) for row in rows] for side in ("chosen", "rejected")]
        images = [decode(row) for row in rows]
        chosen, rejected = ([text for text, _ in side] for side in sides)
        batch = _encode(self.processor, self.family, chosen, images, side="right", offsets=True)
        replaced = batch.get("text_replacement_offsets")
        second = _encode_again(self.processor, rejected, replaced or [[]] * len(rows))
        for half, side in zip((batch, second), sides, strict=True):
            half["completion_mask"] = answer_mask(half, [spans for _, spans in side]).long()
        pad = {"input_ids": self.processor.tokenizer.pad_token_id}
        joined = {key: _stack(batch[key], second[key], pad.get(key, 0)) for key in second}
        if self.reference is not None:
            logps = torch.tensor([self.reference[row["row"]] for row in rows])
            joined["ref_chosen_logps"], joined["ref_rejected_logps"] = logps.unbind(1)
        return {**batch, **joined}


def decode(row: Mapping[str, Any]) -> list[Image.Image]:
    """The images of a row, RGB, reduced to ``row["image_scale"]`` where the length policy set one.

    Raises:
        DataError: an image cannot be decoded; the row is named.
    """
    images: list[Image.Image] = []
    scale = row.get("image_scale") or 1.0
    for index, image in enumerate(row["images"]):
        try:
            picture: Image.Image = Image.open(io.BytesIO(image["bytes"]))
            picture.load()
            picture = picture if picture.mode == "RGB" else picture.convert("RGB")
            if scale < 1:
                width, height = (max(1, int(side * scale)) for side in picture.size)
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            images.append(picture)
        except (Image.DecompressionBombError, OSError, SyntaxError, TypeError, ValueError) as error:
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


def _rendered(processor: Any, row: Mapping[str, Any], side: str | None = None) -> tuple[str, Any]:
    """Text and answer spans of a row, from the columns ``vlmtrain.lengths.fit`` adds or else rendered now."""
    text, answers = (f"{side}_text", f"{side}_answers") if side else ("text", "answers")
    if text in row:
        return row[text], row[answers]
    if side is None:
        rendered = render(processor, row["messages"])
        return rendered.text, rendered.answers
    rendered = render(processor, [*row["prompt"], *row[side]])
    return rendered.text, rendered.answers[-sum(turn["role"] == "assistant" for turn in row[side]) :]


def _encode_again(processor: Any, texts: list[str], replaced: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What the processor would make of other texts on images it has just seen, without seeing them again."""
    pieces = [[entry["replacement"] for entry in row] for row in replaced]
    expanded, offsets = processor.get_text_with_replacements(list(texts), [piece for row in pieces for piece in row])
    encoded = processor.tokenizer(
        expanded,
        return_tensors="pt",
        padding=True,
        padding_side="right",
        return_offsets_mapping=True,
        add_special_tokens=add_special_tokens(processor, texts[0]),
    )
    batch: dict[str, Any] = {**encoded, "text_replacement_offsets": offsets}
    if processor.return_mm_token_type_ids:
        batch["mm_token_type_ids"] = torch.as_tensor(processor.create_mm_token_type_ids(encoded["input_ids"]))
    return batch


def _stack(first: torch.Tensor, second: torch.Tensor, pad: int) -> torch.Tensor:
    """Two ``[B, T]`` of different T as one ``[2B, max T]``."""
    width = max(first.shape[1], second.shape[1])
    grown = [torch.nn.functional.pad(half, (0, width - half.shape[1]), value=pad) for half in (first, second)]
    return torch.cat(grown)


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
    batch = processor(
        text=texts,
        images=pictures if any(images) else None,
        padding=True,
        padding_side=side,
        add_special_tokens=special.pop(),
        **kwargs,
    )
    # Not the processor's own return_tensors: Idefics3's would try to make a tensor of the replacement offsets.
    return batch.convert_to_tensors("pt", skip_tensor_conversion=["text_replacement_offsets"])
