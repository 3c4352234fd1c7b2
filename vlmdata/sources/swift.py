"""Data of ms-swift: messages with images, or with a second, worse answer.

Link: https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html
Licence: your own.

Raw row::

    {"messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["cat.png"], "system": "optional", "tools": "optional", "objects": "optional",
     "rejected_response": "A dog."}

``query``, ``response`` and ``history`` in place of ``messages``, or ``rejected_messages`` (a whole conversation) in
place of ``rejected_response``, are read too.

Record: the conversation with the images where the marks stand. As in ms-swift, images that have no mark stand at
the beginning of the first user turn (``image_position`` moves these). With a rejected answer a preference: the turns
that both conversations share are the prompt. ``tools`` and ``objects`` (boxes for grounding) are kept in ``meta``;
``<bbox>`` and ``<ref-object>`` in texts are left as they are.

Rejected: more marks than images, an image outside a user turn, a blank answer, an unknown role, two answers that are
the same, rejected images that are not the images, videos or sounds, a path that is missing or leads out of the image
root.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from vlmdata.errors import RecordError
from vlmdata.fields import images_value, kept, text_value
from vlmdata.marks import answer, conversation, history_turns, refuse_media, row_images
from vlmdata.records import Image, Message, Preference, Record, Sample
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One conversation, or one preference."""
    refuse_media(row)
    meta = kept(row, ("id", "label", "objects", "tools"))
    given = row_images(row)
    messages, images = _read(_turns(row), given, row, options)
    whole = row.get("rejected_messages")
    other = row.get("rejected_response")
    is_pair = whole is not None or other is not None
    if is_pair and options.kind == "messages":
        raise RecordError("wrong_fields", "the row has a rejected answer, in a file that is read as conversations")
    if not is_pair and options.kind != "preference":
        return [Sample(row_id, images, messages, "swift", meta=meta)]
    if whole is not None:
        other_images = row.get("rejected_images")
        if other_images is not None and images_value(other_images) != given:
            raise RecordError("wrong_fields", "rejected_images are not images; both answers are about the same ones")
        second, _ = _read(whole, given, row, options)
        prompt = _shared(messages, second)
        chosen, rejected = messages[len(prompt) :], second[len(prompt) :]
    else:
        prompt, chosen = messages[:-1], messages[-1:]
        rejected = answer(other, "rejected_response")
    return [Preference(row_id, images, prompt, chosen, rejected, "swift", meta=meta)]


def _turns(row: Row) -> Any:
    if row.get("messages") is not None:
        return row["messages"]
    if row.get("query") is None or row.get("response") is None:
        raise RecordError("wrong_fields", "neither messages nor query and response")
    return [
        *history_turns(row.get("history")),
        {"role": "user", "content": text_value(row, "query")},
        {"role": "assistant", "content": text_value(row, "response")},
    ]


def _read(
    turns: Any, images: Sequence[Image], row: Row, options: Options
) -> tuple[tuple[Message, ...], tuple[Image, ...]]:
    system = text_value(row, "system")
    return conversation(turns, images, system, missing="always", position=options.image_position)


def _shared(one: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns both begin with, up to the last that is not the assistant's."""
    both = zip(one, other, strict=False)
    count = sum(1 for _ in takewhile(lambda turns: turns[0] == turns[1], both))
    while count and one[count - 1].role == "assistant":
        count -= 1
    return one[:count]


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"messages"}), frozenset({"query", "response"})),
    preference_columns=(
        frozenset({"messages", "rejected_response"}),
        frozenset({"messages", "rejected_messages"}),
        frozenset({"query", "response", "rejected_response"}),
    ),
    optional=frozenset({"history", "id", "image", "images", "label", "objects", "rejected_images", "system", "tools"}),
    convert=convert,
    url="https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html",
    licence="your own",
    summary="ms-swift's messages with <image> marks, or with a rejected response",
)
