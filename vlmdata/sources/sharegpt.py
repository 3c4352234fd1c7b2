"""ShareGPT conversations as LLaMA-Factory reads them, or pairs of answers to one.

Link: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md (section "Sharegpt Format").
Licence: your own.

Raw row::

    {"conversations": [{"from": "human", "value": "<image>Who is it?"}, {"from": "gpt", "value": "A player."}],
     "images": ["photos/1.jpg"], "system": "optional", "tools": "optional"}

or, with a better and a worse answer to the last question::

    {"conversations": [{"from": "human", "value": "<image>Who is it?"}],
     "chosen": {"from": "gpt", "value": "A player."}, "rejected": {"from": "gpt", "value": "A dog."},
     "images": ["photos/1.jpg"]}

``messages`` with ``role``/``content`` is read too, ``image`` for a single picture, and ``{bytes, path}`` in place of
a path. ``observation`` is a tool's turn, ``function_call`` the assistant's.

Record: the conversation with the images where the marks stand; where the first rows have ``chosen`` and
``rejected``, a preference. ``tools`` is kept in ``meta``.

Rejected: more or fewer marks than images, an unknown role, a blank answer, an image outside a user turn, two answers
that are the same, videos or sounds, a path that is missing or leads out of the image root.
"""

from __future__ import annotations

from vlmdata.marks import chat_records
from vlmdata.records import Record
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One conversation, or one preference."""
    return chat_records(row, row_id, options, "sharegpt")


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"conversations"}), frozenset({"messages"})),
    preference_columns=(
        frozenset({"conversations", "chosen", "rejected"}),
        frozenset({"messages", "chosen", "rejected"}),
    ),
    optional=frozenset({"id", "image", "images", "system", "tools"}),
    convert=convert,
    url="https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md",
    licence="your own",
    summary="conversations of from/value turns with <image> marks, or pairs of answers",
)
