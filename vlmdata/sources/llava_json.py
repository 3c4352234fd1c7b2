r"""LLaVA's instruction files: one picture and a conversation a row.

Link: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md (Liu et al. 2023, arXiv:2304.08485).
Licence: that of the data set; give it with ``--licence``.

Raw row::

    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
                       {"from": "gpt", "value": "White and red."}]}

Rows without ``image`` are conversations in text alone; ``image`` may be a list of several.

Record: the conversation, the image where its mark stands. Paths start from the image root (``--image-root``, the
folder that the picture folders lie in).

Rejected: more or fewer marks than images, an unknown role, a blank answer, an image outside a user turn, a path that
is missing or leads out of the image root.
"""

from __future__ import annotations

from vlmdata.errors import RecordError
from vlmdata.fields import images_value, kept
from vlmdata.marks import conversation, refuse_media
from vlmdata.records import Record, Sample
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One conversation."""
    refuse_media(row)
    turns = row.get("conversations")
    if turns is None:
        raise RecordError("wrong_fields", "conversations is missing")
    messages, images = conversation(turns, images_value(row.get("image")))
    return [Sample(row_id, images, messages, "llava_json", meta=kept(row, ("id", "model")))]


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"image", "conversations"}),),
    optional=frozenset({"id", "model"}),
    convert=convert,
    url="https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md",
    licence="that of the data set",
    summary="LLaVA's JSON: id, image path and conversations of human and gpt",
)
