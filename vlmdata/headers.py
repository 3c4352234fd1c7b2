"""What an encoded image says about itself in its header: format, size, and whether it must change. Nothing is decoded.

JPEG (ITU T.81, Exif 2.3), PNG (W3C PNG 3rd edition), WebP (RFC 9649) and GIF (GIF89a) are read; standard library only.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from vlmdata.errors import RecordError

__all__ = ["Header", "read_header"]


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says.

    Attributes:
        format: ``JPEG``, ``PNG``, ``WEBP`` or ``GIF``.
        width: pixels, as stored (before any EXIF turn).
        height: pixels, as stored.
        rgb: decodes to three colour channels and nothing else: no palette, grey, CMYK.
        alpha: has an alpha channel or a transparent colour.
        lossless: was stored without loss.
        orientation: EXIF orientation, 1 is upright; above 8 where loaders trip over the EXIF block.
        animated: has more than one frame.
        complete: reaches its end mark; False when the bytes end too early.
    """

    format: str
    width: int
    height: int
    rgb: bool
    alpha: bool = False
    lossless: bool = True
    orientation: int = 1
    animated: bool = False
    complete: bool = True


def read_header(data: bytes) -> Header | None:
    """Read the header, or None for a format that is not read here.

    Raises:
        RecordError: ``image_truncated`` or ``image_corrupt``; the header itself cannot be read.
    """
    for signature, reader in _READERS:
        if data.startswith(signature):
            try:
                header = reader(data)
            except (IndexError, struct.error):
                raise RecordError("image_truncated", f"ends inside its header, at {len(data)} bytes") from None
            if header is not None and (header.width < 1 or header.height < 1):
                raise RecordError("image_corrupt", f"says it is {header.width}x{header.height} pixels")
            return header
    return None


_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COMMON_SOF = frozenset({0xC0, 0xC1, 0xC2})
_ALONE = frozenset(range(0xD0, 0xD8)) | {0x00, 0x01}


def _jpeg(data: bytes) -> Header:
    at, orientation, tags = 2, 0, b""
    frame: tuple[int, ...] | None = None
    common = False
    while True:
        if data[at] != 0xFF:
            raise RecordError("image_corrupt", f"no JPEG marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        if marker in (0xD9, 0xDA):
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            raise RecordError("image_corrupt", f"JPEG segment of length {length} at byte {at}")
        segment = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            orientation = orientation or _exif_orientation(segment[6:])
        elif marker == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/1.0/"):
            tags += segment
        elif marker in _SOF and frame is None:
            frame, common = struct.unpack_from(">BHHB", segment), marker in _COMMON_SOF
        at += 2 + length
    if frame is None:
        raise RecordError("image_corrupt", "JPEG without a frame header")
    precision, height, width, components = frame
    # In the scan every FF is stuffed, so an end mark after the scan's start is a real one; bytes may trail it.
    complete = marker == 0xDA and data.rfind(b"\xff\xd9") > at
    return Header(
        "JPEG",
        width,
        height,
        rgb=components == 3 and precision == 8 and common,
        lossless=False,
        orientation=orientation or _xmp_orientation(tags) or 1,
        complete=complete,
    )


def _png(data: bytes) -> Header:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR":
        raise RecordError("image_corrupt", "PNG without IHDR")
    at, orientation, tags = 8, 0, b""
    transparent = animated = pixels = ended = False
    view = memoryview(data)
    while not ended and at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise RecordError("image_corrupt", f"PNG chunk {kind.decode('latin-1')!r} fails its checksum")
        if kind == b"tRNS":
            transparent = True
        elif kind == b"acTL":
            animated = True
        elif kind == b"IDAT":
            pixels = True
        elif kind == b"eXIf":
            orientation = _own_orientation(data[at + 8 : end - 4])
        elif kind == b"iTXt" and data[at + 8 : end].startswith(b"XML:com.adobe.xmp"):
            tags += data[at + 8 : end - 4]
        ended = kind == b"IEND"
        at = end
    return Header(
        "PNG",
        width,
        height,
        rgb=colour in (2, 6),
        alpha=colour in (4, 6) or transparent,
        orientation=orientation or _xmp_orientation(tags) or 1,
        animated=animated,
        complete=pixels and ended,
    )


def _webp(data: bytes) -> Header | None:
    if data[8:12] != b"WEBP":
        return None
    complete = int.from_bytes(data[4:8], "little") + 8 <= len(data) + 1  # some writers leave out the last pad byte
    at, orientation, tags = 12, 0, b""
    size: tuple[int, int] | None = None
    alpha = animated = lossless = False
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if kind == b"VP8X":
            flags = data[body]
            alpha, animated = alpha or bool(flags & 0x10), bool(flags & 0x02)
            size = (_u24(data, body + 4) + 1, _u24(data, body + 7) + 1)
        elif kind == b"VP8L":
            bits = int.from_bytes(data[body + 1 : body + 5], "little")
            size = size or ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
            alpha, lossless = alpha or bool(bits >> 28 & 1), True
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = size or (width & 0x3FFF, height & 0x3FFF)
        elif kind == b"ANMF":
            lossless = lossless or data[body + 16 : body + 20] == b"VP8L"
        elif kind == b"EXIF":
            block = data[body : body + length]
            orientation = _own_orientation(block.removeprefix(b"Exif\0\0"))
        elif kind == b"XMP ":
            tags += data[body : body + length]
        at = body + length + (length & 1)
    if size is None:
        raise RecordError("image_truncated", "WebP without picture data")
    orientation = orientation or _xmp_orientation(tags) or 1
    return Header("WEBP", *size, True, alpha, lossless, orientation, animated, complete)


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    frames = 0
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            frames += 1
            local = data[at + 9]
            at += 11 + (3 << (local & 7) + 1 if local & 0x80 else 0)
        elif data[at] == 0x21:
            at += 2
        else:
            raise RecordError("image_corrupt", f"no GIF block at byte {at}")
        while data[at]:
            at += 1 + data[at]
        at += 1
    # Whether the end mark is there does not matter: the picture is decoded anyway, because it has a palette.
    return Header("GIF", width, height, rgb=False, animated=frames > 1)


_READERS = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"RIFF", _webp),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
)


def _u24(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _exif_orientation(block: bytes) -> int:
    """The orientation tag of a TIFF block; 0 when it has none."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 0
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, start)
        for index in range(entries):
            at = start + 2 + 12 * index
            tag, kind = struct.unpack_from(order + "HH", block, at)
            if tag == 0x0112:
                form = {1: "B", 3: "H", 4: "I"}.get(kind)
                (value,) = struct.unpack_from(order + form, block, at + 8) if form else (0,)
                return value if 1 <= value <= 8 else 0
    except struct.error:
        return 0
    return 0


def _own_orientation(block: bytes) -> int:
    """The same for the block of a PNG or WebP, where Pillow raises at what is no TIFF header (not for a JPEG)."""
    no_header = len(block) < 8 or block[:4] not in (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0")
    return 9 if block and no_header else _exif_orientation(block)


def _xmp_orientation(tags: bytes) -> int:
    """The orientation that only XMP tells; image loaders turn by it when EXIF has none."""
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', tags)
    return int(found[1]) if found else 0
