"""Pictures as they are sent to a server: the file's own bytes, or the pixels a local model would be shown."""

from __future__ import annotations

import base64
import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmdata.errors import DataError, MissingError
from vlmeval.models import picture_urls
from vlmeval.models.picture_urls import PictureUrls, data_url
from vlmeval.models.pictures import Pictures


def noise(mode: str = "RGB", width: int = 20, height: int = 12) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (height, width, bands), dtype=np.uint8)
    if bands == 1:
        return Image.fromarray(values[..., 0], "L").convert(mode)
    return Image.merge(mode, [Image.fromarray(values[..., band]) for band in range(bands)])


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def sent(data: bytes, max_side: int | None = None) -> tuple[str, bytes]:
    head, _, body = data_url(data, max_side).partition(",")
    return head, base64.b64decode(body, validate=True)


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "RGB" and opened.getexif().get(0x0112, 1) == 1
        return np.asarray(opened).astype(int)


PALETTE = noise().quantize(16)
AS_IT_IS = {
    "jpeg": ("image/jpeg", encoded(noise(), "JPEG")),
    "progressive": ("image/jpeg", encoded(noise(), "JPEG", progressive=True)),
    "grey jpeg": ("image/jpeg", encoded(noise("L"), "JPEG")),
    "upright by exif": ("image/jpeg", encoded(noise(), "JPEG", exif=turned(1))),
    "png": ("image/png", encoded(noise(), "PNG")),
    "grey png": ("image/png", encoded(noise("L"), "PNG")),
    "palette png": ("image/png", encoded(PALETTE, "PNG")),
    "black and white png": ("image/png", encoded(noise("1"), "PNG")),
    "lossy webp": ("image/webp", encoded(noise(), "WEBP")),
    "lossless webp": ("image/webp", encoded(noise(), "WEBP", lossless=True)),
    "gif": ("image/gif", encoded(PALETTE, "GIF")),
}
ANEW = {
    **{f"jpeg turned {turn}": encoded(noise(), "JPEG", exif=turned(turn)) for turn in range(2, 9)},
    "png turned": encoded(noise(), "PNG", exif=turned(6)),
    "webp turned": encoded(noise(), "WEBP", lossless=True, exif=turned(8)),
    "cmyk jpeg": encoded(noise("CMYK"), "JPEG"),
    "transparent png": encoded(noise("RGBA"), "PNG"),
    "grey and alpha": encoded(noise("LA"), "PNG"),
    "one clear colour": encoded(PALETTE, "PNG", transparency=3),
    "transparent webp": encoded(noise("RGBA"), "WEBP", lossless=True),
    "transparent gif": encoded(PALETTE, "GIF", transparency=3),
    "animated gif": encoded(PALETTE, "GIF", save_all=True, append_images=[noise("P")]),
    "animated webp": encoded(noise(), "WEBP", save_all=True, append_images=[noise("L").convert("RGB")], lossless=True),
    "bmp": encoded(noise(), "BMP"),
    "tiff": encoded(noise(), "TIFF"),
    "tiff turned": encoded(noise(), "TIFF", exif=turned(6)),
    "ppm": encoded(noise(), "PPM"),
}


@pytest.mark.parametrize("name", AS_IT_IS)
def test_what_every_server_shows_alike_is_sent_as_it_is(name: str) -> None:
    kind, data = AS_IT_IS[name]
    assert sent(data) == (f"data:{kind};base64", data)


@pytest.mark.parametrize("name", ANEW)
def test_other_pictures_are_sent_as_a_local_model_is_shown_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(ANEW[name])
    head, data = sent(ANEW[name])
    assert head == "data:image/png;base64"
    shown = np.asarray(Pictures(tmp_path).open("x")).astype(int)
    # Two ways of blending with white may round differently.
    near = 1 if "transparent" in name or "alpha" in name else 0
    assert pixels(data).shape == shown.shape and np.abs(pixels(data) - shown).max() <= near


def test_grey_of_sixteen_bits_keeps_its_brightness() -> None:
    values = np.linspace(0, 65535, 240, dtype=np.uint16).reshape(12, 20)
    head, data = sent(encoded(Image.fromarray(values), "PNG"))
    assert head == "data:image/png;base64"
    assert np.abs(pixels(data)[..., 0] - values / 257).max() <= 0.5


@pytest.mark.parametrize(("side", "size"), [(20, (20, 12)), (10, (10, 6)), (1, (1, 1)), (4000, (20, 12))])
def test_the_longer_side_has_a_limit(side: int, size: tuple[int, int]) -> None:
    for data, upright in ((AS_IT_IS["jpeg"][1], size), (ANEW["jpeg turned 6"], size[::-1])):
        with Image.open(io.BytesIO(sent(data, side)[1])) as opened:
            assert opened.size == upright
    assert (sent(AS_IT_IS["jpeg"][1], side)[1] == AS_IT_IS["jpeg"][1]) is (side >= 20)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image_empty"),
        (b"no picture at all", "image_format"),
        (AS_IT_IS["jpeg"][1][:-40], "image_truncated"),
        (AS_IT_IS["png"][1][:60], "image_truncated"),
        (ANEW["bmp"][:100], "image_truncated|image_corrupt"),
        (AS_IT_IS["png"][1][:50] + b"xxxx" + AS_IT_IS["png"][1][54:], "image_corrupt"),
        (b"GIF89a" + bytes(20), "image_corrupt"),
    ],
)
def test_what_is_no_picture_is_one_lines_fault(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    urls = PictureUrls(tmp_path)
    for _ in range(2):
        with pytest.raises(DataError, match=f"image unreadable: x.jpg: ({message})") as caught:
            urls("x.jpg")
        assert "\n" not in str(caught.value)
    with pytest.raises(MissingError, match="absent.jpg"):
        urls("absent.jpg")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_urls, "MAX_PIXELS", 100)
    for data in (AS_IT_IS["jpeg"][1], ANEW["bmp"]):
        with pytest.raises(picture_urls.RecordError, match="20x12 pixels, at most 100"):
            data_url(data)


def test_a_picture_is_encoded_once_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    really = data_url

    def counting(data: bytes, max_side: int | None) -> str:
        made.append(len(data))
        time.sleep(0.02)  # so that all threads want it while it is made
        return really(data, max_side)

    monkeypatch.setattr(picture_urls, "data_url", counting)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(height=12 + number), "PNG"))
    urls = PictureUrls(tmp_path)
    threads = [threading.Thread(target=urls, args=("0.png",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    monkeypatch.setattr(picture_urls, "_KEPT_CHARACTERS", 3000)
    for number in (1, 2, 3, 3, 0):
        assert urls(f"{number}.png") == really((tmp_path / f"{number}.png").read_bytes())
    assert len(made) == 5
