from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from rawfiles import encoded, picture

from vlmdata.errors import ConfigError, RecordError
from vlmdata.headers import read_header
from vlmdata.images import ImagePolicy, read_inside, scaled_size, store

PLAIN = ImagePolicy()


def reason(data: bytes, policy: ImagePolicy = PLAIN) -> str:
    with pytest.raises(RecordError) as caught:
        store(data, policy)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_clean_images_pass_as_bytes_and_are_not_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(kind=kind)
    monkeypatch.setattr(Image, "open", None)
    stored = store(data, PLAIN)
    assert stored.data is data
    assert (stored.after.format, stored.after.width, stored.after.height, stored.changes) == (kind, 24, 16, ())


@pytest.mark.parametrize(
    ("mode", "kind", "stored_as", "change"),
    [
        ("L", "JPEG", "JPEG", "mode"),
        ("CMYK", "JPEG", "JPEG", "mode"),
        ("L", "PNG", "PNG", "mode"),
        ("1", "PNG", "PNG", "mode"),
        ("P", "PNG", "PNG", "mode"),
        ("LA", "PNG", "PNG", "alpha"),
        ("RGBA", "PNG", "PNG", "alpha"),
        ("RGBA", "WEBP", "JPEG", "alpha"),
        ("P", "GIF", "PNG", "mode"),
        ("RGB", "BMP", "PNG", "format"),
        ("RGB", "TIFF", "PNG", "format"),
    ],
)
def test_what_must_change_becomes_rgb(mode: str, kind: str, stored_as: str, change: str) -> None:
    stored = store(encoded(mode, kind=kind), PLAIN)
    assert stored.after.format == stored_as and change in stored.changes
    again = picture(stored.data)
    assert (again.mode, again.format, again.size) == ("RGB", stored_as, (24, 16))
    assert store(stored.data, PLAIN).data == stored.data, "what was stored passes from then on"


