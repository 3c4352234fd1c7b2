"""What a local model is shown of a picture, and what is said of one that is none."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vlmdata.errors import DataError
from vlmeval import preflight
from vlmeval.models.picture_urls import data_url
from vlmeval.models.pictures import Pictures
from vlmeval.task import Item, load


def avif() -> bytes:
    """A picture whose container is whole and whose payload is not: Pillow's decoder raises a RuntimeError."""
    buffer = io.BytesIO()
    Image.effect_noise((32, 24), 60).convert("RGB").save(buffer, "AVIF")
    raw = bytearray(buffer.getvalue())
    start = raw.index(b"mdat") + 4
    raw[start:] = bytes(len(raw) - start)
    return bytes(raw)


def test_sixteen_bits_of_grey_are_scaled(tmp_path: Path) -> None:
    """Pillow's own conversion clips at 255 of 65,535: almost everything would be white."""
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    Image.fromarray(ramp).save(tmp_path / "x.png")
    shown = np.asarray(Pictures(tmp_path).open("x.png"))
    assert shown.shape == (8, 64, 3) and np.array_equal(shown[0, :, 0], (ramp[0].astype(int) + 128) // 257)
    sent = base64.b64decode(data_url((tmp_path / "x.png").read_bytes()).partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent))), shown), "a server is sent the same"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_turned_picture_is_upright(tmp_path: Path, kind: str) -> None:
    picture = Image.linear_gradient("L").convert("RGB").resize((40, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x", kind, exif=exif, lossless=True, quality=100)
    pictures = Pictures(tmp_path)
    shown = pictures.open("x")
    assert pictures.size("x") == shown.size == (24, 40)
    assert abs(np.asarray(shown, int) - np.asarray(picture.rotate(-90, expand=True), int)).max() < 4


def test_bytes_that_are_no_picture_are_said_alike_every_time(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no picture")
    with pytest.raises(DataError, match="x cannot be decoded: it is in no format that is read$"):
        Pictures(tmp_path).open("x")
    (tmp_path / "folder").mkdir()
    for name in ("folder", "gone"):
        with pytest.raises(DataError, match=name):
            Pictures(tmp_path).open(name)
    with pytest.raises(DataError, match="gone cannot be read: No such file or directory$"):
        Pictures(None).open(str(tmp_path / "gone"))


@pytest.mark.skipif(not features.check("avif"), reason="Pillow here reads no AVIF")
def test_a_broken_avif_is_one_bad_picture(tmp_path: Path) -> None:
    """Not the end of the run: what Pillow raises of it is no OSError."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "bad.avif").write_bytes(avif())
    with pytest.raises(DataError, match=r"bad\.avif cannot be decoded"):
        Pictures(tmp_path / "images").open("bad.avif")
    (tmp_path / "images" / "worse.avif").write_bytes(avif()[:40] + bytes(200))
    assert Pictures(tmp_path / "images").size("worse.avif") is None
    items = [Item(name, "Is it red?", (name,), "no", ("all",)) for name in ("good.png", "worse.avif")]
    found = preflight.pictures(load("vqa"), tmp_path, tmp_path / "images", items, skip=True)
    assert found.faults == {"worse.avif": preflight.UNREADABLE} and list(found.files) == ["good.png", "worse.avif"]
