"""Your own conversations in a JSON file, as LLaMA-Factory reads them.

Link: https://github.com/hiyouga/LLaMA-Factory/tree/main/data (mllm_demo.json, v1_multimodal_demo.jsonl).
Licence: your own.

Raw row::

    {"messages": [{"role": "user", "content": "<image>Read the plate."}, {"role": "assistant", "content": "..."}],
     "images": ["photos/1.jpg"], "system": "optional"}

``conversations`` with ``from``/``value`` is read too, with the usual role names (human, gpt, bot, observation ...),
``image`` for a single picture, ``{bytes, path}`` in place of a path, and content lists of
``{"type": "text", "value": ...}`` and ``{"type": "image_url", "value": path}``.

Record: the conversation, the images where the marks stand, in any user turn; the option ``image_position`` moves
none of them. Paths start from the image root (the folder of the JSON file unless given).

Rejected: more or fewer marks than images, an unknown role, a blank answer, an empty turn, an image outside a user
turn, videos or sounds, a path that is missing or leads out of the image root.
"""

from __future__ import annotations

from vlmdata.errors import RecordError
from vlmdata.fields import meta_text, text_value
from vlmdata.marks import conversation, refuse_media, row_images
from vlmdata.records import Record, Sample
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One conversation."""
    refuse_media(row)
    turns = row.get("messages") if row.get("messages") is not None else row.get("conversations")
    if turns is None:
        raise RecordError("wrong_fields", "neither messages nor conversations")
    messages, images = conversation(turns, row_images(row), text_value(row, "system"))
    meta = {"raw_id": meta_text(row["id"])} if row.get("id") is not None else {}
    return [Sample(row_id, images, messages, "ocr_json", meta=meta)]


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"messages"}), frozenset({"conversations"})),
    optional=frozenset({"id", "image", "images", "system"}),
    convert=convert,
    url="https://github.com/hiyouga/LLaMA-Factory/tree/main/data",
    licence="your own",
    summary="your own JSON: messages with <image> marks, and a list of images",
)
