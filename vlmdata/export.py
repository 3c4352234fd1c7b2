"""Shards -> the files a training tool reads, without loss.

``export`` streams the rows once. Images are copied as the bytes they are; a row that the tool cannot hold, or would
change, is refused: it goes to ``skipped.jsonl`` with a reason of ``vlmdata.target.REFUSALS`` and is counted, and
exported + skipped = read. ``export.json`` is written last, into a folder that appears whole or not at all.
"""

from __future__ import annotations

import bisect
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import vlmdata
from vlmdata.atomic import sha256_file, write_json
from vlmdata.errors import ConfigError, DataError, choices
from vlmdata.export_folder import EXPORT, IMAGES, IS_EXPORT
from vlmdata.export_write import JsonWriter, ParquetCopy, TarWriter, Writer
from vlmdata.licences import non_commercial
from vlmdata.manifest import MANIFEST, add_counts
from vlmdata.marked import JOINER
from vlmdata.progress import Progress
from vlmdata.publish import check_output, publishing
from vlmdata.shards import Shards, open_shards
from vlmdata.tables import column, images_compressed, row_groups
from vlmdata.target import EXTRA, REFUSALS, Exported, RefusedRow, Row, Target, load, names

__all__ = ["Export", "SKIPPED", "export", "export_lines", "load", "names"]

SKIPPED = "skipped.jsonl"
README = "README.md"
LITERAL = ("refuse", "escape")


@dataclass(slots=True)
class Export:
    """A finished export.

    Attributes:
        out: its folder.
        target: name of the tool.
        kind: ``messages`` or ``preference``.
        read: rows of the dataset; exported + skipped.
        exported: rows that were written.
        skipped: rows that were not, by reason.
        images: places of images in the rows that were read.
        distinct: how many different images those are.
    """

    out: Path
    target: str
    kind: str
    read: int = 0
    exported: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    images: int = 0
    distinct: int = 0


def export(
    shards: str | Path,
    target: str,
    out: str | Path,
    *,
    literal_mark: str | None = None,
    form: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Export:
    """Write a converted dataset as a training tool reads it.

    Args:
        shards: the dataset.
        target: name of a target, see ``vlmdata.target.names``.
        out: folder to write.
        literal_mark: what becomes of a row whose text holds a mark of the tool, as ``<image>``: ``refuse`` (default)
            or ``escape``, see ``vlmdata.marked``. Only for targets with marks.
        form: which columns, for targets that have several forms.
        overwrite: replace an export in ``out``.
        progress: show progress on stderr.

    Raises:
        VlmError: an option, the dataset or the output folder is not as it must be; or not one row could be exported.
    """
    tool = load(target)
    source = open_shards(Path(shards))
    form = _check(target, tool, source, literal_mark, form)
    folder = check_output(Path(out), [source.path], overwrite=overwrite, ours=IS_EXPORT)
    done = Export(folder, target, source.kind)
    with publishing(Path(out), [source.path], overwrite=overwrite, ours=IS_EXPORT) as fresh:
        writer = _writer(tool, fresh, source, form, escape=literal_mark == "escape")
        with Progress("export", len(source), shown=progress) as bar:
            _copy(source, writer, fresh, done, bar)
        exported = Exported(_dataset_name(folder), source.kind, form, writer.files)
        for name, content in tool.files(exported).items():
            (fresh / name).write_text(content, encoding="utf-8")
        (fresh / README).write_text("\n".join(_readme(done, tool, source, exported, literal_mark)), encoding="utf-8")
        _finish(fresh, done, tool, source, exported, literal_mark)
    return done


def export_lines(done: Export) -> list[str]:
    """What an export did, as lines that add up."""
    skipped = done.skipped
    lines = [f"rows     {done.read:,} read = {done.exported:,} exported + {sum(skipped.values()):,} skipped"]
    lines += [f"         {count:,} {reason}: {REFUSALS[reason]}" for reason, count in skipped.items()]
    if skipped:
        lines.append(f"         each with its detail in {done.out / SKIPPED}")
    lines.append(f"images   {done.images:,}, {done.distinct:,} of them different")
    lines.append(f"files    for {done.target} in {done.out}; {README} says how to train with them")
    return lines


def _check(name: str, tool: Target, source: Shards, literal_mark: str | None, form: str | None) -> str | None:
    """The form; refuses what cannot work."""
    if source.kind not in tool.kinds:
        able = [other for other in names() if source.kind in load(other).kinds]
        raise ConfigError(f"{source.path} holds {source.kind} rows, which {name} cannot take; --to {' or '.join(able)}")
    if literal_mark is not None and literal_mark not in LITERAL:
        raise ConfigError(f"literal mark is {literal_mark!r}; valid: {choices(LITERAL)}")
    if literal_mark is not None and not tool.marks:
        raise ConfigError(f"{name} has no marks in texts, --literal-mark makes no sense with it")
    if form is not None and form not in tool.forms:
        valid = f"valid: {choices(tool.forms)}" if tool.forms else f"{name} has one form, leave --form out"
        raise ConfigError(f"no form {form!r} of {name}; {valid}")
    if form is not None and source.kind == "preference":
        raise ConfigError(f"{source.path} holds preferences, which have one form; leave --form out")
    return form or (tool.forms[0] if tool.forms and source.kind == "messages" else None)


def _writer(tool: Target, folder: Path, source: Shards, form: str | None, *, escape: bool) -> Writer:
    if tool.container == "parquet":
        return ParquetCopy(folder, source, form, shared_images=bool(len(source)) and images_compressed(source))
    assert tool.row is not None
    if tool.container == "tar":
        return TarWriter(folder, tool.row)
    return JsonWriter(folder, tool.row, escape=escape, lines=tool.container == "jsonl")


def _copy(source: Shards, writer: Writer, folder: Path, done: Export, bar: Progress) -> None:
    """All rows through the writer; what is refused into ``skipped.jsonl``."""
    starts = list(accumulate((shard.rows for shard in source.manifest.shards), initial=0))
    skipped = done.skipped
    seen: set[bytes] = set()
    file = -1
    with (folder / SKIPPED).open("w", encoding="utf-8") as log, writer:

        def refuse(number: int, row: Row, why: RefusedRow) -> None:
            add_counts(skipped, {why.reason: 1})
            place = {"id": row["id"], "file": source.manifest.shards[file].name, "row": number - starts[file]}
            log.write(json.dumps({**place, "reason": why.reason, "detail": why.detail}, ensure_ascii=False) + "\n")

        for start, table in row_groups(source):
            if (now := bisect.bisect_right(starts, start) - 1) != file:
                file = now
                writer.begin(source.files[file].name)
            writer.write(table, start, refuse)
            hashes = column(table, "image_sha256").flatten().to_pylist()
            seen.update(map(bytes.fromhex, hashes))
            done.images += len(hashes)
            done.read += table.num_rows
            bar.advance(table.num_rows)
    done.distinct = len(seen)
    done.exported = done.read - sum(skipped.values())
    if not done.exported:
        reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.items()) or "the dataset is empty"
        hint = "; --literal-mark escape keeps rows with marks" if "literal_mark" in skipped else ""
        raise DataError(
            f"not one of {done.read} rows of {source.path} can be exported to {done.target}: {reasons}{hint}"
        )


