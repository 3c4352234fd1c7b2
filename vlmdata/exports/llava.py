r"""LLaVA: one JSON list of conversations with one image each, images as files.

Format: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md

    [{"id": "plates-0", "image": "images/3f/3f....jpg", "vlmdata": "{...}", "conversations": [
        {"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "A bird."}]}]

The tool takes the mark out of its turn, strips the blanks at both ends of that turn and puts ``<image>\n`` before it.
So a row is refused when its image stands elsewhere than first in its turn, and when it has several images, a system
or a tool turn, or turns that do not alternate, or a mark as text, unless it is escaped. Blanks at the ends of the
image's turn are in the file and stripped by the tool. Rows without an image have no ``image``. No preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmdata.marks import MARK
from vlmdata.target import EXTRA, Exported, RefusedRow, Row, Target, Texts, extras, strict_turns

__all__ = ["MARKS", "TARGET"]

MARKS = (MARK,)

_ROLES = {"user": "human", "assistant": "gpt"}


def _row(row: Row, images: Sequence[str], escape: bool) -> dict[str, Any]:
    _check(row, images)
    texts = Texts(MARKS, escape=escape)
    made: dict[str, Any] = {"id": row["id"]}
    if images:
        made["image"] = images[0]
    made["conversations"] = [
        {"from": _ROLES[turn["role"]], "value": f"{MARK}\n{value.removeprefix(MARK)}" if _place(turn) == 0 else value}
        for turn, value in zip(row["messages"], texts.turns(row, "messages"), strict=True)
    ]
    return {**made, EXTRA: extras(row, texts.notes())}


def _check(row: Row, images: Sequence[str]) -> None:
    if len(images) > 1:
        raise RefusedRow("several_images", f"{len(images)} images")
    for turn in row["messages"]:
        if turn["role"] not in _ROLES:
            raise RefusedRow(f"{turn['role']}_turn", f"a turn is of {turn['role']}")
        if _place(turn):
            raise RefusedRow("image_place", f"the image is part {_place(turn)} of its turn, expected part 0")
    strict_turns(row["messages"])


def _place(turn: Row) -> int | None:
    """Which part of a turn is the image."""
    return next((index for index, part in enumerate(turn["content"]) if part["type"] == "image"), None)


def _usage(exported: Exported) -> str:
    return f"""\
Give the list and this folder to LLaVA's `scripts/v1_5/finetune_task_lora.sh` (paths from where it runs):

    --data_path {exported.name}/{exported.files[0].name} --image_folder {exported.name}"""


TARGET = Target(
    container="json",
    kinds=frozenset({"messages"}),
    summary="one JSON list, one image a row, image files",
    url="https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md",
    usage=_usage,
    row=_row,
    marks=MARKS,
    extra=True,
)
