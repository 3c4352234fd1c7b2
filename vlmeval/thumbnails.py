"""Small pictures as data URLs, so that a report is one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmeval.shardset import reader

__all__ = ["Thumbnails"]


class Thumbnails:
    """Pictures of one folder, made when asked for, until the budget is spent.

    Attributes:
        left: bytes of data URLs that may still be made.
        skipped: pictures that could not be shown: not there, not readable, or over budget.
    """

    def __init__(self, folder: Path | None, *, side: int = 224, budget: int = 6_000_000) -> None:
        """Take pictures from a folder or a converted dataset; None shows none."""
        self.folder, self.side, self.left, self.skipped = folder, side, budget, 0
        self._made: dict[str, str | None] = {}
        self._read: Callable[[str], bytes] | None = None

    def __call__(self, name: str) -> str | None:
        """A ``data:`` URL of the picture, or None."""
        if self.folder is None or not name:
            return None
        if name not in self._made:
            self._made[name] = self._make(name)
            self.skipped += self._made[name] is None
        return self._made[name]

    def _make(self, name: str) -> str | None:
        from PIL import Image

        try:
            if self._read is None:
                self._read = reader(self.folder or Path())
            with Image.open(io.BytesIO(self._read(name))) as file:
                picture = file.convert("RGBA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
        picture.thumbnail((self.side, self.side))
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A"))
        kinds: list[tuple[str, dict[str, Any]]] = [("jpeg", {"quality": 72})]
        if flat.getcolors(256) is not None:
            # Drawings with few colours are sharper as PNG, and mostly smaller.
            kinds.append(("png", {"optimize": True}))
        made = []
        for kind, options in kinds:
            buffer = io.BytesIO()
            flat.save(buffer, kind, **options)
            made.append((buffer.getvalue(), kind))
        data, kind = min(made, key=lambda one: len(one[0]))
        url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        if len(url) > self.left:
            return None
        self.left -= len(url)
        return url
