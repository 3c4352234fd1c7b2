"""Pictures of items as a model is shown them: upright, RGB on white, from a folder or a converted dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlmdata.errors import DataError, MissingError, RecordError
from vlmdata.headers import read_header
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
        """A picture, upright, RGB, transparent places white, 16-bit grey scaled: as ``vlmdata convert`` makes it.

        Raises:
            DataError: it is not there or cannot be decoded.
        """
        from vlmdata.pixels import decode, rgb_on_white, turned

        try:
            data = self._bytes(name)
            picture = decode(data)
            header = read_header(data)
            # Pillow turns a TIFF as it decodes it, and takes the tag away.
            orientation = header.orientation if header else picture.getexif().get(_ORIENTATION, 1)
            return turned(rgb_on_white(picture), orientation)
        except MissingError as error:
            raise DataError(str(error)) from error
        except RecordError as error:
            # Pillow names the buffer it read by its place in memory, which differs from run to run.
            why = "it is in no format that is read" if "UnidentifiedImageError" in error.detail else error.detail
            raise DataError(f"image {(self.folder or Path()) / name} cannot be decoded: {why}") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise DataError(f"image {(self.folder or Path()) / name} cannot be read: {why}") from error

    def size(self, name: str) -> tuple[int, int] | None:
        """Width and height of a picture as it is shown, from its header; None where it has none that can be read."""
        from vlmdata.pixels import open_picture

        if name not in self._sizes:
            try:
                with open_picture(self._bytes(name)) as file:
                    width, height = file.size
                    lying = file.getexif().get(_ORIENTATION) in _LYING
                    self._sizes[name] = (height, width) if lying else (width, height)
            except Exception:  # whatever broken bytes make Pillow raise; opening it will say
                self._sizes[name] = None
        return self._sizes[name]

    def _bytes(self, name: str) -> bytes:
        if self._read is None:
            self._read = reader(self.folder) if self.folder else lambda path: Path(path).read_bytes()
        return self._read(name)
