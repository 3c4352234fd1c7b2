"""Data sets in the forms TRL trains on: conversations, prompt and completion, or preferences.

Link: https://huggingface.co/docs/trl/dataset_formats (such as trl-lib/llava-instruct-mix, trl-lib/rlaif-v,
HuggingFaceH4/rlaif-v_formatted and HuggingFaceH4/llava-instruct-mix-vsft; give one as RAW).
Licence: that of the data set; give it with ``--licence``.

Raw row, one of::

    {"images": [...], "messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    {"images": [...], "prompt": ..., "completion": ...}
    {"images": [...], "prompt": ..., "chosen": ..., "rejected": ...}

``image`` holds a single picture in place of ``images``. Prompt and answers are lists of messages, or one text.
Content is a text, or a list of ``{"type": "text", "text": ...}`` and ``{"type": "image"}`` parts.

Record: the conversation or the preference. As in TRL, image parts stand for the images in order, and all images go
before the first user turn whose content is a text (``image_position`` moves these). ``<image>`` in a text is text.

Rejected: more or fewer image parts than images, an image in an answer, a blank answer, a turn with tool calls only,
two answers that are the same, an image without bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.errors import RecordError
from vlmdata.fields import kept
from vlmdata.marks import answer, conversation, row_images
from vlmdata.records import Image, Message, Preference, Record, Sample
from vlmdata.source import Options, Row, Source, wants_preference

__all__ = ["SOURCE", "convert"]


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One conversation, or one preference."""
    meta = kept(row, ("id",))
    if wants_preference(row, options):
        prompt, images = _read(_turns(row.get("prompt"), "prompt", "user"), row, options)
        chosen, rejected = (answer(row.get(name), name, marks=False) for name in ("chosen", "rejected"))
        return [Preference(row_id, images, prompt, chosen, rejected, "trl", meta=meta)]
    if row.get("messages") is not None:
        turns = _turns(row["messages"], "messages", None)
    else:
        turns = [
            *_turns(row.get("prompt"), "prompt", "user"),
            *_turns(row.get("completion"), "completion", "assistant"),
        ]
    messages, images = _read(turns, row, options)
    return [Sample(row_id, images, messages, "trl", meta=meta)]


def _read(turns: Sequence[Any], row: Row, options: Options) -> tuple[tuple[Message, ...], tuple[Image, ...]]:
    return conversation(turns, row_images(row), marks=False, missing="text", position=options.image_position)


def _turns(value: Any, name: str, role: str | None) -> Sequence[Any]:
    """A list of turns; one text is the turn of a role."""
    if isinstance(value, str) and role is not None:
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping) and role is not None:
        return [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RecordError("wrong_fields", f"{name} is {type(value).__name__}, expected a list of messages or a text")
    return value


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"messages"}), frozenset({"prompt", "completion"})),
    preference_columns=(frozenset({"prompt", "chosen", "rejected"}),),
    optional=frozenset({"id", "image", "images"}),
    convert=convert,
    url="https://huggingface.co/docs/trl/dataset_formats",
    licence="that of the data set",
    summary="what TRL trains on: messages, prompt and completion, or prompt, chosen, rejected",
)
