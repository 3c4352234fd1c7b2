"""Football captions: a picture and its caption.

Link: https://huggingface.co/datasets/ybelkada/football-dataset (6 rows; a smoke test for captioning).
Licence: none stated.

Raw row: ``{"image": {"bytes": ..., "path": ...}, "text": "Benzema after ..."}``. An image folder gives the same
rows: captions in ``metadata.jsonl`` or ``metadata.csv`` (``file_name``, ``text``), or in a text file beside each
picture.

Record: the picture with the default request "Describe this image." (``prompt``; "" leaves the picture alone, as a
captioning model wants it), the caption as the answer.

Rejected: a blank caption, an image without bytes.
"""

from __future__ import annotations

from vlmdata.fields import image_value, text_value
from vlmdata.records import Message, Record, Sample, image, text
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]

_PROMPT = "Describe this image."


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One captioned picture as a conversation."""
    prompt = _PROMPT if options.prompt is None else options.prompt
    words = (text(prompt),) if prompt.strip() else ()
    content = (image(), *words) if options.image_position == "first" else (*words, image())
    messages = (Message("user", content), Message("assistant", (text(text_value(row, "text")),)))
    return [Sample(row_id, (image_value(row.get("image")),), messages, "football")]


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"image", "text"}),),
    convert=convert,
    url="https://huggingface.co/datasets/ybelkada/football-dataset",
    hub_id="ybelkada/football-dataset",
    licence="none stated",
    summary="a picture and its caption",
    prompt=_PROMPT,
)
