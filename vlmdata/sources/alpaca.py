"""Alpaca instructions as LLaMA-Factory reads them, or pairs of answers to one.

Link: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md (section "Alpaca Format").
Licence: your own.

Raw row::

    {"instruction": "<image>Read the plate.", "input": "optional", "output": "AB 12", "images": ["photos/1.jpg"],
     "history": [["An earlier question", "its answer"]], "system": "optional", "tools": "optional"}

or with two texts ``chosen`` and ``rejected`` in place of ``output``.

Record: the earlier turns, then instruction and input on two lines, then the answer. Images stand where the marks
are; in a row without any mark they stand in the first question (``image_position``). ``tools`` is kept in ``meta``.

Rejected: more or fewer marks than images, a blank answer, a blank question without image, a history that is no list
of pairs, two answers that are the same, videos or sounds, a path that is missing or leads out of the image root.
"""

from __future__ import annotations

from vlmdata.marks import instruction_records
from vlmdata.records import Record
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One conversation, or one preference."""
    return instruction_records(row, row_id, options, "alpaca")


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"instruction", "output"}),),
    preference_columns=(frozenset({"instruction", "chosen", "rejected"}),),
    optional=frozenset({"history", "id", "image", "images", "input", "system", "tools"}),
    convert=convert,
    url="https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md",
    licence="your own",
    summary="instruction, input and output, with images and history, or pairs of answers",
)
