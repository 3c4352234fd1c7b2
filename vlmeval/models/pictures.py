"""Pictures of items as a model is shown them: upright, RGB on white, from a folder or a converted dataset."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlmdata.errors import DataError, MissingError
from vlmeval.shardset import reader

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Pictures"]

_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)


class Pictures:
    """Pictures by name; one reader at a time, as converted datasets keep what they read last.

    Attributes:
        folder: an image folder or a converted dataset; None takes names as paths.
    """

    def __init__(self, folder: Path | None) -> None:
        """Nothing is opened before the first picture is wanted."""
        self.folder = folder
        self._read: Callable[[str], bytes] | None = None
        self._sizes: dict[str, tuple[int, int] | None] = {}

    def open(self, name: str) -> Image:
        """A picture, upright, RGB, transparent places white.

        Raises:
            DataError: it is not there or cannot be decoded.
        """
        from PIL import Image, ImageOps

        try:
            with Image.open(io.BytesIO(self._bytes(name))) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.has_transparency_data:
                    picture = picture.convert("RGBA")
                    white = Image.new("RGBA", picture.size, "white")
                    picture = Image.alpha_composite(white, picture)
                return picture.convert("RGB")
        except MissingError as error:
            raise DataError(str(error)) from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"image {(self.folder or Path()) / name} cannot be decoded: {error}") from error

    def size(self, name: str) -> tuple[int, int] | None:
        """Width and height of a picture as it is shown, from its header; None where it has none that can be read."""
        from PIL import Image

        if name not in self._sizes:
            try:
                with Image.open(io.BytesIO(self._bytes(name))) as file:
                    width, height = file.size
                    lying = file.getexif().get(_ORIENTATION) in _LYING
                    self._sizes[name] = (height, width) if lying else (width, height)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                self._sizes[name] = None
        return self._sizes[name]

    def _bytes(self, name: str) -> bytes:
        if self._read is None:
            self._read = reader(self.folder) if self.folder else lambda path: Path(path).read_bytes()
        return self._read(name)
