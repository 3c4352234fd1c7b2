from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmdata.headers import read_header
from vlmdata.png import encode_png


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.sampled_from(["noise", "ramp", "flat"]))
def test_the_pixels_come_back(width: int, height: int, seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    if kind == "noise":
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    else:
        step = 3 if kind == "ramp" else 0
        lines = np.arange(height)[:, None, None] * step + np.arange(width)[None, :, None] * step
        pixels = np.broadcast_to(lines % 256, (height, width, 3)).astype(np.uint8)
    data = encode_png(Image.fromarray(pixels))
    with Image.open(BytesIO(data)) as opened:
        opened.load()
        assert (opened.mode, opened.format) == ("RGB", "PNG")
        assert np.array_equal(np.asarray(opened), pixels)
    header = read_header(data)
    assert header is not None and header.rgb and header.complete and not header.alpha


@pytest.mark.parametrize("kind", ["clouds", "drawing"])
def test_it_is_about_as_small_as_what_pillow_writes_at_its_fast_level(kind: str) -> None:
    if kind == "clouds":
        noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((300, 200), Image.Resampling.BICUBIC)
    else:
        picture = Image.new("RGB", (300, 200), "white")
        for at in range(0, 300, 10):
            picture.paste((at % 256, 40, 200), (at, at // 2, at + 6, 200))
    out = BytesIO()
    picture.save(out, "PNG", compress_level=1)
    assert len(encode_png(picture)) <= 1.15 * len(out.getvalue())
