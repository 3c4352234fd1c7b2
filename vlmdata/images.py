"""Encoded images: copied as they came, or changed only as far as they must.

An image passes as bytes when its header says it is upright RGB of an allowed size; nothing is decoded then. Else it
is decoded once and stored anew: EXIF turned in, transparency on white, three channels, scaled. What came lossless is
stored as PNG, a JPEG or lossy WebP as JPEG of quality 95. Colour profiles and other metadata end there.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vlmdata.errors import ConfigError, RecordError
from vlmdata.headers import Header, read_header

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["ImagePolicy", "MAX_BYTES", "MAX_PIXELS", "StoredImage", "read_inside", "scaled_size", "store"]

MAX_PIXELS = 89_478_485
"""Largest picture that is read, in pixels: the limit at which Pillow warns of a decompression bomb."""

MAX_BYTES = 256 << 20
"""Largest image file that is read."""

_JPEG_QUALITY = 95
_PNG_LEVEL = 1
# Only these are handed to Pillow: the others include formats that start other programs or that no loader shares.
_DECODED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_TURNED = 0x0112
_LOSSY = ("JPEG", "MPO", "AVIF", "JPEG2000")


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What sizes the stored images may have.

    Attributes:
        scale: factor for both sides, in (0, 1].
        max_side: largest side in pixels, or None.
        max_pixels: images with more are rejected before they are decoded.
    """

    scale: float = 1.0
    max_side: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        """Refuse factors and sides that cannot work."""
        if not 0 < self.scale <= 1:
            raise ConfigError(f"scale is {self.scale}, expected a number above 0 and at most 1 (0.5 halves both sides)")
        if self.max_side is not None and self.max_side < 1:
            raise ConfigError(f"max_side is {self.max_side}, expected at least 1 pixel")


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as it goes into a shard.

    Attributes:
        data: encoded bytes.
        format: what they are encoded as.
        width: pixels.
        height: pixels.
        sha256: of the bytes.
        changes: why it was encoded anew (``mode alpha orientation scale animation format``); empty when it passed.
        size_in: bytes it came with.
    """

    data: bytes
    format: str
    width: int
    height: int
    sha256: str
    changes: tuple[str, ...]
    size_in: int


def scaled_size(width: int, height: int, policy: ImagePolicy) -> tuple[int, int]:
    """``[width, height]`` after scaling: ``max(1, int(side * scale))``, then the longer side at most ``max_side``."""
    if policy.scale != 1:
        width, height = max(1, int(width * policy.scale)), max(1, int(height * policy.scale))
    longest = max(width, height)
    if policy.max_side is not None and longest > policy.max_side:
        width = max(1, width * policy.max_side // longest)
        height = max(1, height * policy.max_side // longest)
    return width, height


def store(data: bytes, policy: ImagePolicy) -> StoredImage:
    """The image as it is stored under the policy.

    Raises:
        RecordError: ``image_empty``, ``image_format``, ``image_truncated``, ``image_corrupt`` or
            ``image_too_large``.
    """
    if not data:
        raise RecordError("image_empty", "the image has zero bytes")
    if len(data) > MAX_BYTES:
        raise RecordError("image_too_large", f"{len(data)} bytes, at most {MAX_BYTES} are read")
    header = read_header(data)
    if header is None:
        header = _probe_rare(data, policy)
        return _encode(data, header, policy, ("format", *_changes(header, policy)))
    _check_pixels(header.width, header.height, policy)
    if not header.complete:
        raise RecordError("image_truncated", f"{header.format} of {len(data)} bytes without its end mark")
    changes = _changes(header, policy)
    if changes:
        return _encode(data, header, policy, changes)
    return _stored(data, header.format, header.width, header.height, (), len(data))


def read_inside(root: Path, path: str) -> bytes:
    """The bytes of an image file that lies inside a folder, links resolved.

    Raises:
        RecordError: ``path_outside_root``, ``image_not_found``, ``image_unreadable`` or ``image_too_large``.
    """
    base = os.path.realpath(root)
    if "\0" in path:
        raise RecordError("image_not_found", f"{path!r} holds a zero character")
    real = os.path.realpath(os.path.join(base, path))
    if not Path(real).is_relative_to(base):
        raise RecordError("path_outside_root", f"{path} leads out of the image root")
    if not os.path.exists(real):
        raise RecordError("image_not_found", f"no file {path} in the image root")
    if not os.path.isfile(real):
        raise RecordError("image_unreadable", f"{path} is not a file")
    try:
        if os.path.getsize(real) > MAX_BYTES:
            raise RecordError("image_too_large", f"{os.path.getsize(real)} bytes, at most {MAX_BYTES} are read")
        return Path(real).read_bytes()
    except OSError as error:
        raise RecordError("image_unreadable", f"{path}: {error.strerror}") from None


def _check_pixels(width: int, height: int, policy: ImagePolicy) -> None:
    if width * height > policy.max_pixels:
        raise RecordError("image_too_large", f"{width}x{height} pixels, at most {policy.max_pixels} are decoded")


def _changes(header: Header, policy: ImagePolicy) -> tuple[str, ...]:
    reasons = {
        "mode": not header.rgb,
        "alpha": header.alpha,
        "orientation": header.orientation != 1,
        "animation": header.animated,
        "scale": scaled_size(header.width, header.height, policy) != (header.width, header.height),
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def _open(data: bytes) -> PIL.Image.Image:
    import PIL.Image

    PIL.Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes are checked here, and odd tags are no fault of the picture
        return PIL.Image.open(BytesIO(data), formats=[name for name in _DECODED if name in PIL.Image.OPEN])


def _probe_rare(data: bytes, policy: ImagePolicy) -> Header:
    """A header by way of Pillow, for formats that are always stored anew."""
    import PIL.Image

    try:
        with _open(data) as opened:
            width, height = opened.size
            kind = str(opened.format)
    except PIL.Image.DecompressionBombError as error:
        raise RecordError("image_too_large", str(error)) from None
    except PIL.UnidentifiedImageError:
        raise RecordError("image_format", f"begins with {data[:12]!r}; read are {', '.join(_DECODED)}") from None
    except Exception as error:
        raise RecordError("image_corrupt", f"{type(error).__name__}: {error}") from None
    _check_pixels(width, height, policy)
    return Header(kind, width, height, rgb=True, lossless=kind not in _LOSSY)


def _decode(data: bytes, draft: tuple[int, int] | None = None) -> PIL.Image.Image:
    """All pixels of the first frame; a JPEG may be decoded smaller, but no smaller than ``draft`` asks."""
    try:
        opened = _open(data)
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


def _encode(data: bytes, header: Header, policy: ImagePolicy, changes: tuple[str, ...]) -> StoredImage:
    import PIL.Image

    if "format" in changes:
        picture = _decode(data)  # TIFF is turned as it is decoded, so only now its size and orientation are known
        size, orientation = scaled_size(*picture.size, policy), picture.getexif().get(_TURNED, 1)
    else:
        size, orientation = scaled_size(header.width, header.height, policy), header.orientation
        picture = _decode(data, draft=size if "scale" in changes else None)
    picture = _rgb_on_white(picture)
    if picture.size != size:
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    if 2 <= orientation <= 8:
        picture = picture.transpose(_turns()[orientation - 2])
    picture.info = {}
    out = BytesIO()
    if header.lossless:
        picture.save(out, "PNG", compress_level=_PNG_LEVEL)
    else:
        picture.save(out, "JPEG", quality=_JPEG_QUALITY)
    kind = "PNG" if header.lossless else "JPEG"
    return _stored(out.getvalue(), kind, *picture.size, changes, len(data))


def _turns() -> tuple[PIL.Image.Transpose, ...]:
    """What undoes EXIF orientations 2 to 8."""
    from PIL.Image import Transpose as T

    return (
        T.FLIP_LEFT_RIGHT,
        T.ROTATE_180,
        T.FLIP_TOP_BOTTOM,
        T.TRANSPOSE,
        T.ROTATE_270,
        T.TRANSVERSE,
        T.ROTATE_90,
    )


def _rgb_on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Three channels of 8 bits; transparency is composited on white, 16-bit grey is scaled, not clipped."""
    import PIL.Image

    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _grey(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, layer).convert("RGB")
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


def _stored(
    data: bytes, kind: str, width: int, height: int, changes: tuple[str, ...], size_in: int
) -> StoredImage:
    return StoredImage(data, kind, width, height, hashlib.sha256(data).hexdigest(), changes, size_in)
