"""Pictures as data URLs, for servers: the bytes of the file where a server shows them as they are, else a PNG.

What a server does with an EXIF turn, with transparency, CMYK or the frames of an animation is its own affair, so such
pictures are sent as what a local model is shown: upright, on white, RGB, the first frame.
"""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from vlmdata.errors import ConfigError, DataError, RecordError
from vlmdata.headers import Header, read_header
from vlmdata.images import MAX_BYTES, MAX_PIXELS, ImagePolicy, scaled_size
from vlmeval.shardset import reader

__all__ = ["PictureUrls", "data_url"]

_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_KEPT_CHARACTERS = 96 << 20
_TURNED = 0x0112


class PictureUrls:
    """Data URLs of an image folder's pictures by name; may be called from several threads.

    The ones used last are kept, up to 96 MiB: a picture that many questions are asked about is encoded once.
    """

    def __init__(self, folder: Path | None, max_side: int | None = None) -> None:
        """Nothing is read yet.

        Args:
            folder: of image files, or a converted dataset; None takes names as paths.
            max_side: the longer side in pixels that pictures are scaled down to; None sends them as large as they are.

        Raises:
            ConfigError: ``max_side`` is below 1.
        """
        if max_side is not None and max_side < 1:
            raise ConfigError(f"max_image_side is at least 1 pixel, got {max_side}")
        self.folder, self.max_side = folder, max_side
        self._read: Callable[[str], bytes] | None = None
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def __call__(self, name: str) -> str:
        """The picture's data URL.

        Raises:
            MissingError: there is no such file.
            DataError: it is no picture that can be shown.
        """
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
            making = self._making.setdefault(name, threading.Lock())
        with making:
            with self._lock:
                if name in self._kept:
                    return self._kept[name]
                data = self._bytes(name)
            try:
                url = data_url(data, self.max_side)
            except RecordError as error:
                raise DataError(f"image unreadable: {name}: {error}") from None
            with self._lock:
                self._keep(name, url)
            return url

    def _bytes(self, name: str) -> bytes:
        if self._read is None:
            self._read = reader(self.folder) if self.folder else reader(Path())
        return self._read(name)

    def _keep(self, name: str, url: str) -> None:
        self._making.pop(name, None)
        self._kept[name] = url
        self._size += len(url)
        while self._size > _KEPT_CHARACTERS and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._size -= len(dropped)


def data_url(data: bytes, max_side: int | None = None) -> str:
    """An encoded picture as ``data:image/...;base64,...``.

    Args:
        data: JPEG, PNG, WebP, GIF, or whatever else Pillow reads here; see ``vlmdata.pixels.FORMATS``.
        max_side: the longer side in pixels it is scaled down to; None keeps its size.

    Returns:
        The bytes as they came where the picture is an upright, opaque, still JPEG, PNG, WebP or GIF of grey or RGB and
        small enough; else a PNG of what Pillow makes of it: upright, on white, RGB, scaled (bicubic, antialiased).

    Raises:
        RecordError: ``image_empty``, ``image_format``, ``image_truncated``, ``image_corrupt`` or ``image_too_large``.
    """
    if not data:
        raise RecordError("image_empty", "the image has zero bytes")
    if len(data) > MAX_BYTES:
        raise RecordError("image_too_large", f"{len(data)} bytes, at most {MAX_BYTES} are read")
    policy = ImagePolicy(max_side=max_side)
    header = read_header(data)
    if header is not None:
        _check_pixels(header.width, header.height)
        if not header.complete:
            raise RecordError("image_truncated", f"{header.format} of {len(data)} bytes without its end mark")
        size = (header.width, header.height)
        if scaled_size(*size, policy) == size and _shown_alike(data, header):
            return _url(_TYPES[header.format], data)
    return _url("image/png", _png(data, header, policy))


def _shown_alike(data: bytes, header: Header) -> bool:
    """Whether every server decodes the bytes to the same picture."""
    if header.orientation != 1 or header.alpha or header.animated:
        return False
    return header.rgb or _grey_or_palette(data)


def _grey_or_palette(data: bytes) -> bool:
    """Eight bits of grey or an opaque palette, which are RGB by a table; the header cannot tell them from CMYK."""
    from vlmdata.pixels import open_picture

    try:
        with open_picture(data) as opened:
            return opened.mode in ("1", "L", "P") and not opened.has_transparency_data
    except (OSError, SyntaxError, ValueError):
        return False


def _png(data: bytes, header: Header | None, policy: ImagePolicy) -> bytes:
    from vlmdata.pixels import decode, rgb_on_white, scaled, turned
    from vlmdata.png import encode_png

    if header is None:
        _check_rare(data)
    picture = decode(data)
    # Pillow turns a TIFF as it decodes it, and takes the tag away.
    orientation = header.orientation if header else picture.getexif().get(_TURNED, 1)
    picture = scaled(rgb_on_white(picture), scaled_size(*picture.size, policy))
    return encode_png(turned(picture, orientation))


def _check_rare(data: bytes) -> None:
    """Whether Pillow knows the format, and how large the picture is, before it is decoded."""
    import PIL.Image

    from vlmdata.pixels import FORMATS, open_picture

    try:
        with open_picture(data) as opened:
            size = opened.size
    except PIL.UnidentifiedImageError:
        raise RecordError("image_format", f"begins with {data[:12]!r}; read are {', '.join(FORMATS)}") from None
    except Exception as error:  # whatever broken bytes make Pillow raise
        raise RecordError("image_corrupt", f"{type(error).__name__}: {error}") from None
    _check_pixels(*size)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise RecordError("image_too_large", f"{width}x{height} pixels, at most {MAX_PIXELS} are sent")


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
