"""Your own table of pictures and texts: CSV or TSV with a header line.

Link: https://www.rfc-editor.org/rfc/rfc4180 (what CSV is).
Licence: your own.

Raw row (``--image-root`` is where the paths start, the table's folder unless given)::

    image,question,answer
    photos/1.jpg,What does the plate say?,AB 12

``prompt`` in place of ``question``; ``caption`` or ``text`` in place of ``answer``. Columns of other names are given
with ``--columns image=file,answer=label``. Cells stay the text they are (007 is 007, NA is NA); an empty one is null.
JSON and Parquet with these columns are read too.

Record: the picture with the question, or where there is none with "Describe this image." (``prompt``; "" leaves the
picture alone), and the answer. The image stands where ``<image>`` is in the question, else before it
(``image_position``); ``<image>`` in an answer is text. All other columns are kept in ``meta``.

Rejected: a line with more cells than the header, an empty image cell, a blank answer, a path that is missing or leads
out of the image root.
"""

from __future__ import annotations

from vlmdata.fields import image_value, kept, text_value
from vlmdata.marks import asked
from vlmdata.records import Message, Record, Sample, text
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]

_PROMPT = "Describe this image."
_QUESTIONS = ("question", "prompt")
_ANSWERS = ("answer", "caption", "text")


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One question about one picture, or one caption."""
    used = {"image"}
    question, answer = "", ""
    for name in _QUESTIONS:
        if row.get(name) is not None:
            question = text_value(row, name)
            used.add(name)
            break
    for name in _ANSWERS:
        if row.get(name) is not None:
            answer = text_value(row, name)
            used.add(name)
            break
    if not question.strip():
        question = _PROMPT if options.prompt is None else options.prompt
    user = Message("user", asked(question, 1, options.image_position))
    meta = kept(row, (name for name in row if isinstance(name, str) and name not in used))
    messages = (user, Message("assistant", (text(answer),)))
    return [Sample(row_id, (image_value(row.get("image")),), messages, "table", meta=meta)]


SOURCE = Source(
    kind="messages",
    columns=tuple(frozenset({"image", answer}) for answer in _ANSWERS),
    optional=frozenset(_QUESTIONS),
    convert=convert,
    url="https://www.rfc-editor.org/rfc/rfc4180",
    licence="your own",
    summary="your own CSV or TSV: image paths with questions and answers, or with captions",
    prompt=_PROMPT,
)
