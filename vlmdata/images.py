"""Encoded images: copied as they came, or changed only as far as they must.

An image passes as bytes when its header says it is upright RGB of an allowed size; nothing is decoded then. Else it
is decoded once and stored anew: EXIF turned in, transparency on white, three channels, scaled. What came lossless is
stored as PNG, a JPEG or lossy WebP as JPEG of quality 95. Colour profiles and other metadata end there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from vlmdata.errors import ConfigError, RecordError
from vlmdata.headers import Header, read_header
from vlmdata.pixels import FORMATS, decode, decode_scaled, encode, open_picture, rgb_on_white, scaled, turned
from vlmdata.places import inside, is_remote

__all__ = [
    "Encoded",
    "ImagePolicy",
    "MAX_BYTES",
    "MAX_PIXELS",
    "StoredImage",
    "Verify",
    "read_inside",
    "scaled_size",
    "store",
]

MAX_PIXELS = 89_478_485
"""Largest picture that is read, in pixels: the limit at which Pillow warns of a decompression bomb."""

MAX_BYTES = 256 << 20
"""Largest image file that is read."""

Verify = Literal["header", "full"]

_ACTIONS = {"orientation": "rotated", "alpha": "composited", "scale": "resized"}
_TURNED = 0x0112
_LOSSY = ("JPEG", "MPO", "AVIF", "JPEG2000")


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What sizes the stored images may have.

    Attributes:
        scale: factor for both sides, in (0, 1].
        max_side: largest side in pixels, or None.
        max_pixels: images with more are rejected before they are decoded.
        verify: ``header`` finds images that end too early without decoding those that pass; ``full`` decodes all.
    """

    scale: float = 1.0
    max_side: int | None = None
    max_pixels: int = MAX_PIXELS
    verify: Verify = "header"

    def __post_init__(self) -> None:
        """Refuse factors and sides that cannot work."""
        if not 0 < self.scale <= 1:
            raise ConfigError(f"scale is {self.scale}, expected a number above 0 and at most 1 (0.5 halves both sides)")
        if self.max_side is not None and self.max_side < 1:
            raise ConfigError(f"max_side is {self.max_side}, expected at least 1 pixel")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What encoded bytes are.

    Attributes:
        format: ``JPEG``, ``PNG``, ``WEBP``, ...
        width: pixels, before any EXIF turn.
        height: pixels.
        bytes: how many.
        sha256: of the bytes.
    """

    format: str
    width: int
    height: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as it goes into a shard.

    Attributes:
        data: encoded bytes.
        before: what it was; the same as ``after`` when it passed.
        after: what it is.
        changes: why it was encoded anew (``mode alpha orientation scale animation format``); empty when it passed.
        small_decode: whether it was scaled from a JPEG decoded small; False when that was tried and was not close
            enough, None when it was not tried.
    """

    data: bytes
    before: Encoded
    after: Encoded
    changes: tuple[str, ...] = ()
    small_decode: bool | None = None

    @property
    def action(self) -> str:
        """``passed``, or what was done: ``rotated composited resized`` joined by ``+``, else ``re-encoded``."""
        if not self.changes:
            return "passed"
        return "+".join(_ACTIONS[change] for change in self.changes if change in _ACTIONS) or "re-encoded"


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
    if policy.verify == "full":
        decode(data)
    same = Encoded(header.format, header.width, header.height, len(data), sha256(data).hexdigest())
    return StoredImage(data, same, same)


def read_inside(root: Path, path: str) -> bytes:
    """The bytes of an image file that lies inside a folder, links resolved.

    Raises:
        RecordError: ``path_outside_root``, ``image_not_found``, ``image_unreadable`` or ``image_too_large``.
    """
    if "\0" in path:
        raise RecordError("image_not_found", f"{path!r} holds a zero character")
    if is_remote(root):
        return _read_remote(root, path)
    base = os.path.realpath(root)
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


def _read_remote(root: Path, path: str) -> bytes:
    found = inside(root, path)
    if found is None:
        raise RecordError("path_outside_root", f"{path} leads out of the image root")
    try:
        if not found.is_file():
            raise RecordError("image_not_found", f"no file {path} in the image root")
        if found.stat().st_size > MAX_BYTES:
            raise RecordError("image_too_large", f"{found.stat().st_size} bytes, at most {MAX_BYTES} are read")
        return found.read_bytes()
    except OSError as error:
        raise RecordError("image_unreadable", f"{path}: {error}") from None


def _check_pixels(width: int, height: int, policy: ImagePolicy) -> None:
    if width * height > policy.max_pixels:
        raise RecordError("image_too_large", f"{width}x{height} pixels, at most {policy.max_pixels} are decoded")


def _changes(header: Header, policy: ImagePolicy) -> tuple[str, ...]:
    reasons = {
        "mode": not header.rgb or header.orientation > 8,
        "alpha": header.alpha,
        "orientation": 1 < header.orientation <= 8,
        "animation": header.animated,
        "scale": scaled_size(header.width, header.height, policy) != (header.width, header.height),
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def _probe_rare(data: bytes, policy: ImagePolicy) -> Header:
    """A header by way of Pillow, for formats that are always stored anew."""
    import PIL.Image

    try:
        with open_picture(data) as opened:
            width, height = opened.size
            kind = str(opened.format)
    except PIL.Image.DecompressionBombError as error:
        raise RecordError("image_too_large", str(error)) from None
    except PIL.UnidentifiedImageError:
        raise RecordError("image_format", f"begins with {data[:12]!r}; read are {', '.join(FORMATS)}") from None
    except Exception as error:
        raise RecordError("image_corrupt", f"{type(error).__name__}: {error}") from None
    _check_pixels(width, height, policy)
    return Header(kind, width, height, rgb=True, lossless=kind not in _LOSSY)


def _encode(data: bytes, header: Header, policy: ImagePolicy, changes: tuple[str, ...]) -> StoredImage:
    small_decode = None
    if "format" in changes:
        picture = decode(data)  # TIFF is turned as it is decoded, so only now its size and orientation are known
        orientation = picture.getexif().get(_TURNED, 1)
        target = scaled_size(*picture.size, policy)
        picture = scaled(rgb_on_white(picture), target)
    else:
        orientation, size = header.orientation, (header.width, header.height)
        target = scaled_size(*size, policy)
        if header.format == "JPEG" and target != size:
            picture, small_decode = decode_scaled(data, size, target)
        else:
            picture = scaled(rgb_on_white(decode(data)), target)
    picture = turned(picture, orientation)
    out, kind = encode(picture, lossless=header.lossless)
    before = Encoded(header.format, header.width, header.height, len(data), sha256(data).hexdigest())
    after = Encoded(kind, *picture.size, len(out), sha256(out).hexdigest())
    return StoredImage(out, before, after, changes, small_decode)
