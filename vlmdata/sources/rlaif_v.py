"""RLAIF-V: pairs of a better and a worse answer to a question about a picture.

Link: https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset (Yu et al. 2024, arXiv:2405.17220).
Licence: CC-BY-NC-4.0.

Raw row::

    {"image": {"bytes": ..., "path": ...}, "question": "...", "chosen": "...", "rejected": "...",
     "ds_name": "...", "origin_dataset": "...", "origin_split": "{...}", "idx": "17", "image_path": "..."}

Record: a preference; the image and the question are the prompt.

Rejected: a blank question, a blank answer, two answers that are the same, an image without bytes.
"""

from __future__ import annotations

from vlmdata.errors import RecordError
from vlmdata.fields import image_value, meta_text, text_value
from vlmdata.records import Message, Preference, Record, image, text
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]

_KEPT = ("ds_name", "idx", "image_path", "origin_dataset", "origin_split")


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One preference."""
    question = text_value(row, "question")
    if not question.strip():
        raise RecordError("empty_turn", "question is blank")
    parts = (image(), text(question))
    prompt = Message("user", parts if options.image_position == "first" else parts[::-1])
    chosen, rejected = (Message("assistant", (text(text_value(row, name)),)) for name in ("chosen", "rejected"))
    meta = {name: meta_text(row[name]) for name in _KEPT if row.get(name) is not None}
    return [
        Preference(row_id, (image_value(row.get("image")),), (prompt,), (chosen,), (rejected,), "rlaif_v", meta=meta)
    ]


SOURCE = Source(
    kind="preference",
    columns=(frozenset({"image", "question", "chosen", "rejected"}),),
    optional=frozenset(_KEPT),
    convert=convert,
    url="https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset",
    hub_id="openbmb/RLAIF-V-Dataset",
    licence="CC-BY-NC-4.0",
    summary="a better and a worse answer to a question about one picture",
)
