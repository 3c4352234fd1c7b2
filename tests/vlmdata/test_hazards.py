"""Every hazard of images and disks through the whole conversion: what is stored, logged, counted and rejected."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rawfiles import FOOTBALL, chat, encoded, picture, reject_lines, write_json, write_parquet

from vlmdata.convert import Conversion, convert, convert_rank
from vlmdata.errors import VlmError
from vlmdata.reasons import REASONS
from vlmdata.shards import open_shards
from vlmdata.validate import validate


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(exif=exif)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def animation() -> bytes:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


SIXTEEN = saved(Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)), "PNG")
CLEAR = saved(Image.new("RGB", (4, 4), (9, 9, 9)), "PNG", transparency=(9, 9, 9))
PALETTE = saved(Image.new("P", (4, 4), 0), "PNG", transparency=0)
STORED: dict[str, tuple[bytes, str, list[str]]] = {
    "rgb jpeg": (encoded(), "passed", []),
    "rgb png": (encoded(kind="PNG"), "passed", []),
    "webp": (encoded(kind="WEBP"), "passed", []),
    "one pixel": (encoded(size=(1, 1), kind="PNG"), "passed", []),
    "sixteen bit": (SIXTEEN, "re-encoded", ["mode"]),
    "grey with alpha": (encoded("LA", kind="PNG"), "composited", ["mode", "alpha"]),
    "palette with a clear colour": (PALETTE, "composited", ["mode", "alpha"]),
    "rgb with a clear colour": (CLEAR, "composited", ["alpha"]),
    "rgba": (encoded("RGBA", kind="PNG"), "composited", ["alpha"]),
    "cmyk": (encoded("CMYK"), "re-encoded", ["mode"]),
    "grey": (encoded("L"), "re-encoded", ["mode"]),
    "animated": (animation(), "re-encoded", ["mode", "animation"]),
    "bmp": (encoded(kind="BMP"), "re-encoded", ["format"]),
    **{f"exif {number}": (turned(number), "rotated", ["orientation"]) for number in range(2, 9)},
    "exif 1": (turned(1), "passed", []),
}
REJECTED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "image_empty"),
    "90 megapixels": (png(10_000, 9_000, zlib.compress(b"")), "image_too_large"),
    "200 megapixels": (png(20_000, 10_000, zlib.compress(b"")), "image_too_large"),
    "no size": (png(0, 5, zlib.compress(b"")), "image_corrupt"),
    "cut jpeg": (encoded(size=(99, 99))[:-40], "image_truncated"),
    "cut png": (encoded(size=(99, 99), kind="PNG")[:-40], "image_truncated"),
    "a page": (b"<html><body>404</body></html>", "image_format"),
}


def convert_all(tmp_path: Path, images: dict[str, bytes], **options: Any) -> Conversion:
    rows = [{"image": {"bytes": data, "path": None}, "text": name} for name, data in images.items()]
    raw = write_parquet(tmp_path / "x.parquet", rows, FOOTBALL, group=5)
    return convert("football", raw, tmp_path / "out", **options)


def test_every_image_is_logged_with_what_was_done(tmp_path: Path) -> None:
    images = {name: data for name, (data, _, _) in STORED.items()} | {name: bad for name, (bad, _) in REJECTED.items()}
    done = convert_all(tmp_path, images)
    assert list(validate(done.out)) == []
    log = {row["id"]: row for row in pq.read_table(done.out / "images").to_pylist()}
    rows = {row["id"]: row for row in open_shards(done.out).rows()}
    assert log.keys() == rows.keys()
    for number, (name, (data, action, why)) in enumerate(STORED.items()):
        line, row = log[f"x.parquet:{number}"], rows[f"x.parquet:{number}"]
        assert (line["action"], line["why"]) == (action, why), name
        assert line["bytes_before"] == len(data) and line["sha256_after"] == row["image_sha256"][0]
        (stored,) = row["images"]
        assert (stored["bytes"] == data) == (action == "passed"), name
        again = picture(stored["bytes"])
        assert (again.mode, again.size) == ("RGB", (line["width_after"], line["height_after"]))
        lossy = line["format_before"] in ("JPEG", "WEBP")
        assert line["format_after"] == line["format_before"] if action == "passed" else ("JPEG" if lossy else "PNG")
    images_count = done.manifest.images
    actions = [action for _, action, _ in STORED.values()]
    assert (images_count.passed, images_count.rotated, images_count.composited) == (
        actions.count("passed"),
        actions.count("rotated"),
        actions.count("composited"),
    )
    assert images_count.changes["animation"] == 1
    assert [(line["row"], line["reason"]) for line in reject_lines(done.out)] == [
        (len(STORED) + number, reason) for number, (_, reason) in enumerate(REJECTED.values())
    ]


def test_sides_that_would_round_to_nothing(tmp_path: Path) -> None:
    images = {"line": encoded(size=(900, 1)), "point": encoded(size=(1, 1), kind="PNG"), "odd": encoded(size=(427, 3))}
    done = convert_all(tmp_path, images, scale=0.3)
    sizes = [tuple(row["image_size"][0].values()) for row in open_shards(done.out).rows(["image_size"])]
    assert sizes == [(270, 1), (1, 1), (128, 1)]
    assert done.manifest.images.resized == 2, "one pixel stays as it is"


def test_what_only_decoding_finds(tmp_path: Path) -> None:
    images = {"good": png(10, 10, zlib.compress(b"\0" * 31 * 10)), "bad": png(9, 9, b"xyz"), "jpeg": encoded()}
    quick = convert_all(tmp_path, images)
    assert quick.kept == 3, "the structure of all is right"
    assert any("cannot be decoded" in str(problem) for problem in validate(quick.out))
    full = convert_all(tmp_path, images, verify_images="full", overwrite=True)
    assert full.rejected == {"image_corrupt": 1} and full.kept == 2
    assert list(validate(full.out)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    try:
        (photos / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encoded())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (photos / "a.jpg").write_bytes(encoded())
    for name in ("a.txt", os.fsdecode(b"caf\xe9.txt")):
        (photos / name).write_text("A picture.")
    done = convert("football", photos, tmp_path / "out")
    assert done.read == 2 and done.kept + sum(done.rejected.values()) == 2
    assert set(done.rejected) <= {"bad_text"} and list(validate(done.out)) == []


def test_a_literal_mark_stays_text_where_marks_are_no_places(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": encoded(), "path": None}, "text": "It says <image> here"}]
    done = convert("football", write_parquet(tmp_path / "x.parquet", rows, FOOTBALL), tmp_path / "out")
    (row,) = open_shards(done.out).rows()
    assert row["messages"][1]["content"] == [{"type": "text", "text": "It says <image> here"}]
    twice = write_json(tmp_path / "y.json", [chat("<image>What is <image>?", "A mark.", ["a.jpg"]), chat("Hi", "Yo")])
    assert convert("ocr_json", twice, tmp_path / "marks").rejected == {"image_count": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_nothing_looks_finished(tmp_path: Path, workers: int) -> None:
    noise = saved(Image.effect_noise((120, 120), 90).convert("RGB"), "PNG")
    rows = [{"image": {"bytes": noise, "path": None}, "text": "x"}] * 8
    raw = write_parquet(tmp_path / "x.parquet", rows, FOOTBALL, group=2)
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    code += "from vlmdata.cli import main; main()"
    size = str(3 * len(noise))
    command = ["convert", "football", str(raw), "--out", str(tmp_path / "out"), "--workers", str(workers)]
    run = subprocess.run(
        [sys.executable, "-c", code, *command, "--shard-size", size], capture_output=True, text=True, timeout=60
    )
    said = [line for line in run.stderr.splitlines() if not line.startswith("convert: ")]
    assert run.returncode == 2 and len(said) == 1, run.stderr
    assert "cannot write to" in said[0] and "--resume" in said[0]
    assert not (tmp_path / "out" / "manifest.json").exists() and not list((tmp_path / "out").glob("data-*"))


MUTATED = st.tuples(st.sampled_from(sorted(STORED)), st.floats(0, 1), st.binary(max_size=4), st.integers(0, 60))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(MUTATED, min_size=1, max_size=8), scale=st.sampled_from([1.0, 0.5, 0.05]))
def test_mutated_images_are_stored_or_rejected(
    tmp_path: Path, mutations: list[tuple[str, float, bytes, int]], scale: float
) -> None:
    images = {}
    for number, (name, at, written, dropped) in enumerate(mutations):
        data = STORED[name][0]
        start = int(at * len(data))
        images[f"{number} {name}"] = data[:start] + written + data[start + dropped :]
    try:
        done = convert_all(tmp_path, images, scale=scale, verify_images="full", overwrite=True)
    except VlmError as error:
        assert "\n" not in str(error) and "not one of" in str(error)
        return
    assert done.kept + sum(done.rejected.values()) == done.read == len(images)
    assert set(done.rejected) <= set(REASONS)
    assert list(validate(done.out)) == []


def test_blocks_and_palettes_that_loaders_trip_over(tmp_path: Path) -> None:
    plain = encoded(kind="PNG")
    images = {
        "garbage": plain[:33] + chunk(b"eXIf", b"XX no TIFF") + plain[33:],
        "big tiff": encoded(kind="WEBP", exif=b"Exif\0\0II+\0\x08\0\0\0"),
        "a turn of 9": turned(9),
        "rational": turned(6).replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x05"),
        "no palette": saved(Image.new("P", (4, 4)), "PNG"),
        "a jpeg too wide": saved(Image.new("RGB", (65501, 1)), "JPEG2000"),
    }
    at = images["no palette"].index(b"PLTE") - 4
    length = int.from_bytes(images["no palette"][at : at + 4], "big")
    images["no palette"] = images["no palette"][:at] + images["no palette"][at + 12 + length :]
    done = convert_all(tmp_path, images)
    assert list(validate(done.out)) == []
    log = {row["id"]: row["action"] for row in pq.read_table(done.out / "images").to_pylist()}
    assert list(log.values()) == ["re-encoded", "re-encoded", "passed", "passed"]
    assert [row["reason"] for row in reject_lines(done.out)] == ["image_corrupt", "image_too_large"]


def test_raw_data_inside_the_output_is_not_cleared(tmp_path: Path) -> None:
    done = convert_all(tmp_path, {"one": encoded()})
    shard = done.out / done.manifest.shards[0].name
    before = shard.read_bytes()
    with pytest.raises(VlmError, match="raw data inside"):
        convert("trl", shard, done.out, overwrite=True)
    assert shard.read_bytes() == before and list(validate(done.out)) == []


def test_a_finished_dataset_that_lost_a_shard_is_not_called_complete(tmp_path: Path) -> None:
    done = convert_all(tmp_path, {"one": encoded()})
    (done.out / done.manifest.shards[0].name).unlink()
    with pytest.raises(VlmError, match="lacks data-00000-of-00001.parquet now; --overwrite"):
        convert("football", tmp_path / "x.parquet", done.out, resume=True)
    with pytest.raises(VlmError, match="expected at least 1 rank"):
        convert_rank("football", tmp_path / "x.parquet", tmp_path / "other", 0, 0)