def test_lossless_webp_with_alpha_stays_lossless() -> None:
    stored = store(encoded("RGBA", kind="WEBP", lossless=True), PLAIN)
    assert stored.after.format == "PNG"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_becomes_white(mode: str) -> None:
    out = BytesIO()
    if mode in ("RGBA", "LA"):
        clear = Image.new(mode, (4, 4), (0,) * len(mode))
        clear.save(out, "PNG")
    else:
        colour = 0 if mode == "P" else (0, 0, 0)
        Image.new(mode, (4, 4), colour).save(out, "PNG", transparency=colour)
    assert read_header(out.getvalue()).alpha  # type: ignore[union-attr]
    assert picture(store(out.getvalue(), PLAIN).data).getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_is_composited() -> None:
    out = BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(out, "PNG")
    red, green, blue = picture(store(out.getvalue(), PLAIN).data).getpixel((0, 0))  # type: ignore[misc]
    assert red == 255 and abs(green - 127) <= 1 and green == blue


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    out = BytesIO()
    Image.fromarray(ramp).save(out, "PNG")
    grey = np.asarray(picture(store(out.getvalue(), PLAIN).data))[..., 0].astype(int)
    assert np.abs(grey - ramp / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_turn_is_baked_in(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(kind=kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    stored = store(data, PLAIN)
    expected = ImageOps.exif_transpose(picture(data))
    again = picture(stored.data)
    assert (stored.data is data) == (orientation == 1)
    assert again.size == expected.size == (stored.after.width, stored.after.height)
    assert again.getexif().get(0x0112, 1) == 1
    difference = np.abs(np.asarray(again).astype(int) - np.asarray(expected.convert("RGB")).astype(int))
    assert difference.mean() < (12 if kind == "JPEG" else 0.01)


def test_tiff_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(kind="TIFF", exif=exif)
    stored = store(data, ImagePolicy(0.5))
    assert (stored.after.width, stored.after.height) == picture(stored.data).size == (8, 12)
    assert stored.changes == ("format", "scale")
    whole = np.asarray(picture(store(data, PLAIN).data))
    assert np.array_equal(whole, np.asarray(picture(encoded(kind="PNG")).transpose(Image.Transpose.ROTATE_270)))


def test_turn_told_by_xmp_alone() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    stored = store(encoded(kind="JPEG", xmp=xmp), PLAIN)
    assert (stored.after.width, stored.after.height, stored.changes) == (16, 24, ("orientation",))


def test_animation_keeps_the_first_frame_and_says_so() -> None:
    frames = [picture(encoded(seed=seed, kind="PNG")).convert("P") for seed in range(3)]
    for kind in ("GIF", "WEBP", "PNG"):
        out = BytesIO()
        frames[0].convert("RGB").save(out, kind, save_all=True, append_images=[f.convert("RGB") for f in frames[1:]])
        stored = store(out.getvalue(), PLAIN)
        assert "animation" in stored.changes, kind
        assert getattr(picture(stored.data), "n_frames", 1) == 1


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), scale=st.floats(0.001, 1), side=st.integers(1, 3000))
def test_scaled_size(width: int, height: int, scale: float, side: int) -> None:
    assert scaled_size(width, height, PLAIN) == (width, height)
    assert scaled_size(width, height, ImagePolicy(scale)) == (max(1, int(width * scale)), max(1, int(height * scale)))
    new = scaled_size(width, height, ImagePolicy(max_side=side))
    assert min(new) >= 1 and max(new) == min(side, max(width, height))


def test_scale_and_max_side_change_the_picture() -> None:
    data = encoded(size=(427, 200))
    assert picture(store(data, ImagePolicy(0.5)).data).size == (213, 100)
    assert picture(store(data, ImagePolicy(max_side=100)).data).size == (100, 46)
    assert store(data, ImagePolicy(max_side=427)).data is data
    tall = encoded(size=(4, 4000), kind="PNG")
    assert picture(store(tall, ImagePolicy(0.1)).data).size == (1, 400)


def test_scaled_and_turned_at_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = store(encoded(size=(400, 200), exif=exif), ImagePolicy(0.5))
    assert (stored.after.width, stored.after.height) == picture(stored.data).size == (100, 200)


@pytest.mark.parametrize("scale", [0, -1, 1.5, float("nan")])
def test_scales_that_make_no_sense(scale: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        ImagePolicy(scale)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_any_cut_is_found(kind: str) -> None:
    data = encoded(size=(64, 64), kind=kind)
    for cut in (*range(1, 60, 7), len(data) // 3, len(data) // 2, len(data) - 4):
        assert reason(data[:cut]) in ("image_truncated", "image_corrupt", "image_format"), cut
    assert reason(b"") == "image_empty"


def test_a_cut_jpeg_with_zeros_behind_is_truncated() -> None:
    data = encoded(size=(64, 64))
    assert reason(data[: len(data) * 6 // 10] + b"\0" * 500) == "image_truncated"
    assert store(data + b"\0" * 20, PLAIN).changes == (), "bytes behind the end mark do no harm"


def test_bombs_are_refused_by_their_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    assert reason(bomb) == "image_too_large"
    bmp = bytearray(encoded(kind="BMP"))
    bmp[18:26] = struct.pack("<II", 60000, 60000)
    assert reason(bytes(bmp)) == "image_too_large"
    assert reason(encoded(), ImagePolicy(max_pixels=100)) == "image_too_large"


def test_bytes_that_are_no_image() -> None:
    assert reason(b"<!DOCTYPE html><p>Not found") == "image_format"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "image_format"
    damaged = bytearray(encoded(kind="PNG"))
    damaged[-30] ^= 255
    assert reason(bytes(damaged)) == "image_corrupt"


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=200),
    kind=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"]),
)
def test_any_bytes_are_stored_or_rejected(data: bytes, kind: bytes) -> None:
    try:
        store(kind + data, PLAIN)
    except RecordError as error:
        assert error.reason.startswith("image_")


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]),
    at=st.floats(0, 1),
    value=st.integers(0, 255),
)
def test_one_wrong_byte_is_stored_or_rejected(kind: str, at: float, value: int) -> None:
    data = bytearray(encoded(kind=kind))
    data[int(at * (len(data) - 1))] = value
    try:
        stored = store(bytes(data), PLAIN)
    except RecordError:
        return
    assert stored.after.width >= 1 and stored.after.height >= 1


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    kind_mode=st.sampled_from(
        [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("GIF", "P")]
    ),
)
def test_header_says_what_pillow_says(width: int, height: int, kind_mode: tuple[str, str]) -> None:
    kind, mode = kind_mode
    data = encoded(mode, (width, height), kind)
    header = read_header(data)
    opened = Image.open(BytesIO(data))
    assert header is not None and header.complete
    assert (header.format, (header.width, header.height)) == (kind, opened.size)
    assert (header.rgb and not header.alpha) == (opened.mode == "RGB" and "transparency" not in opened.info)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("in.jpg", None),
        ("sub/../in.jpg", None),
        ("link.jpg", None),
        ("../out.jpg", "path_outside_root"),
        ("/etc/passwd", "path_outside_root"),
        ("escape.jpg", "path_outside_root"),
        ("away/out.jpg", "path_outside_root"),
        ("none.jpg", "image_not_found"),
        ("sub", "image_unreadable"),
        ("x" * 5000, "image_not_found"),
        ("nul\0.jpg", "image_not_found"),
        ("loop", "image_not_found"),
    ],
)
def test_paths_stay_inside_the_root(tmp_path: Path, path: str, expected: str | None) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "in.jpg").write_bytes(b"inside")
    (tmp_path / "out.jpg").write_bytes(b"outside")
    (root / "link.jpg").symlink_to("in.jpg")
    (root / "escape.jpg").symlink_to(tmp_path / "out.jpg")
    (root / "away").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    if expected is None:
        assert read_inside(root, path) == b"inside"
        return
    with pytest.raises(RecordError) as caught:
        read_inside(root, path)
    assert caught.value.reason == expected


def test_absolute_path_inside_the_root_is_inside(tmp_path: Path) -> None:
    (tmp_path / "in.jpg").write_bytes(b"inside")
    assert read_inside(tmp_path, str(tmp_path / "in.jpg")) == b"inside"


def test_animated_lossless_webp_stays_lossless() -> None:
    frames = [Image.effect_noise((9, 9), 50 + number).convert("RGB") for number in range(2)]
    out = BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    stored = store(out.getvalue(), PLAIN)
    assert stored.after.format == "PNG" and "animation" in stored.changes
    assert np.array_equal(np.asarray(picture(stored.data)), np.asarray(frames[0]))
