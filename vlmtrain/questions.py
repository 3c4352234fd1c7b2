"""What is asked of a loaded model, as batches: prompts to be continued, given answers to be ranked, and their lengths.

Encoded as training encodes rows (``vlmtrain.collate``), so that what a model is asked is what it was trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmtrain.chat import Messages, end_token, has_image_mark, image_mark, image_places, render_prompt
from vlmtrain.collate import IGNORED, Collator, branches, prompt_batch, rendered
from vlmtrain.encode import encode, encode_again, text_length
from vlmtrain.features import image_features
from vlmtrain.trl_seam import image_tokens

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from vlmtrain.family import Family
    from vlmtrain.model import Loaded

__all__ = ["Questions", "pixels_once"]

Size = tuple[int, int]
_PLAIN = [("user", "a b"), ("assistant", "c"), ("user", "d")]


class Questions:
    """Encodes for one model.

    Attributes:
        processor: of the model.
        family: of the model.
    """

    def __init__(self, loaded: Loaded, *, own: bool = False) -> None:
        """Take what encodes.

        Args:
            loaded: whose questions they are.
            own: with a copy of the processor, for another thread: a tokenizer that encodes cannot decode meanwhile.
        """
        self.processor: Any = copy.deepcopy(loaded.processor) if own else loaded.processor
        self.family: Family = loaded.family
        self._tokens: dict[Size, int] = {}

    def fault(self, turns: Messages, images: int, answers: Sequence[str] = ()) -> str | None:
        """Why this cannot be asked, in a few words; None where nothing stands in the way.

        Args:
            turns: in shard form.
            images: how many pictures there are.
            answers: that are to be ranked.
        """
        places = sum(part["type"] == "image" for turn in turns for part in turn["content"])
        if places != images:
            return f"{places} image parts and {images} images"
        if has_image_mark(self.processor, [*turns, *map(_said, answers)]):
            return f"a text contains {image_mark(self.processor)!r}, this model's image token"
        if self.family.max_images is not None and places > self.family.max_images:
            return f"{places} images; this family takes at most {self.family.max_images}"
        if any(not answer.strip() for answer in answers):
            return "one of the answers is blank"
        return None

    def prompts(self, conversations: Sequence[Messages], images: Sequence[Sequence[Image]]) -> Any:
        """See :func:`vlmtrain.collate.prompt_batch`."""
        return prompt_batch(self.processor, self.family, conversations, images)

    def rows(
        self, conversations: Sequence[Messages], images: Sequence[Sequence[Image]], answers: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Conversations with given answers, as preference training encodes its rows; images are processed once.

        Args:
            conversations: B message lists in shard form, each ending with a user's turn.
            images: their pictures.
            answers: for each of them K answers.

        Returns:
            For each of the K answers a batch ``[B, T]`` with ``completion_mask``; the first one has the pixels, too.
        """
        sides = [
            [
                rendered(self.processor, {"prompt": turns, "chosen": [_said(own[place])]}, "chosen")
                for turns, own in zip(conversations, answers, strict=True)
            ]
            for place in range(len(answers[0]))
        ]
        return branches(self.processor, self.family, sides, [list(shown) for shown in images])

    def beginning(self, turns: Messages) -> str:
        """What stands before the last image of a prompt and for it, as it is written; empty where there is none."""
        text = render_prompt(self.processor, turns)
        marks = image_places(self.processor, text)
        return text[: marks[-1][1]] if marks else ""

    def shown(self, turns: Messages, images: Sequence[Image]) -> dict[str, Any]:
        """A prompt with its images, as :func:`vlmtrain.encode.encode` reads a row of a family that folds."""
        text = render_prompt(self.processor, turns)
        return dict(encode(self.processor, self.family, [text], [list(images)], side="right"))

    def asked(self, turns: Messages, images: int, shown: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What belongs to the tokens, ``[1, T]`` each, of a prompt on images that are not looked at again.

        Args:
            turns: in shard form, with as many images as ``shown`` has.
            images: how many these are.
            shown: of :meth:`shown`, of any prompt on the same images.
        """
        text = render_prompt(self.processor, turns)
        # Only how many pictures there are is read of them.
        found = encode_again(self.processor, self.family, [text], [[None] * images], shown)  # type: ignore[list-item]
        return {key: value for key, value in found.items() if key.endswith(("_ids", "_mask"))}

    def length(self, turns: Messages, sizes: Sequence[Size], answers: Sequence[str] = ()) -> int:
        """How many tokens a prompt takes, with the longest of the answers; no picture is looked at.

        Args:
            turns: in shard form.
            sizes: width and height of each image.
            answers: that are to be ranked.

        Raises:
            VlmError, ValueError: it cannot be read.
        """
        for size in sizes:
            if size not in self._tokens:
                self._tokens[size] = image_tokens(self.processor, [size], self.family)[0]
        text = text_length(self.processor, self.family, render_prompt(self.processor, turns), len(sizes))
        longest = max((len(self.processor.tokenizer(answer)["input_ids"]) for answer in answers), default=0)
        return text + sum(self._tokens[size] for size in sizes) + longest

    def first_tokens(self, words: Sequence[str]) -> list[int]:
        """The first token of each word, as training writes it after the generation prompt."""
        rows = [{"messages": [_turn("user", "a"), _said(word)], "images": []} for word in words]
        found = []
        for row in rows:
            batch = Collator(self.processor, self.family)([row])
            found.append(int(batch["labels"][batch["labels"] != IGNORED][0]))
        return found

    def prompt_format(self) -> list[Any]:
        """All that decides how a conversation is written: what a change of it would change."""
        plain = [_turn(role, text) for role, text in _PLAIN]
        texts = [render_prompt(self.processor, turns) for turns in (plain[:1], plain)]
        template = str(self.processor.chat_template)
        return [self.family.name, template, texts, image_mark(self.processor), end_token(self.processor)]


def pixels_once(net: Any, family: Family, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a model's forward takes instead of the pixels of a batch: its tower's features, for several forwards.

    Args:
        net: the transformers model.
        family: of the model.
        batch: the pixel inputs, on the model's device.
    """
    if "pixel_values" not in batch:
        return dict(batch)
    seen = {key: batch[key] for key in ("pixel_values", *family.feature_inputs) if key in batch}
    kept = {key: value for key, value in batch.items() if key != "pixel_values"}
    return kept | (family.features or image_features)(net, seen, 1)


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _said(text: str) -> dict[str, Any]:
    return _turn("assistant", text)
