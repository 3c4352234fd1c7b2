from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from vlmdata import pixels
from vlmdata.pixels import decode_scaled

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"
SCALES = (0.5, 0.4, 0.25, 0.13, 0.0625, 0.03)


def jpeg(picture: Image.Image, quality: int = 90, subsampling: int = 2) -> bytes:
    out = BytesIO()
    picture.save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


def drawn() -> Iterator[Image.Image]:
    """Pictures from as smooth to as sharp as there are, with odd sides."""
    yield Image.merge("RGB", [Image.radial_gradient("L").resize((643, 481))] * 3)
    noise = Image.effect_noise((501, 375), 90).convert("RGB")
    yield noise
    for radius in (1, 2, 4):
        yield noise.filter(ImageFilter.GaussianBlur(radius))
    page = Image.new("RGB", (801, 599), "white")
    pen = ImageDraw.Draw(page)
    for line in range(0, 590, 9):
        pen.text((5 + line % 40, line), f"Row {line}: the quick brown fox {line * line}", fill=(line % 256, 0, 60))
    yield page
    yield page.filter(ImageFilter.GaussianBlur(3))


def psnr(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def check(data: bytes, scale: float) -> bool | None:
    with Image.open(BytesIO(data)) as opened:
        full = opened.convert("RGB")
    target = (max(1, int(full.width * scale)), max(1, int(full.height * scale)))
    picture, small = decode_scaled(data, full.size, target)
    assert picture.size == target and picture.mode == "RGB"
    expected = full.resize(target, Image.Resampling.BICUBIC)
    if small:
        assert psnr(picture, expected) >= 40
    else:
        assert picture.tobytes() == expected.tobytes()
    return small


@pytest.mark.parametrize("scale", SCALES)
def test_a_small_decode_is_used_only_where_it_is_close(scale: float) -> None:
    used = [
        check(jpeg(picture, quality, subsampling), scale)
        for picture in drawn()
        for quality, subsampling in ((90, 2), (60, 0))
    ]
    assert True in used, "never used: nothing is gained"
    assert used[2] is not True, "used on noise"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photographs are not beside this checkout")
@pytest.mark.parametrize("scale", SCALES)
def test_on_photographs(scale: float) -> None:
    used = [check(path.read_bytes(), scale) for path in sorted(PHOTOS.glob("*.jpg"))[::4]]
    assert len(used) > 10 and (True in used or scale > 0.25)


def test_upscaling_and_same_size_decode_in_full() -> None:
    data = jpeg(next(drawn()))
    picture, small = decode_scaled(data, (643, 481), (643, 481))
    assert small is None and picture.size == (643, 481)


def test_a_declined_decode_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_CLOSE_ENOUGH", 1000.0)
    assert check(jpeg(next(drawn())), 0.25) is False
