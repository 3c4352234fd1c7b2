"""Your own pairs of a better and a worse answer, in JSON, JSON Lines, CSV, TSV or Parquet.

Link: https://huggingface.co/docs/trl/dataset_formats (section "Preference": what the pairs become).
Licence: your own.

Raw row::

    {"image": "photos/1.jpg", "question": "What is shown?", "chosen": "A cat.", "rejected": "A dog."}

``prompt`` in place of ``question``, ``images`` for several pictures, ``{bytes, path}`` in place of a path. Columns
of other names are given with ``--columns question=instruction,chosen=good,rejected=bad``.

Record: a preference. Images stand where ``<image>`` marks are in the question, else before it (``image_position``);
``<image>`` in an answer is text. All other columns are kept in ``meta``.

Rejected: no image, more or fewer marks than images, a blank question, a blank answer, two answers that are the same,
a path that is missing or leads out of the image root.
"""

from __future__ import annotations

from vlmdata.errors import RecordError
from vlmdata.fields import kept, text_value
from vlmdata.marks import asked, row_images
from vlmdata.records import Message, Preference, Record, text
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]

_READ = frozenset({"chosen", "image", "images", "prompt", "question", "rejected"})


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One preference."""
    question = text_value(row, "question" if row.get("question") is not None else "prompt")
    if not question.strip():
        raise RecordError("empty_turn", "the question is blank")
    images = row_images(row)
    if not images:
        raise RecordError("image_missing", "the row has no image")
    prompt = Message("user", asked(question, len(images), options.image_position))
    chosen, rejected = (Message("assistant", (text(text_value(row, name)),)) for name in ("chosen", "rejected"))
    meta = kept(row, (name for name in row if isinstance(name, str) and name not in _READ))
    return [Preference(row_id, images, (prompt,), (chosen,), (rejected,), "pairs", meta=meta)]


SOURCE = Source(
    kind="preference",
    columns=tuple(
        frozenset({images, question, "chosen", "rejected"})
        for images in ("image", "images")
        for question in ("question", "prompt")
    ),
    convert=convert,
    url="https://huggingface.co/docs/trl/dataset_formats",
    licence="your own",
    summary="your own pairs: image, question, chosen and rejected in JSON, CSV or Parquet",
)
