"""What chat files agree on loosely: ``<image>`` marks in texts, role names, content lists, pairs of answers.

Shared by the sources that read conversations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmdata.errors import RecordError, choices
from vlmdata.fields import image_value, images_value, kept, shown, text_value
from vlmdata.records import Image, Message, Part, Preference, Record, Sample, image, text
from vlmdata.source import Options, Row, wants_preference

__all__ = [
    "MARK",
    "Missing",
    "ROLE_ALIASES",
    "answer",
    "asked",
    "chat_records",
    "conversation",
    "history_turns",
    "instruction_records",
    "refuse_media",
    "role",
    "row_images",
    "split_marks",
]

MARK = "<image>"

Missing = Literal["never", "unmarked", "always", "text"]
"""When images without a place get one in the first user turn: never; when the whole conversation has no place;
whenever places are fewer than images (ms-swift); when that turn's content is one text (TRL)."""

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

_TAG_ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "function_tag": "assistant",
    "observation_tag": "tool",
    "system_tag": "system",
}
_OTHER_MEDIA = ("videos", "video", "audios", "audio")


def role(name: Any, aliases: Mapping[str, str] = ROLE_ALIASES) -> str:
    """The role that a name in a chat file means.

    Raises:
        RecordError: ``unknown_role``.
    """
    if isinstance(name, str):
        known = aliases.get(name) or aliases.get(name.strip().lower())
        if known is not None:
            return known
    raise RecordError("unknown_role", f"{shown(name)} is none of {choices(aliases)}")


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


def asked(question: str, images: int, position: Literal["first", "last"]) -> tuple[Part, ...]:
    """A user turn about images: their places where the question marks them, else all before or after it.

    A mark in a question about no image is text.
    """
    if images and MARK in question:
        return split_marks(question)
    words = (text(question),) if question.strip() else ()
    places = (image(),) * images
    return places + words if position == "first" else words + places


def row_images(row: Row) -> tuple[Image, ...]:
    """The images of a row: ``images``, or ``image`` where that is not there."""
    return images_value(row.get("images") if row.get("images") is not None else row.get("image"))


def refuse_media(row: Row) -> None:
    """Refuse a row with videos or sounds: its text speaks of what would be lost.

    Raises:
        RecordError: ``wrong_fields``.
    """
    for name in _OTHER_MEDIA:
        if row.get(name):
            raise RecordError("wrong_fields", f"the row has {name}; only texts and images are read")