def _finish(
    folder: Path, done: Export, tool: Target, source: Shards, exported: Exported, literal_mark: str | None
) -> None:
    """Write ``export.json``: what it is, counts, and the hash of every file."""
    hashed = {file.name: {"bytes": file.bytes, "sha256": file.sha256, "rows": file.rows} for file in exported.files}
    files: list[dict[str, Any]] = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as opened:
                os.fsync(opened.fileno())
            known = hashed.get(path.name) or {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            files.append({"name": path.name, **known})
    in_files = tool.container in ("json", "jsonl")
    value = {
        "schema": 1,
        "target": done.target,
        "kind": done.kind,
        "form": exported.form,
        "literal_mark": (literal_mark or LITERAL[0]) if tool.marks else None,
        "marks": list(tool.marks),
        "licence": source.manifest.licence,
        "rows": {"read": done.read, "exported": done.exported, "skipped": done.read - done.exported},
        "skipped": done.skipped,
        "label_names": list(source.manifest.label_names),
        "images": {"places": done.images, "distinct": done.distinct},
        # Their names are their hashes.
        "image_files": sum(1 for _ in folder.glob("images/*/*")) if in_files else 0,
        "files": files,
        "parent": {"name": source.path.resolve().name, "manifest_sha256": sha256_file(source.path / MANIFEST)},
        "versions": {"vlmdata": vlmdata.__version__},
    }
    write_json(folder / EXPORT, value)
    if (folder / IMAGES).is_dir() and hasattr(os, "sync"):
        os.sync()  # one call for all the files, which no crash must leave empty


def _dataset_name(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", folder.name).strip("_") or "dataset"


def _readme(done: Export, tool: Target, source: Shards, exported: Exported, literal_mark: str | None) -> Iterable[str]:
    manifest, skipped = source.manifest, done.read - done.exported
    if tool.container == "parquet":
        yield from ("---", "configs:", "- config_name: default", "  data_files: data-*.parquet", "---", "")
    yield from (f"# {exported.name} for {done.target}", "", tool.usage(exported), "", "## What it is", "")
    warning = " **Not for commercial use.**" if non_commercial(manifest.licence) else ""
    yield f"- from: {manifest.source} <{manifest.url}>, licence: {manifest.licence}.{warning}"
    yield f"- rows: {done.read:,} read = {done.exported:,} exported + {skipped:,} skipped"
    if skipped:
        yield from (f"  - {count:,} {reason}: {REFUSALS[reason]}" for reason, count in done.skipped.items())
        yield f"  - each with its detail in `{SKIPPED}`"
    yield f"- images: {done.images:,}, {done.distinct:,} of them different; copied as the bytes they were"
    yield f"- format: <{tool.url}>"
    if tool.extra:
        yield f"- `{EXTRA}`: JSON text with everything the tool has no field for; the tool passes over it"
    if literal_mark == "escape":
        yield f"- a text that holds one of {choices(map(repr, tool.marks))} has U+{ord(JOINER):04X} behind the first"
        yield f"  character of it; rows where that happened say `escaped` in `{EXTRA}`"
    yield from (f"- `{EXPORT}`: counts and the sha256 of every file; images are named by theirs", "")
