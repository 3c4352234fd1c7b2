"""Small pictures as ``data:`` URLs, so that a page with many of them is one file."""

from __future__ import annotations

import base64
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO

from vlmdata.images import MAX_BYTES, MAX_PIXELS

__all__ = ["thumbnail", "thumbnails"]

_QUALITY = 80
# Pillow knows more, among them formats that start other programs.
_DECODED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


def thumbnail(data: bytes, side: int) -> str | None:
    """A WebP of at most ``side`` pixels as a ``data:`` URL; None when the bytes are no image that can be decoded."""
    import PIL.Image
    import PIL.ImageOps

    if not data or len(data) > MAX_BYTES:
        return None
    PIL.Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = PIL.Image.open(BytesIO(data), formats=[name for name in _DECODED if name in PIL.Image.OPEN])
            if opened.width * opened.height > MAX_PIXELS:
                return None
            opened.draft("RGB", (2 * side, 2 * side))
            upright = PIL.ImageOps.exif_transpose(opened)
            picture = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except Exception:  # whatever broken bytes make a decoder raise: there is nothing to show
        return None
    picture.thumbnail((side, side))
    flat = picture
    if picture.mode == "RGBA":
        flat = PIL.Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.getchannel("A"))
    out = BytesIO()
    flat.save(out, "WEBP", quality=_QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def thumbnails(images: Iterable[bytes], side: int) -> Iterator[str | None]:
    """Thumbnails in the order of the images, made by as many threads as there are cores.

    Only as many images are held as are being worked on.
    """
    workers = min(os.cpu_count() or 1, 16)
    waiting: deque[Future[str | None]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for data in images:
            waiting.append(pool.submit(thumbnail, data, side))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