def conversation(
    turns: Any,
    images: Sequence[Image],
    system: str | None = None,
    *,
    marks: bool = True,
    missing: Missing = "never",
    position: Literal["first", "last"] = "first",
    tags: Mapping[str, str] | None = None,
) -> tuple[tuple[Message, ...], tuple[Image, ...]]:
    """Read a list of turns: ``role``/``content`` or ``from``/``value``, texts with marks or content lists.

    Args:
        turns: the raw list. A content list holds ``{type: text|image|image_url}`` parts; an image part brings its
            own image or stands for the next one of ``images``.
        images: the row's images, in the order of the marks.
        system: a system prompt that stands beside the list.
        marks: whether ``<image>`` in a text is a place, or just text.
        missing: when images without a place get one.
        position: where in the first user turn they get it.
        tags: what the file calls the keys and roles of a turn, as in LLaMA-Factory's ``dataset_info.json``.

    Returns:
        The messages, and all images in the order of their places.

    Raises:
        RecordError: a turn cannot be read, or marks and images do not match.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise RecordError("wrong_fields", f"the turns are {type(turns).__name__}, expected a list")
    read = [_Turn("system", [(text(system), None)])] if system and system.strip() else []
    read += [_turn(turn, marks, tags or {}) for turn in turns]
    places = sum(1 for turn in read for part, own in turn.parts if part.type == "image" and own is None)
    lacking = len(images) - places
    first = next((turn for turn in read if turn.role == "user"), None)
    if missing == "text":
        first = next((turn for turn in read if turn.role == "user" and turn.is_text), None)
        lacking = len(images)
    if first is not None and lacking > 0 and (missing in ("always", "text") or (missing == "unmarked" and not places)):
        first.add_places(lacking, position)
    waiting = list(images)
    messages: list[Message] = []
    placed: list[Image] = []
    for turn in read:
        messages.append(Message(turn.role, tuple(part for part, _ in turn.parts)))
        for part, own in turn.parts:
            if part.type == "image" and (own is not None or waiting):
                placed.append(own if own is not None else waiting.pop(0))
    found = sum(message.images for message in messages)
    if waiting or found != len(placed):
        raise RecordError("image_count", f"{found} {MARK} marks in the text, {len(placed) + len(waiting)} images")
    return tuple(messages), tuple(placed)


def answer(value: Any, name: str, *, marks: bool = True, tags: Mapping[str, str] | None = None) -> tuple[Message, ...]:
    """An answer of a pair: a text, one turn, or a list of turns.

    Raises:
        RecordError: it is none of these; ``image_outside_user_turn`` when it holds an image.
    """
    if value is None or isinstance(value, str):
        parts = split_marks(value or "") if marks else (text(value or ""),)
        return (Message("assistant", parts),)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RecordError("wrong_fields", f"{name} is {type(value).__name__}, expected a text or turns")
    messages, images = conversation(value, (), marks=marks, tags=tags)
    if images:
        raise RecordError("image_outside_user_turn", f"{name} holds an image")
    return messages


def chat_records(row: Row, row_id: str, options: Options, source: str) -> list[Record]:
    """A row of ``conversations`` or ``messages``; with ``chosen`` and ``rejected`` these answer the conversation.

    Raises:
        RecordError: the row cannot become a record.
    """
    refuse_media(row)
    tags = dict(options.tags)
    turns = row.get("conversations") if row.get("conversations") is not None else row.get("messages")
    if turns is None:
        raise RecordError("wrong_fields", "neither conversations nor messages")
    messages, images = conversation(turns, row_images(row), text_value(row, "system"), tags=tags)
    meta = kept(row, ("id", "tools"))
    if not wants_preference(row, options):
        return [Sample(row_id, images, messages, source, meta=meta)]
    chosen, rejected = (answer(row.get(name), name, tags=tags) for name in ("chosen", "rejected"))
    return [Preference(row_id, images, messages, chosen, rejected, source, meta=meta)]


def instruction_records(row: Row, row_id: str, options: Options, source: str) -> list[Record]:
    """A row of ``instruction``, ``input`` and ``output``; with ``chosen`` and ``rejected`` in place of the output.

    Raises:
        RecordError: the row cannot become a record.
    """
    refuse_media(row)
    turns = history_turns(row.get("history"))
    question = "\n".join(words for name in ("instruction", "input") if (words := text_value(row, name)))
    turns.append({"role": "user", "content": question})
    pair = wants_preference(row, options)
    if not pair:
        turns.append({"role": "assistant", "content": text_value(row, "output")})
    messages, images = conversation(
        turns,
        row_images(row),
        text_value(row, "system"),
        missing="unmarked",
        position=options.image_position,
    )
    meta = kept(row, ("id", "tools"))
    if not pair:
        return [Sample(row_id, images, messages, source, meta=meta)]
    for name in ("chosen", "rejected"):
        text_value(row, name)
    chosen, rejected = (answer(row.get(name), name) for name in ("chosen", "rejected"))
    return [Preference(row_id, images, messages, chosen, rejected, source, meta=meta)]


def history_turns(value: Any) -> list[dict[str, str]]:
    """Earlier turns that a file gives as ``[[question, answer], ...]``, as user and assistant turns.

    Raises:
        RecordError: ``wrong_fields``.
    """
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RecordError("wrong_fields", f"history is {type(value).__name__}, expected a list of [question, answer]")
    turns: list[dict[str, str]] = []
    for before in value:
        is_pair = isinstance(before, Sequence) and not isinstance(before, str | bytes) and len(before) == 2
        if not is_pair or not all(isinstance(words, str) for words in before):
            raise RecordError("wrong_fields", f"history holds {shown(before)}, expected [question, answer]")
        turns += [{"role": "user", "content": before[0]}, {"role": "assistant", "content": before[1]}]
    return turns


@dataclass(slots=True)
class _Turn:
    """A turn while its images are being counted: each part with the image it brings itself, if any."""

    role: str
    parts: list[tuple[Part, Image | None]] = field(default_factory=list)
    is_text: bool = False

    def add_places(self, count: int, position: Literal["first", "last"]) -> None:
        """Add places for images before or after what is there."""
        places: list[tuple[Part, Image | None]] = [(image(), None)] * count
        words = [(part, own) for part, own in self.parts if part.type == "image" or (part.text or "").strip()]
        self.parts = places + words if position == "first" else words + places


def _turn(turn: Any, marks: bool, tags: Mapping[str, str]) -> _Turn:
    if not isinstance(turn, Mapping):
        raise RecordError("wrong_fields", f"a turn is {type(turn).__name__}, expected an object")
    name, content = _role_and_content(turn, tags)
    aliases = ROLE_ALIASES
    if tags:
        aliases = ROLE_ALIASES | {tags[tag]: meaning for tag, meaning in _TAG_ROLES.items() if tag in tags}
    return _Turn(role(name, aliases), list(_parts(content, marks)), isinstance(content, str))


def _role_and_content(turn: Mapping[str, Any], tags: Mapping[str, str]) -> tuple[Any, Any]:
    keys = [("role", "content"), ("from", "value")]
    if "role_tag" in tags or "content_tag" in tags:
        keys = [(tags.get("role_tag", "from"), tags.get("content_tag", "value"))]
    for role_key, content_key in keys:
        # Arrow fills keys that other rows have with null, so a key alone says nothing.
        if turn.get(role_key) is not None and content_key in turn:
            return turn[role_key], turn[content_key]
    for role_key, content_key in keys:
        if role_key in turn and content_key in turn:
            return turn[role_key], turn[content_key]
    wanted = ", or ".join(f"{role_key} and {content_key}" for role_key, content_key in keys)
    raise RecordError("wrong_fields", f"a turn has {choices(map(str, turn))}; expected {wanted}")


def _parts(content: Any, marks: bool) -> Iterator[tuple[Part, Image | None]]:
    """Parts, each image part with the image it brings itself, if any."""
    if content is None:
        return
    if isinstance(content, str):
        yield from ((part, None) for part in (split_marks(content) if marks else (text(content),)))
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
        value = item.get("text") if item.get("text") is not None else item.get("value")
        if not isinstance(value, str):
            raise RecordError("bad_part", f"a text part has text {shown(value)}")
        return text(value), None
    if kind in ("image", "image_url"):
        value = next((item[key] for key in ("value", "image", "image_url", "path", "url") if item.get(key)), None)
        if item.get("bytes") is not None:
            value = {"bytes": item["bytes"], "path": item.get("path")}
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        return image(), None if value is None else image_value(value)
    raise RecordError("bad_part", f"a content part is of type {shown(kind)}, expected text, image or image_url")
