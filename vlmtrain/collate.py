"""Rows to batches: the full text of every row read at once (``vlmtrain.encode``), in the dataloader workers.

TRL encodes prompt and completion apart and joins the token ids; that loses what a processor derives from the whole
row. Here the whole row is read, and the labels are found in the outcome: character spans of the answers
(``vlmtrain.chat``), moved behind the expanded images, then mapped to tokens.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import BatchFeature

from vlmdata.errors import ConfigError, DataError
from vlmtrain.caches.known_images import Shown, encode_known
from vlmtrain.chat import Messages, has_image_mark, image_mark, render, render_prompt
from vlmtrain.encode import answer_mask, encode, encode_again
from vlmtrain.family import Family
from vlmtrain.features import Known
from vlmtrain.grouping import encode_groups, image_groups, stacked
from vlmtrain.lean.last_layer import with_places
from vlmtrain.sharing import Share

__all__ = [
    "Collator",
    "IGNORED",
    "PreferenceCollator",
    "Said",
    "answer_mask",
    "branches",
    "decode",
    "prompt_batch",
    "rendered",
    "stack",
]

IGNORED = -100


class Said(NamedTuple):
    """A row as text.

    Attributes:
        text: one mark for each image, not yet expanded.
        answers: (start, stop) places in it of what is to be learned of what the assistant says.
        begin: where the assistant first speaks, None where it does not.
    """

    text: str
    answers: Sequence[tuple[int, int]]
    begin: int | None


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
            raise DataError(f"prompt {index} contains the text {image_mark(processor)!r}, this model's image token")
        if family.max_images is not None and places > family.max_images:
            raise ConfigError(f"prompt {index} has {places} images; this family takes at most {family.max_images}")
    texts = [render_prompt(processor, messages) for messages in conversations]
    begins = [_begin(processor, messages) if family.complete else None for messages in conversations]
    batch = encode(processor, family, texts, [list(shown) for shown in images], side="left", begins=begins)
    for key in ("offset_mapping", "text_replacement_offsets"):
        batch.pop(key, None)
    return batch


class Collator:
    """Rows of messages shards to SFT batches.

    A batch holds ``input_ids``, ``attention_mask`` and ``labels`` ``[B, T]``, padded on the right, and the pixels.
    Labels are the tokens of the answers with their end tokens, everything else is ``IGNORED``; so is what a model
    sees before it says it (``Family.both_ways``), whatever ``supervised`` says of it.

    Attributes:
        share: where it is set, what rows on the same images have in common runs through the model once; the pixels
            are then those of each group of rows, once.
        known: where it is set, images whose features are kept; the pixels are those of rows with another one.
        reads: say where hidden states are read (``vlmtrain.lean.last_layer``).
    """

    share: Share | None = None
    known: Mapping[str, Known] | None = None
    reads: bool = False

    def __init__(self, processor: Any, family: Family) -> None:
        """Take the processor as it is to be used: image budget set, chat template present."""
        self.processor, self.family = processor, family

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; the rows' images are decoded here."""
        found = [rendered(self.processor, row) for row in rows]
        texts, begins = [row.text for row in found], [row.begin for row in found]
        batch = self._folded(rows, texts, begins) if self.share is not None else None
        if batch is None:
            images = [Shown(row, self.images) for row in rows]
            batch = dict(_reader(self.known)(self.processor, self.family, texts, images, begins=begins))
        mask = self.supervised(batch, [row.answers for row in found])
        if self.family.both_ways:
            mask &= batch["token_type_ids"].bool()
        batch["labels"] = batch["input_ids"].masked_fill(~mask, IGNORED)
        return with_places(batch, mask) if self.reads else batch

    def _folded(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], begins: Sequence[int | None]
    ) -> dict[str, Any] | None:
        """The batch with the images of each group of rows once, and how it folds; None where nothing is gained."""
        assert self.share is not None
        alone = [[row] for row in range(len(rows))]
        groups = image_groups(self.processor, rows, texts) if self.share.beginnings else alone
        if len(groups) == len(rows) and not self.share.packs:
            return None
        images = [Shown(rows[group[0]], self.images) for group in groups]
        batch = encode_groups(self.processor, self.family, texts, begins, images, groups, _reader(self.known))
        sharing = self.share(batch, groups, [len(shown) for shown in images])
        return {**batch, **sharing} if sharing or groups == alone else None

    def images(self, row: Mapping[str, Any]) -> list[Image.Image]:
        """The pictures of a row, in order."""
        return decode(row)

    def supervised(self, batch: dict[str, Any], answers: Sequence[Sequence[tuple[int, int]]]) -> torch.Tensor:
        """Which tokens are learned, ``[B, T]``; takes the offsets out of the batch."""
        return answer_mask(batch, answers)


