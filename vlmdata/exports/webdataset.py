"""WebDataset: tar shards with a JSON member and the image members of each row, and an index.

Format: https://github.com/webdataset/webdataset (naming: the key of a sample is a member's name up to its first dot)

    data-000000.tar: 000000000.json 000000000.jpg 000000001.json 000000001.0.jpg 000000001.1.png ...

A single image is ``KEY.jpg``, several are ``KEY.0.jpg``, ``KEY.1.png`` ...; the JSON has the columns of the shards,
and its ``images`` are the extensions (``jpg``, ``0.jpg``), the fields of the sample the tool gives. Every order of
parts and turns, preferences and labels are kept. ``index.json`` is what ``wids.ShardListDataset`` opens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.target import Exported, Row, Target, plain_row

__all__ = ["TARGET"]


def _row(row: Row, images: Sequence[str], escape: bool) -> dict[str, Any]:
    return plain_row(row, images)


def _files(exported: Exported) -> Mapping[str, str]:
    shards = [{"url": file.name, "nsamples": file.rows, "filesize": file.bytes} for file in exported.files]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": exported.name, "shardlist": shards}
    return {"index.json": json.dumps(index, indent=2, ensure_ascii=False) + "\n"}


def _usage(exported: Exported) -> str:
    last = len(exported.files) - 1
    urls = "data-000000.tar" if not last else f"data-{{000000..{last:06d}}}.tar"
    return f"""\
In this folder:

    import webdataset as wds

    for sample in wds.WebDataset("{urls}", shardshuffle=False).decode("pil"):
        row = sample["json"]
        images = [sample[name] for name in row["images"]]

`index.json` holds the number of rows of each shard, for `wids.ShardListDataset("index.json")`."""


TARGET = Target(
    container="tar",
    kinds=frozenset({"messages", "preference"}),
    summary="tar shards with JSON and image members, index.json",
    url="https://github.com/webdataset/webdataset",
    usage=_usage,
    row=_row,
    files=_files,
)
