"""What chat files agree on loosely: ``<image>`` marks in texts, role names, content lists.

Shared by the sources that read conversations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmdata.errors import RecordError, choices
from vlmdata.fields import image_value
from vlmdata.records import Image, Message, Part, image, text

__all__ = ["MARK", "ROLE_ALIASES", "conversation", "role", "split_marks"]

MARK = "<image>"

ROLE_ALIASES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}


def role(name: Any) -> str:
    """The role that a name in a chat file means.

    Raises:
        RecordError: ``unknown_role``.
    """
    known = ROLE_ALIASES.get(name.strip().lower()) if isinstance(name, str) else None
    if known is None:
        raise RecordError("unknown_role", f"{name!r} is none of {choices(ROLE_ALIASES)}")
    return known


def split_marks(value: str) -> tuple[Part, ...]:
    r"""The parts of a text with ``<image>`` marks, in the order they are written.

    Blanks and line ends beside a mark only separate it from the text (``"<image>\nWho?"``) and are left out:
    chat templates bring their own. A text without marks stays as it is.
    """
    if MARK not in value:
        return (text(value),)
    pieces = value.split(MARK)
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        if index:
            parts.append(image())
            piece = piece.lstrip()
        if index < len(pieces) - 1:
            piece = piece.rstrip()
        if piece:
            parts.append(text(piece))
    return tuple(parts)


def conversation(
    turns: Any, images: Sequence[Image], system: str | None = None
) -> tuple[tuple[Message, ...], tuple[Image, ...]]:
    """Read a list of turns: ``role``/``content`` or ``from``/``value``, texts with marks or content lists.

    Args:
        turns: the raw list. A content list holds ``{type: text|image|image_url}`` parts; an image part brings its
            own image or stands for the next one of ``images``.
        images: the row's images, in the order of the marks.
        system: a system prompt that stands beside the list.

    Returns:
        The messages, and all images in the order of their places.

    Raises:
        RecordError: a turn cannot be read, or marks and images do not match.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise RecordError("wrong_fields", f"the turns are {type(turns).__name__}, expected a list")
    waiting = list(images)
    messages: list[Message] = []
    placed: list[Image] = []
    places = 0
    if system and system.strip():
        messages.append(Message("system", (text(system),)))
    for turn in turns:
        name, content = _role_and_content(turn)
        parts: list[Part] = []
        for part, own in _parts(content):
            parts.append(part)
            if part.type == "image":
                places += 1
                if own is not None:
                    placed.append(own)
                elif waiting:
                    placed.append(waiting.pop(0))
        messages.append(Message(role(name), tuple(parts)))
    if waiting or places != len(placed):
        own_images = len(placed) + len(waiting)
        raise RecordError("image_count", f"{places} {MARK} marks in the text, {own_images} images")
    return tuple(messages), tuple(placed)


def _role_and_content(turn: Any) -> tuple[Any, Any]:
    if not isinstance(turn, Mapping):
        raise RecordError("wrong_fields", f"a turn is {type(turn).__name__}, expected an object")
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if role_key in turn and content_key in turn:
            return turn[role_key], turn[content_key]
    found = choices(map(str, turn))
    raise RecordError("wrong_fields", f"a turn has {found}; expected role and content, or from and value")


def _parts(content: Any) -> Iterator[tuple[Part, Image | None]]:
    """Parts, each image part with the image it brings itself, if any."""
    if content is None:
        return
    if isinstance(content, str):
        yield from ((part, None) for part in split_marks(content))
        return
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RecordError("wrong_fields", f"a turn's content is {type(content).__name__}, expected a text or a list")
    for item in content:
        yield _list_part(item)


def _list_part(item: Any) -> tuple[Part, Image | None]:
    if isinstance(item, str):
        return text(item), None
    if not isinstance(item, Mapping):
        raise RecordError("bad_part", f"a content part is {type(item).__name__}, expected an object")
    kind = item.get("type")
    if kind == "text":
        value = item.get("text", item.get("value"))
        if not isinstance(value, str):
            raise RecordError("bad_part", f"a text part has text {value!r}")
        return text(value), None
    if kind in ("image", "image_url"):
        value = next((item[key] for key in ("value", "image", "image_url", "path", "url") if item.get(key)), None)
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        return image(), None if value is None else image_value(value)
    raise RecordError("bad_part", f"a content part is of type {kind!r}, expected text, image or image_url")
