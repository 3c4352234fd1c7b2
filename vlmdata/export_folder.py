"""The folder of an export: what it is called, and what in it is the export's own."""

from __future__ import annotations

import json
from pathlib import Path

from vlmdata.publish import Ours

__all__ = ["EXPORT", "IMAGES", "IS_EXPORT"]

EXPORT = "export.json"
"""What an export is; written last."""

IMAGES = "images"


def _foreign(folder: Path) -> list[str]:
    """Names in a folder that its ``export.json`` does not know; all of them where there is none."""
    names = {path.name for path in folder.iterdir()}
    try:
        told = json.loads((folder / EXPORT).read_bytes())
        known = {EXPORT, *(file["name"] for file in told["files"])} | ({IMAGES} if told["image_files"] else set())
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    return sorted(names - known)


IS_EXPORT = Ours("an export", _foreign)
