r"""RLHF-V: a person's correction of an answer about a picture, and the answer.

Link: https://huggingface.co/datasets/openbmb/RLHF-V-Dataset (Yu et al. 2023, arXiv:2312.00849).
Licence: CC-BY-NC-4.0.

Raw row::

    {"image": {"bytes": ..., "path": ...}, "text": "{\"question\": ..., \"chosen\": ..., \"rejected\": ...}",
     "ds_name": "...", "origin_dataset": "...", "origin_split": "{...}", "idx": 17, "image_path": "..."}

``text`` is an object written as JSON; an object itself is read too.

Record: a preference; the image and the question are the prompt (``image_position``).

Rejected: a text that is no such object, a blank question, a blank answer, two answers that are the same, an image
without bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlmdata.errors import RecordError
from vlmdata.fields import image_value, meta_text, shown, text_value
from vlmdata.records import Message, Preference, Record, image, text
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]

_KEPT = ("ds_name", "idx", "image_path", "origin_dataset", "origin_split")


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One preference."""
    pair = _pair(row.get("text"))
    question = text_value(pair, "question")
    if not question.strip():
        raise RecordError("empty_turn", "question is blank")
    parts = (image(), text(question))
    prompt = Message("user", parts if options.image_position == "first" else parts[::-1])
    chosen, rejected = (Message("assistant", (text(text_value(pair, name)),)) for name in ("chosen", "rejected"))
    meta = {name: meta_text(row[name]) for name in _KEPT if row.get(name) is not None}
    return [
        Preference(row_id, (image_value(row.get("image")),), (prompt,), (chosen,), (rejected,), "rlhf_v", meta=meta)
    ]


def _pair(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RecordError("wrong_fields", f"text is no JSON ({error}): {shown(value)}") from None
    if not isinstance(value, Mapping):
        raise RecordError("wrong_fields", f"text is {type(value).__name__}, expected question, chosen and rejected")
    return value


SOURCE = Source(
    kind="preference",
    columns=(frozenset({"image", "text", "ds_name"}),),
    optional=frozenset(_KEPT),
    convert=convert,
    url="https://huggingface.co/datasets/openbmb/RLHF-V-Dataset",
    hub_id="openbmb/RLHF-V-Dataset",
    licence="CC-BY-NC-4.0",
    summary="a person's correction of an answer about one picture, and the answer",
)
