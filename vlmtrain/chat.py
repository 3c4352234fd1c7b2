"""Conversations to text, and where in that text the assistant speaks.

The text is what the model's own chat template writes. An answer is everything between the generation prompt, as the
model sees it at inference, and the end token of that turn, which belongs to it: a model that is not trained on the
end token does not learn to stop. Templates that write no end token (the published one of LLaVA 1.5) get the
tokenizer's ``eos_token`` after each answer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError

from vlmdata.errors import ConfigError, DataError

__all__ = [
    "Rendered",
    "add_special_tokens",
    "end_token",
    "has_image_mark",
    "image_mark",
    "image_places",
    "render",
    "render_prompt",
]

Messages = Sequence[Mapping[str, Any]]
# Words that no text begins with: for private use, one character.
_OTHER = "\ue000"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: one placeholder per image, not yet expanded.
        answers: (start, end) character spans of what the assistant says, end tokens included.
    """

    text: str
    answers: tuple[tuple[int, int], ...]

    @property
    def begin(self) -> int | None:
        """Where the assistant first speaks, None where it does not."""
        return self.answers[0][0] if self.answers else None


def render(processor: Any, messages: Messages) -> Rendered:
    """A whole conversation and its answers.

    Raises:
        ConfigError: the processor has no chat template.
        DataError: the template rewrites an answer so that it cannot be found again.
    """
    messages = _plain(messages)
    full = _apply(processor, messages)
    ends, eos = _end_tokens(processor.tokenizer, image_mark(processor)), processor.tokenizer.eos_token
    answers: list[tuple[int, int]] = []
    pieces: list[str] = []
    done = grown = 0
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start, stop = _find_answer(processor, messages, turn, full, done)
        pieces.append(full[done:stop])
        found = ends.match(full, stop)
        if found:
            pieces.append(found.group())
            answers.append((start + grown, found.end() + grown))
            done = found.end()
        else:
            pieces.append(eos)
            answers.append((start + grown, stop + grown + len(eos)))
            grown += len(eos)
            done = stop
    pieces.append(full[done:])
    return Rendered("".join(pieces), tuple(answers))


def render_prompt(processor: Any, messages: Messages) -> str:
    """A conversation that ends with a user's turn, and the generation prompt after it.

    Raises:
        ConfigError: the processor has no chat template.
    """
    messages = _plain(messages)
    prompt = _apply(processor, messages, add_generation_prompt=True)
    if not any(message["role"] == "assistant" for message in messages):
        return prompt
    # Earlier answers end as they did in training: the end tokens `render` adds belong into the history too.
    bare, rendered = _apply(processor, messages), render(processor, messages).text
    return rendered + prompt[len(bare) :] if prompt.startswith(bare) else prompt


def add_special_tokens(processor: Any, text: str) -> bool:
    """Whether the tokenizer still has to add its own: not when the template already wrote the BOS token.

    Images may stand before it, as several families have it.
    """
    bos, mark = processor.tokenizer.bos_token, image_mark(processor)
    return not (bos and (re.sub(f"^(?:{re.escape(mark)})+", "", text) if mark else text).startswith(bos))


def image_mark(processor: Any) -> str | None:
    """The text that stands for an image before it is expanded; BLIP-2's processor keeps a token object there."""
    mark = getattr(processor, "image_token", None)
    return str(mark) if mark else None


def image_places(processor: Any, text: str) -> list[tuple[int, int]]:
    """Where the marks of images stand in a text."""
    mark = image_mark(processor)
    return [found.span() for found in re.finditer(re.escape(mark), text)] if mark else []


def has_image_mark(processor: Any, messages: Messages) -> bool:
    """Whether a text contains the model's image token, which would be taken for an image."""
    mark = image_mark(processor)
    return bool(mark) and any(str(mark) in (part.get("text") or "") for turn in messages for part in turn["content"])


def end_token(processor: Any) -> str:
    """The token that ends an assistant's turn, as :func:`render` writes it."""
    turns = [("user", "a"), ("assistant", "b")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    rendered = render(processor, messages)
    start, stop = rendered.answers[0]
    return rendered.text[start:stop].strip().removeprefix("b").strip()


def _plain(messages: Messages) -> list[dict[str, Any]]:
    """Without the None values Arrow fills in: some templates test for a key's presence."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _apply(processor: Any, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
    if not processor.chat_template:
        raise ConfigError(f"{type(processor).__name__} has no chat template, and its family brings none")
    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False))
    except TemplateError as error:
        raise DataError(f"the chat template refuses the conversation: {error}") from error


def _find_answer(processor: Any, messages: list[dict[str, Any]], turn: int, full: str, done: int) -> tuple[int, int]:
    """Where an answer starts (right after the generation prompt) and where its words end."""
    start = done
    exact = False
    if turn:
        prompt = _apply(processor, messages[:turn], add_generation_prompt=True)
        exact = full.startswith(prompt)
        # A template whose generation prompt says more than a finished turn: at least not in what stands before.
        before = prompt if exact else commonprefix([_apply(processor, messages[:turn]), full])
        start = max(done, len(before))
    first, stop = -1, start
    for part in messages[turn]["content"]:
        words = part["text"].strip()
        if not words:
            continue
        place = full.find(words, stop)
        if place < 0:
            raise DataError(f"the chat template rewrites the answer of turn {turn}: {words[:40]!r} is not in its text")
        first, stop = (place if first < 0 else first), place + len(words)
    if first < 0 and not exact:
        # A blank answer has no words to be found by: it is where other words would be.
        said = {"role": "assistant", "content": [{"type": "text", "text": _OTHER}]}
        other = _apply(processor, [*messages[:turn], said, *messages[turn + 1 :]])
        first = stop = max(start, len(commonprefix([other, full])))
    return (start if exact else first), stop


@functools.lru_cache(maxsize=16)
def _end_tokens(tokenizer: Any, image: str | None) -> re.Pattern[str]:
    """What may end a turn: any special token but the one that begins a text, white space before it allowed."""
    special = {tokenizer.eos_token, *tokenizer.all_special_tokens}
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special -= {None, "", image, getattr(tokenizer, "image_token", None)}
    special -= {tokenizer.bos_token} - {tokenizer.eos_token}
    return re.compile(r"\s*(?:" + "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) + ")")
