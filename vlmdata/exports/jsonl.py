"""Plain JSON Lines with the columns of the shards and the images as files: for jq, pandas and your own code.

    {"id": "plates-0", "images": ["images/3f/3f....jpg"],
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A bird."}]}],
     "source": "ocr_json", "licence": "...", "provenance": {...}, "meta": "{}", "image_sha256": ["3f..."],
     "image_size": [{"width": 64, "height": 48}], "image_path": ["a.jpg"]}

The i-th image part stands for the i-th of ``images``; ``image_path`` is where each came from. Preferences have
``prompt``, ``chosen`` and ``rejected``. ``meta`` is JSON text, as in the shards, so that every row has the same types.
One value a line: https://jsonlines.org
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmdata.target import Exported, Row, Target, plain_row

__all__ = ["TARGET"]


def _row(row: Row, images: Sequence[str], escape: bool) -> dict[str, Any]:
    return plain_row(row, images)


def _usage(exported: Exported) -> str:
    return f"""\
One row a line; image paths start from this folder:

    import json

    for line in open("{exported.files[0].name}", encoding="utf-8"):
        row = json.loads(line)"""


TARGET = Target(
    container="jsonl",
    kinds=frozenset({"messages", "preference"}),
    summary="JSON Lines with the columns of the shards, image files",
    url="https://jsonlines.org",
    usage=_usage,
    row=_row,
)
