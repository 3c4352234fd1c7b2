"""Decoding pictures and storing them anew: upright, three channels, transparency on white, scaled.

A JPEG that is to be scaled may be decoded at a half or a quarter of its size, which saves most of the work; at an
eighth libjpeg gives block means, too coarse for anything. The small decode is used only where it stays close to the
full one: the difference lies in the fine detail, so it is bounded by how much of that the small picture shows.
Elsewhere the picture is decoded in full.
"""

from __future__ import annotations

import math
import warnings
from io import BytesIO
from typing import TYPE_CHECKING

from vlmdata.errors import RecordError
from vlmdata.png import encode_png

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "FORMATS",
    "JPEG_QUALITY",
    "decode",
    "decode_scaled",
    "encode",
    "open_picture",
    "rgb_on_white",
    "scaled",
    "turned",
]

JPEG_QUALITY = 95

# Only these are handed to Pillow: the others include formats that start other programs or that no loader shares.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

_JPEG_SIDE = 65500  # of libjpeg

# The least PSNR between small and full decode, and how far above the smoothness measure it was found to lie at least:
# photographs, drawn pictures and text at scales 0.03 to 0.5, by how many times the target the small decode is at least.
_CLOSE_ENOUGH = 40.0
_MARGIN = {1: 16.5, 2: 22.0, 4: 22.0}
# Above this density a picture seldom passes at less than twice the target, and trying costs a decode.
_DENSE_BITS = 2.5


def open_picture(data: bytes) -> PIL.Image.Image:
    """An encoded picture, not decoded yet; whatever Pillow raises comes through."""
    import PIL.Image

    PIL.Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes are checked by the caller, and odd tags are no fault of the picture
        return PIL.Image.open(BytesIO(data), formats=[name for name in FORMATS if name in PIL.Image.OPEN])


def decode(data: bytes, draft: tuple[int, int] | None = None) -> PIL.Image.Image:
    """All pixels of the first frame.

    Args:
        data: encoded bytes.
        draft: a JPEG may be decoded smaller, but no smaller than this.

    Raises:
        RecordError: ``image_truncated`` or ``image_corrupt``.
    """
    try:
        opened = open_picture(data)
        if draft is not None and opened.format == "JPEG":
            opened.draft(None, draft)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened.load()
        return opened
    except Exception as error:  # whatever broken bytes make a decoder raise is a fault of this row
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        reason = "image_truncated" if truncated else "image_corrupt"
        raise RecordError(reason, f"{type(error).__name__}: {error}") from None


def decode_scaled(
    data: bytes, size: tuple[int, int], target: tuple[int, int]
) -> tuple[PIL.Image.Image, bool | None]:
    """A JPEG's pixels at ``target`` size, from a small decode where that is close enough.

    Args:
        data: encoded bytes.
        size: ``(width, height)`` of the picture.
        target: the same after scaling.

    Returns:
        The RGB picture, and whether a small decode was used; None where none was tried.

    Raises:
        RecordError: ``image_truncated`` or ``image_corrupt``.
    """
    room = min(size[0] / target[0], size[1] / target[1])
    dense = len(data) * 8 > _DENSE_BITS * size[0] * size[1]
    if room >= 4 or (room >= 2 and not dense):
        headroom = 4 if room >= 16 else 2 if room >= 4 else 1
        wanted = tuple(max(side * headroom, -(-full // 4)) for side, full in zip(target, size, strict=True))
        small = rgb_on_white(decode(data, (wanted[0], wanted[1])))
        factor = round(size[0] / small.width)
        if factor > 1:
            if _smoothness(small) + _MARGIN[headroom] >= _CLOSE_ENOUGH:
                # The last column and line of a small decode may reach over the picture's edge.
                return scaled(small, target, (size[0] / factor, size[1] / factor)), True
            return scaled(rgb_on_white(decode(data)), target), False
    return scaled(rgb_on_white(decode(data)), target), None


def scaled(
    picture: PIL.Image.Image, target: tuple[int, int], part: tuple[float, float] | None = None
) -> PIL.Image.Image:
    """The picture, or its upper left part of that size, at ``target`` size (bicubic with antialiasing)."""
    import PIL.Image

    part = part or picture.size
    if picture.size == target == part:
        return picture
    return picture.resize(target, PIL.Image.Resampling.BICUBIC, box=(0, 0, *part))


def _smoothness(picture: PIL.Image.Image) -> float:
    """Decibels between full scale and the mean square second difference of the brightness, on every third line."""
    import numpy as np

    grey = np.asarray(picture.convert("L"), np.int16)
    across, down = grey[::3], grey[:, ::3]
    energy = 0.0
    for lines in (across, down.T):
        if lines.shape[1] > 2:
            bend = (lines[:, 2:] - 2 * lines[:, 1:-1] + lines[:, :-2]).astype(np.float32)
            energy += float(np.mean(bend * bend))
    return 10 * math.log10(255**2 / energy) if energy else math.inf


def turned(picture: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """The picture with an EXIF orientation undone."""
    from PIL.Image import Transpose as T

    undo = {
        2: T.FLIP_LEFT_RIGHT,
        3: T.ROTATE_180,
        4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE,
        6: T.ROTATE_270,
        7: T.TRANSVERSE,
        8: T.ROTATE_90,
    }.get(orientation)
    return picture if undo is None else picture.transpose(undo)


def rgb_on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Three channels of 8 bits; transparency is composited on white, 16-bit grey is scaled, not clipped."""
    import PIL.Image

    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _grey(picture)
    if picture.mode in ("P", "PA") and picture.palette is None:
        raise RecordError("image_corrupt", "a palette picture without its palette")
    if picture.mode == "LAB":
        raise RecordError("image_format", "pixels of mode LAB, expected RGB, grey, palette or CMYK")
    if picture.has_transparency_data:
        layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        white = PIL.Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _grey(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Eight bits from 16: 65535 is white. Pillow's own conversion clips at 255."""
    import numpy as np
    import PIL.Image

    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise RecordError("image_format", f"pixels of mode {picture.mode} have no agreed white, expected up to 16 bits")
    grey = (values.astype(np.uint32) + 128) // 257
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return PIL.Image.fromarray(grey.astype(np.uint8))


def encode(picture: PIL.Image.Image, *, lossless: bool) -> tuple[bytes, str]:
    """Encoded bytes without metadata, and their format: PNG, or JPEG of quality 95."""
    if lossless:
        return encode_png(picture), "PNG"
    if max(picture.size) > _JPEG_SIDE:
        raise RecordError("image_too_large", f"{picture.width}x{picture.height}, a JPEG's sides end at {_JPEG_SIDE}")
    picture.info = {}
    out = BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue(), "JPEG"
