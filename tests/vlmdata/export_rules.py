"""How each tool reads its files, written after the tools' own code; and the way back to the rows of the shards."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vlmdata.exports.llamafactory import MARKS as FACTORY_MARKS
from vlmdata.exports.swift import MARKS as SWIFT_MARKS
from vlmdata.marked import split

Row = dict[str, Any]
TEXTS = ("messages", "prompt", "chosen", "rejected")


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def factory_conversations(out: Path) -> Iterator[tuple[list[Row], list[bytes]]]:
    """LLaMA-Factory: ``SharegptDatasetConverter`` and the marks of ``mm_plugin``; prompt + responses as one list."""
    (entry,) = json.loads((out / "dataset_info.json").read_text()).values()
    assert entry["formatting"] == "sharegpt"
    columns, tags = entry["columns"], entry["tags"]
    odd, even = (tags["user_tag"], tags["observation_tag"]), (tags["assistant_tag"],)
    for row in lines(out / entry["file_name"]):
        turns = row[columns["messages"]]
        spoken = turns[1:] if turns[0][tags["role_tag"]] == tags["system_tag"] else turns
        assert all(turn[tags["role_tag"]] in (odd, even)[index % 2] for index, turn in enumerate(spoken))
        assert len(spoken) % 2 == (1 if entry.get("ranking") else 0)
        if entry.get("ranking"):
            answers = [row[columns["chosen"]], row[columns["rejected"]]]
            assert all(answer[tags["role_tag"]] in even for answer in answers)
            turns = [*turns, *answers]
        told = [{"role": turn[tags["role_tag"]], "content": turn[tags["content_tag"]]} for turn in turns]
        images = row[columns["images"]]
        assert sum(turn["content"].count("<image>") for turn in told) == len(images)
        assert not any(mark in turn["content"] for turn in told for mark in FACTORY_MARKS if mark != "<image>")
        yield told, [(out / path).read_bytes() for path in images]


def swift_conversations(out: Path) -> Iterator[tuple[list[Row], list[bytes]]]:
    """ms-swift: ``check_messages``, ``check_rejected_response`` and the splitting at special tokens."""
    for row in lines(out / "data.jsonl"):
        turns = row["messages"]
        spoken = turns[1:] if turns[0]["role"] == "system" else turns
        assert len(spoken) % 2 == 0
        for user, assistant in zip(spoken[::2], spoken[1::2], strict=True):
            assert user["role"] in ("user", "tool") and user["content"] is not None
            assert assistant["role"] == "assistant" and assistant["content"] not in ("", None)
        if "rejected_response" in row:
            assert row["rejected_response"] not in (None, turns[-1]["content"])
            turns = [*turns, {"role": "assistant", "content": row["rejected_response"]}]
        assert sum(turn["content"].count("<image>") for turn in turns) == len(row["images"])
        assert not any(mark in turn["content"] for turn in turns for mark in SWIFT_MARKS if mark != "<image>")
        yield turns, [(out / path).read_bytes() for path in row["images"]]


def llava_conversations(out: Path) -> Iterator[tuple[list[Row], list[bytes]]]:
    """LLaVA: ``LazySupervisedDataset`` and ``preprocess_multimodal``."""
    for row in json.loads((out / "data.json").read_text(encoding="utf-8")):
        turns = []
        for index, turn in enumerate(row["conversations"]):
            assert turn["from"] == ("human", "gpt")[index % 2]
            value = turn["value"]
            if "image" in row and "<image>" in value:
                value = ("<image>\n" + value.replace("<image>", "").strip()).strip()
            turns.append({"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": value})
        assert sum(turn["content"].count("<image>") for turn in turns) == ("image" in row)
        yield turns, [(out / row["image"]).read_bytes()] if "image" in row else []


def axolotl_conversations(out: Path) -> Iterator[tuple[list[Row], list[bytes]]]:
    """Axolotl: image parts bring their own path; any other field with "image" in its name would be added."""
    for row in lines(out / "data.jsonl"):
        assert not [name for name in row if "image" in name]
        parts = [part for turn in row["messages"] for part in turn["content"] if part["type"] == "image"]
        yield row["messages"], [(out / part["path"]).read_bytes() for part in parts]


def marked(out: Path, marks: Sequence[str], *, name: str = "data.jsonl") -> list[Row]:
    """Rows of the shards from rows with marks."""
    found = []
    for row in lines(out / name) if name.endswith("l") else json.loads((out / name).read_text(encoding="utf-8")):
        extra = json.loads(row.pop("vlmdata"))
        paths = row.pop("images", None) or [row[name] for name in ("image",) if name in row]
        escaped = marks if extra.pop("escaped", False) else ()
        layouts = extra.pop("layout", {})
        turns = _turns(row)
        for column, held in turns.items():
            lengths = layouts.get(column) or [None] * len(held)
            turns[column] = [
                {"role": turn["role"], "content": split(turn["content"], escaped, length)}
                for turn, length in zip(held, lengths, strict=True)
            ]
        found.append({**turns, **_images(extra, [(out / path).read_bytes() for path in paths])})
    return found


def _turns(row: Row) -> dict[str, Any]:
    """The columns of texts, as each tool names them."""
    if "conversations" in row:
        roles = {"human": "user", "gpt": "assistant"}
        values = [(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
        plain = [(role, value.replace("<image>\n", "<image>", 1)) for role, value in values]
        return {"messages": [{"role": role, "content": value} for role, value in plain]}
    if "rejected_response" in row:
        rejected = {"role": "assistant", "content": row["rejected_response"]}
        return {"prompt": row["messages"][:-1], "chosen": row["messages"][-1:], "rejected": [rejected]}
    if "chosen" in row:
        return {"prompt": row["messages"], "chosen": [row["chosen"]], "rejected": [row["rejected"]]}
    return {"messages": row["messages"]}


def _images(extra: Row, data: Sequence[bytes]) -> Row:
    paths = extra.pop("image_path")
    return {**extra, "images": [{"bytes": held, "path": path} for held, path in zip(data, paths, strict=True)]}


def parts(out: Path, key: str | None) -> list[Row]:
    """Rows of the shards from rows with parts, whose images stand in the parts under ``key``, or beside."""
    found = []
    for row in lines(out / "data.jsonl"):
        extra = json.loads(row.pop("vlmdata")) if "vlmdata" in row else {}
        texts = {name: row.pop(name) for name in TEXTS if name in row}
        held = [part for name in texts for turn in texts[name] for part in turn["content"]]
        paths = row.pop("images") if "images" in row else [part[key] for part in held if part["type"] == "image"]
        found.append({**_images({**row, **extra}, [(out / path).read_bytes() for path in paths]), **_plain(texts)})
    return found


def _plain(texts: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [
            {"role": turn["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in turn["content"]]}
            for turn in turns
        ]
        for name, turns in texts.items()
    }


def tar_samples(path: Path) -> Iterator[dict[str, bytes]]:
    """WebDataset: neighbours with the same key, the name up to its first dot, are a sample; the rest is the field."""
    sample: dict[str, bytes] = {}
    key = None
    with tarfile.open(path) as archive:
        for member in archive:
            name, _, field = member.name.partition(".")
            if name != key:
                if sample:
                    yield sample
                sample, key = {}, name
            opened = archive.extractfile(member)
            assert opened is not None and field not in sample
            sample[field] = opened.read()
    if sample:
        yield sample


def tar_rows(out: Path) -> list[Row]:
    found = []
    index = json.loads((out / "index.json").read_text())
    for shard in index["shardlist"]:
        samples = list(tar_samples(out / shard["url"]))
        assert len(samples) == shard["nsamples"] and (out / shard["url"]).stat().st_size == shard["filesize"]
        for sample in samples:
            row = json.loads(sample.pop("json"))
            assert sorted(sample) == sorted(row["images"])
            texts = {name: row.pop(name) for name in TEXTS if name in row}
            found.append({**_images(row, [sample[name] for name in row.pop("images")]), **_plain(texts)})
    return found


def parquet_rows(out: Path) -> list[Row]:
    found = [row for path in sorted(out.glob("data-*.parquet")) for row in pq.read_table(path).to_pylist()]
    for row in found:
        if "completion" in row:
            row["messages"] = row.pop("prompt") + row.pop("completion")
    return found


BACK: dict[str, Callable[[Path], list[Row]]] = {
    "axolotl": lambda out: parts(out, "path"),
    "jsonl": lambda out: parts(out, None),
    "llamafactory": lambda out: marked(out, FACTORY_MARKS),
    "llava": lambda out: marked(out, ("<image>",), name="data.json"),
    "swift": lambda out: marked(out, SWIFT_MARKS),
    "trl": parquet_rows,
    "unsloth": lambda out: parts(out, "image"),
    "webdataset": tar_rows,
}
RULES = {
    "axolotl": axolotl_conversations,
    "llamafactory": factory_conversations,
    "llava": llava_conversations,
    "swift": swift_conversations,
}
