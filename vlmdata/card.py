"""The dataset card: a ``README.md`` that the hub shows and that tells ``datasets`` which files are the data."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vlmdata.licences import non_commercial
from vlmdata.manifest import Manifest

__all__ = ["card"]

_WHAT = {
    "messages": "Conversations about images: `images`, `messages`.",
    "preference": "Preferences about images: `images`, `prompt`, `chosen`, `rejected`.",
}


def card(manifest: Manifest) -> str:
    """The text of the card; it names no place on the machine it was made on."""
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Manifest) -> Iterator[str]:
    rows, images = manifest.rows, manifest.images
    name = " / ".join(part for part in (manifest.source, manifest.config, manifest.split) if part)
    # datasets would else read every Parquet file below this folder, the image log and the rejects too.
    yield from ("---", "configs:", "- config_name: default", "  data_files: data-*.parquet")
    yield from (f"license_name: {json.dumps(manifest.licence)}", "---", "", f"# {name}", "", _WHAT[manifest.kind], "")
    yield f"- from: <{manifest.url}>" + (f", revision {manifest.revision}" if manifest.revision else "")
    warning = " **Not for commercial use.**" if non_commercial(manifest.licence) else ""
    yield f"- licence: {manifest.licence}.{warning}"
    yield f"- rows: {rows.read:,} read = {rows.kept:,} kept + {rows.rejected:,} rejected"
    yield f"- records: {manifest.records:,}"
    if images.count and manifest.command != "convert":
        yield f"- images: {images.count:,}, stored as they were"
    elif images.count:
        yield f"- images: {images.count:,} = {images.passed:,} passed as they came + {images.reencoded:,} re-encoded"
    options = ", ".join(f"{key} {value}" for key, value in manifest.options.items() if value not in (None, [], ""))
    yield f"- made by vlmdata {manifest.command}: {options}"
    yield from ("", "`manifest.json` holds counts, options and hashes of every file, `rejects.jsonl` the rows")
    if manifest.command == "convert":
        yield "that were not used and why, `rejects/` those rows as they came, `images/` what happened to each image."
    else:
        yield "that were left out and why."
