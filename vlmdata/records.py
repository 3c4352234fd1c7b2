"""The vocabulary all packages share: what one row of a dataset is.

Frozen and checked on construction: a record that exists is valid. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmdata.errors import RecordError

__all__ = [
    "Image",
    "Message",
    "Part",
    "Preference",
    "Provenance",
    "ROLES",
    "Record",
    "Sample",
    "check_utf8",
    "image",
    "text",
]

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image: its bytes, or a path that the converter resolves inside the image root.

    Attributes:
        data: encoded bytes (JPEG, PNG, WebP, ...), or None when only a path is known.
        path: where the bytes came from or are to be read; kept for provenance.
    """

    data: bytes | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        """Refuse an image that is nothing at all."""
        if self.data is None and not self.path:
            raise RecordError("image_missing", "an image has neither bytes nor a path")
        if self.path is not None:
            check_utf8(self.path)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message's content: a text, or the place of the next image."""

    type: Literal["text", "image"]
    text: str | None = None

    def __post_init__(self) -> None:
        """A text part has text; an image part has none."""
        if self.type not in ("text", "image"):
            raise RecordError("bad_part", f"a content part is of type 'text' or 'image', got {self.type!r}")
        if (self.type == "text") != isinstance(self.text, str):
            raise RecordError("bad_part", f"a {self.type} part has text {self.text!r}")
        if self.text is not None:
            check_utf8(self.text)


def check_utf8(value: str) -> None:
    """Refuse a string that no file can hold: lone surrogates, as ``json`` and file names can bring them.

    Raises:
        RecordError: ``bad_text``.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError("bad_text", f"{value[:80]!a} cannot be written as UTF-8: {error.reason}") from None


def text(value: str) -> Part:
    """A text part."""
    return Part("text", value)


def image() -> Part:
    """The place of the next image."""
    return Part("image")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: a role and its parts in order."""

    role: str
    content: tuple[Part, ...]

    def __post_init__(self) -> None:
        """Known role; something in it; images in user turns only.

        TRL passes over images in tool turns and chat templates over those in system turns, so their places would
        not be filled.
        """
        if self.role not in ROLES:
            raise RecordError("unknown_role", f"{self.role!r} is not one of {', '.join(ROLES)}")
        if not any(part.type == "image" or (part.text or "").strip() for part in self.content):
            reason = "blank_answer" if self.role == "assistant" else "empty_turn"
            raise RecordError(reason, f"a turn of {self.role} has neither text nor image")
        if self.role != "user" and self.images:
            raise RecordError("image_outside_user_turn", f"a turn of {self.role} holds an image")

    @property
    def images(self) -> int:
        """How many images stand in this turn."""
        return sum(part.type == "image" for part in self.content)

    def to_json(self) -> dict[str, Any]:
        """The shard form: ``{role, content: [{type, text}]}``."""
        return {"role": self.role, "content": [{"type": p.type, "text": p.text} for p in self.content]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Message:
        """Read the shard form back.

        Raises:
            RecordError: the row is not a valid message.
        """
        try:
            return cls(row["role"], tuple(Part(p["type"], p.get("text")) for p in row["content"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise RecordError("bad_part", f"not a message of role and content: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about images; the i-th image part stands for ``images[i]``.

    Attributes:
        label: class index, for labelled pictures only; its names belong to the dataset.
        meta: anything worth keeping; JSON-serializable.
    """

    id: str
    images: tuple[Image, ...]
    messages: tuple[Message, ...]
    source: str
    label: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Image places match images; somebody answers; a system turn comes first."""
        _check_order(self.messages)
        _check_images(self.images, self.messages)
        if self.messages[-1].role != "assistant":
            raise RecordError("no_answer", f"the last turn is of {self.messages[-1].role}, expected assistant")


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse answer; images stand in the prompt only."""

    id: str
    images: tuple[Image, ...]
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    source: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Image places match images; both answers are answers, and they differ."""
        _check_order(self.prompt)
        _check_images(self.images, self.prompt)
        if self.prompt[-1].role == "assistant":
            raise RecordError("prompt_answered", "the last turn of the prompt is of assistant")
        for name, answer in (("chosen", self.chosen), ("rejected", self.rejected)):
            if not answer or answer[-1].role != "assistant":
                raise RecordError("no_answer", f"{name} does not end with an assistant turn")
            if any(message.images for message in answer):
                raise RecordError("image_outside_user_turn", f"{name} holds an image")
        if self.chosen == self.rejected:
            raise RecordError("same_answers", "chosen and rejected are the same")


Record = Sample | Preference


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a record came from.

    Attributes:
        dataset: the hub dataset, or the source's name for local files.
        config: the sub-dataset, if it has several.
        revision: the hub commit, for what was read from the hub.
        file: the raw file, as the manifest names it.
        row: number of the raw row in that file, from 0.
    """

    dataset: str
    config: str | None
    revision: str | None
    file: str
    row: int


def _check_images(images: tuple[Image, ...], messages: tuple[Message, ...]) -> None:
    places = sum(message.images for message in messages)
    if places != len(images):
        raise RecordError("image_count", f"{places} image places in the text, {len(images)} images")


def _check_order(messages: tuple[Message, ...]) -> None:
    if not messages:
        raise RecordError("no_messages", "the conversation is empty")
    if any(message.role == "system" for message in messages[1:]):
        raise RecordError("system_late", "a system turn stands after the first turn")
    speakers = [message.role for message in messages if message.role != "system"]
    if not speakers:
        raise RecordError("no_messages", "the conversation holds a system turn only")
    if speakers[0] == "assistant":
        raise RecordError("answer_first", "the first turn is of assistant, expected user")
