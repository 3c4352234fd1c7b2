"""A folder of pictures with a metadata file, or with one subfolder for each class: the imagefolder of ``datasets``.

Link: https://huggingface.co/docs/datasets/image_dataset
Licence: your own.

Raw row, of ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet`` in the folder or in its subfolders::

    {"file_name": "0001.jpg", "text": "A cat on a mat."}
    {"file_names": ["0001.jpg", "0002.jpg"], "question": "What changed?", "answer": "The cat left."}

``text``, ``caption``, ``answer`` or ``label`` is the answer, ``question`` or ``prompt`` the question. Without such a
file the pictures are the rows: a text file beside each picture is its caption, else the name of its folder its label.

Record: the pictures with the question, or where there is none with "What is shown in this image?" (``prompt``; ""
leaves the pictures alone), and the answer. A label is the answer in words; where the classes are folders it stands in
``label`` too. Images stand where ``<image>`` marks are in the question, else before it (``image_position``). All
other columns are kept in ``meta``.

Rejected: no picture, a blank answer, a label outside the classes, more or fewer marks than pictures, a path that is
missing or leads out of the folder.
"""

from __future__ import annotations

from typing import Any

from vlmdata.errors import RecordError
from vlmdata.fields import images_value, kept, shown, text_value
from vlmdata.marks import asked
from vlmdata.records import Message, Record, Sample, text
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]

_PROMPT = "What is shown in this image?"
_IMAGES = ("image", "images", "file_name", "file_names")
_QUESTIONS = ("question", "prompt")
_ANSWERS = ("answer", "text", "caption")


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One question about one or several pictures, or one caption or label."""
    pictures, question, words = (_first(row, names) for names in (_IMAGES, _QUESTIONS, _ANSWERS))
    images = images_value(None if pictures is None else row[pictures])
    if not images:
        raise RecordError("image_missing", "the row names no picture")
    asking = "" if question is None else text_value(row, question)
    if not asking.strip():
        asking = _PROMPT if options.prompt is None else options.prompt
    label, name = _label(row.get("label"), options.label_names)
    answer = name if words is None else text_value(row, words)
    user = Message("user", asked(asking, len(images), options.image_position))
    used = {pictures, question, words, "label"}
    meta = kept(row, (column for column in row if isinstance(column, str) and column not in used))
    if label is None and words is not None:
        meta |= kept(row, ("label",))
    messages = (user, Message("assistant", (text(answer),)))
    return [Sample(row_id, images, messages, "imagefolder", label=label, meta=meta)]


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _label(value: Any, names: tuple[str, ...]) -> tuple[int | None, str]:
    """The class index, where classes are known, and the label in words."""
    if value is None:
        return None, ""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RecordError("unknown_label", f"{shown(value)} is neither a name nor an index")
    if not names:
        return None, value.replace("_", " ") if isinstance(value, str) else shown(value)
    if isinstance(value, str) and value in names:
        return names.index(value), value.replace("_", " ")
    if isinstance(value, int) and 0 <= value < len(names):
        return value, names[value].replace("_", " ")
    raise RecordError("unknown_label", f"{shown(value)} is neither one of {len(names)} class names nor an index")


SOURCE = Source(
    kind="messages",
    columns=tuple(
        frozenset({images, answer})
        for images in ("image", "file_name", "file_names")
        for answer in (*_ANSWERS, "label")
    ),
    optional=frozenset({"images", *_QUESTIONS}),
    convert=convert,
    url="https://huggingface.co/docs/datasets/image_dataset",
    licence="your own",
    summary="a folder of pictures with metadata.jsonl or .csv, or a subfolder for each class",
    prompt=_PROMPT,
    labelled=True,
)