class PreferenceCollator:
    """Rows of preference shards to DPO batches in TRL's layout.

    ``input_ids``, ``attention_mask`` and ``completion_mask`` are ``[2B, T]``: B chosen rows, then their B rejected
    ones, padded on the right to the longest. The pixels are those of the B prompts, once: the trainer repeats what
    the model makes of them.

    Attributes:
        reference: row number -> log-probabilities of chosen and rejected under the reference; where it is set, they
            come along as ``ref_chosen_logps`` and ``ref_rejected_logps`` ``[B]``.
        share: where it is set, what the two rows of a pair have in common runs through the model once; where it lays
            rows end to end, so does what pairs on the same images have in common, and the pixels are those of each
            group of pairs, once.
        known: where it is set, images whose features are kept; the pixels are those of pairs with another one.
        reads: say where hidden states are read (``vlmtrain.lean.last_layer``).
    """

    reference: Mapping[int, tuple[float, float]] | None = None
    share: Share | None = None
    known: Mapping[str, Known] | None = None
    reads: bool = False

    def __init__(self, processor: Any, family: Family) -> None:
        """Take the processor as it is to be used: image budget set, chat template present."""
        self.processor, self.family = processor, family

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; the rows' images are decoded and processed once per pair, or group of pairs."""
        sides = [[rendered(self.processor, row, side) for row in rows] for side in ("chosen", "rejected")]
        alone = [[row] for row in range(len(rows))]
        groups = alone
        if self.share is not None and self.share.flat:
            groups = image_groups(self.processor, rows, [said.text for said in sides[0]])
        batch, joined = self._folded(rows, sides, groups)
        if len(groups) < len(rows) and "sharing" not in joined:
            # Pixels are there for each group; rows that do not fold need them for each pair.
            batch, joined = self._folded(rows, sides, alone)
        if self.reference is not None:
            logps = torch.tensor([self.reference[row["row"]] for row in rows])
            joined["ref_chosen_logps"], joined["ref_rejected_logps"] = logps.unbind(1)
        found = {**batch, **joined}
        return with_places(found, joined["completion_mask"]) if self.reads else found

    def _folded(
        self, rows: Sequence[Mapping[str, Any]], sides: Sequence[Sequence[Said]], groups: Sequence[Sequence[int]]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The batch of the chosen answers, and of what belongs to tokens that of both, with how its groups fold."""
        images = [Shown(row, decode) for row in rows]
        batch, second = branches(self.processor, self.family, sides, images, self.known, groups)
        joined = stack(self.processor, batch, second)
        if self.share is not None:
            forks = [[(row, len(rows) + row) for row in group] for group in groups]
            joined |= self.share(joined, forks, [len(rows[group[0]]["images"]) for group in groups])
        return batch, joined


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


def branches(
    processor: Any,
    family: Family,
    sides: Sequence[Sequence[Said]],
    images: Sequence[Sequence[Image.Image]],
    known: Mapping[str, Known] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Several texts on the same images, which are processed once.

    Args:
        processor: of the model.
        family: the model's family.
        sides: per branch each row as :func:`rendered` gives it.
        images: each row's pictures; with ``known`` as :class:`~vlmtrain.caches.known_images.Shown`.
        known: images whose features are kept; the first branch has no pixels of rows without another one.
        groups: places of rows on the same images, whose pixels are there once; None: each row has its own.

    Returns:
        Per branch ``input_ids``, ``attention_mask``, ``completion_mask`` ``[B, T]`` of its own T and what else belongs
        to its tokens; the first has the pixels, too.
    """
    texts = [[row.text for row in side] for side in sides]
    begins = [[row.begin for row in side] for side in sides]
    groups = groups or [[row] for row in range(len(images))]
    shown = [images[group[0]] for group in groups]
    batch = encode_groups(processor, family, texts[0], begins[0], shown, groups, _reader(known))
    again = zip(texts[1:], begins[1:], strict=True)
    found = [batch, *(encode_again(processor, family, text, images, batch, begins=begin) for text, begin in again)]
    for branch, side in zip(found, sides, strict=True):
        branch["completion_mask"] = answer_mask(branch, [row.answers for row in side]).long()
    return found


def stack(processor: Any, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to the tokens of two branches, ``[B, T]`` of different T, as ``[2B, max T]``."""
    pad = {"input_ids": processor.tokenizer.pad_token_id}
    return {key: stacked(first[key], second[key], pad.get(key, 0)) for key in second}


def rendered(processor: Any, row: Mapping[str, Any], side: str | None = None) -> Said:
    """A row as text, from the columns ``vlmtrain.lengths.fit`` adds or else rendered now.

    Args:
        processor: of the model.
        row: of messages, or of preferences.
        side: ``chosen`` or ``rejected``; assistant turns of the prompt are context, not what is preferred.
    """
    prefix = f"{side}_" if side else ""
    if f"{prefix}text" in row:
        return Said(*(row[f"{prefix}{name}"] for name in Said._fields))
    if side is None:
        found = render(processor, row["messages"])
        return Said(found.text, found.answers, found.begin)
    found = render(processor, [*row["prompt"], *row[side]])
    turns = sum(turn["role"] == "assistant" for turn in row[side])
    return Said(found.text, found.answers[-turns:], found.begin)


def _reader(known: Mapping[str, Known] | None) -> Callable[..., Any]:
    """What reads rows: of all images, or of those that are not known."""
    if known is None:
        return functools.partial(_encode_all, side="right")
    return functools.partial(encode_known, known=known)


def _encode_all(
    processor: Any, family: Family, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], **given: Any
) -> dict[str, Any]:
    return dict(encode(processor, family, texts, [list(shown) for shown in images], **given))


def _begin(processor: Any, messages: Messages) -> int | None:
    """Where the assistant first speaks in a prompt."""
    spoken = any(message["role"] == "assistant" for message in messages)
    return render(processor, messages).begin if spoken else None
