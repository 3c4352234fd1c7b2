from __future__ import annotations

import json
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made import assert_valid, ids_of, messages, preferences, row, rows_of
from PIL import Image
from rawfiles import encoded, pairs, picture, reject_lines, shard_bytes

from vlmdata.commands.dedup import dedup as command
from vlmdata.contamination import contamination, contamination_lines
from vlmdata.dedup import DEFAULT_DISTANCE, Neighbours, dedup
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmdata.perceptual import MAX_DISTANCE, dhash, near_pairs, pixel_sha256
from vlmdata.shards import open_shards


def brute(hashes: list[int], distance: int) -> set[tuple[int, int]]:
    found = combinations(range(len(hashes)), 2)
    return {(left, right) for left, right in found if (hashes[left] ^ hashes[right]).bit_count() <= distance}


def pairs_of(hashes: list[int], distance: int) -> set[tuple[int, int]]:
    left, right = near_pairs(np.array(hashes, np.uint64), distance)
    assert len(set(zip(left.tolist(), right.tolist(), strict=True))) == len(left)
    return set(zip(left.tolist(), right.tolist(), strict=True))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.sets(st.integers(0, 63), max_size=18)), max_size=25),
    st.integers(0, MAX_DISTANCE),
)
def test_near_pairs_are_all_of_them(seeds: list[int], changes: list[tuple[int, set[int]]], distance: int) -> None:
    """Against comparing all with all, with hashes that are a few flipped bits apart."""
    held = list(seeds)
    for place, bits in changes:
        if seeds:
            held.append(seeds[place % len(seeds)] ^ sum(1 << bit for bit in bits))
    hashes = list(dict.fromkeys(held))
    assert pairs_of(hashes, distance) == brute(hashes, distance)


def test_near_pairs_of_crowded_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of pictures with large flat regions fall into few bands; chunks are cut within them."""
    rng = np.random.default_rng(0)
    crowded = np.unique(rng.integers(0, 2**12, 700, dtype=np.uint64) << np.uint64(20))
    monkeypatch.setattr("vlmdata.perceptual._CHUNK", 1000)
    for distance in (0, 3, 4, 9):
        assert pairs_of(crowded.tolist(), distance) == brute(crowded.tolist(), distance)
    monkeypatch.setattr("vlmdata.perceptual._MAX_PAIRS", 1000)
    with pytest.raises(ConfigError, match="too wide"):
        near_pairs(crowded, 9)


def test_neighbours_of_a_hash() -> None:
    near = Neighbours([0b1, 0b11, 0b1, 0b11110000], 1)
    assert sorted(near.of(0b1)) == [0b1, 0b11]
    assert near.of(0b11110000) == [0b11110000]


def test_hashes_of_pictures() -> None:
    photo = noise(1, (160, 120))
    small, weak = BytesIO(), BytesIO()
    picture(photo).resize((80, 60)).save(small, "PNG")
    picture(photo).save(weak, "JPEG", quality=40)
    for other in (small.getvalue(), weak.getvalue()):
        assert (dhash(photo) ^ dhash(other)).bit_count() <= DEFAULT_DISTANCE
        assert pixel_sha256(photo) != pixel_sha256(other)
    assert (dhash(photo) ^ dhash(noise(2, (160, 120)))).bit_count() > MAX_DISTANCE
    bright = np.tile(np.arange(0, 180, 20, dtype=np.uint8), (8, 1))
    assert dhash(png(bright)) == 2**64 - 1 and dhash(png(bright[:, ::-1])) == 0
    half = np.concatenate([bright[:4], bright[4:, ::-1]])
    assert dhash(png(half)) == 0xFFFFFFFF00000000
    same = BytesIO()
    picture(photo).save(same, "PNG")
    assert pixel_sha256(same.getvalue()) == pixel_sha256(photo)


def png(grey: Any) -> bytes:
    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(grey)).convert("RGB").save(out, "PNG")
    return out.getvalue()


def noise(seed: int, size: tuple[int, int] = (64, 48), kind: str = "PNG", **save: Any) -> bytes:
    values = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(out, kind, **save)
    return out.getvalue()


def held(*images: bytes, question: str = "What?", answer: str = "That.") -> dict[str, Any]:
    return {"images": [{"bytes": data, "path": None} for data in images], "texts": pairs((question, answer))}


ROWS = [
    held(noise(1)),
    held(noise(1)),  # 1: as 0
    held(noise(1), question="Who?"),  # 2: another question
    held(noise(1, compress_level=1)),  # 3: other bytes, the same pixels
    held(noise(1, (128, 96))),  # 4: looks the same
    held(noise(1), noise(2)),  # 5: one image more
    held(noise(2), noise(1)),  # 6: in another order
    held(noise(1, compress_level=1), noise(2, (128, 96))),  # 7: looks as 5
    {"images": [], "texts": pairs(("Hi", "Yo"))},
    {"images": [], "texts": pairs(("Hi", "Yo"))},  # 9: as 8
    {"images": [], "texts": pairs(("Hi", "Ho"))},
]


@pytest.mark.parametrize(
    ("by", "images_only", "dropped"),
    [
        ("bytes", False, {1: 0, 9: 8}),
        ("bytes", True, {1: 0, 2: 0}),
        ("pixels", False, {1: 0, 3: 0, 9: 8}),
        ("pixels", True, {1: 0, 2: 0, 3: 0}),
        ("perceptual", False, {1: 0, 3: 0, 4: 0, 7: 5, 9: 8}),
        ("perceptual", True, {1: 0, 2: 0, 3: 0, 4: 0, 7: 5}),
    ],
)
def test_duplicates_by_every_way(tmp_path: Path, by: Any, images_only: bool, dropped: dict[int, int]) -> None:
    made = messages(tmp_path, ROWS)
    done = dedup(made, tmp_path / "out", by=by, images_only=images_only)
    assert done.dataset is not None
    assert [drop.row for drop in done.drops] == list(dropped)
    for line, (row_number, first) in zip(reject_lines(tmp_path / "out"), dropped.items(), strict=True):
        assert line["id"] == f"geo.parquet:{row_number}" and line["reason"] == "duplicate"
        assert f"of geo.parquet:{first}, by {by}" in line["detail"]
    everything = rows_of(made)
    assert rows_of(tmp_path / "out") == [one for place, one in enumerate(everything) if place not in dropped]
    assert done.dataset.manifest.rejected == {"duplicate": len(dropped)}
    assert_valid(tmp_path / "out")
    again = dedup(tmp_path / "out", None, by=by, images_only=images_only)
    assert again.drops == [] and again.dataset is None


def test_a_chain_of_small_steps_does_not_grow() -> None:
    """With 0 and 3 four bits apart each from the middle one: the ends are not the same picture."""
    from vlmdata.dedup import _duplicates

    keys = [(0,), (0b1111,), (0b11111111,)]
    near = Neighbours([key for (key,) in keys], 4)
    assert list(_duplicates(keys, [b""] * 3, near, False)) == [(1, 0, 4)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=40), st.integers(0, 4))
def test_near_rows_are_those_of_plain_comparing(values: list[tuple[int, bool]], distance: int) -> None:
    from vlmdata.dedup import _duplicates

    keys = [(value, value // 3) if wide else (value,) for value, wide in values]
    found = {}
    kept: list[int] = []
    for number, key in enumerate(keys):
        same = [
            other
            for other in kept
            if len(keys[other]) == len(key)
            and all((a ^ b).bit_count() <= distance for a, b in zip(key, keys[other], strict=True))
        ]
        if same:
            found[number] = same[0]
        else:
            kept.append(number)
    near = Neighbours([value for key in keys for value in key], distance)
    assert {a: b for a, b, _ in _duplicates(keys, [b""] * len(keys), near, True)} == found


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    made = messages(tmp_path, ROWS * 2, shard_size=4000)
    assert len(open_shards(made).files) > 2
    for number, workers in enumerate((1, 2)):
        dedup(made, tmp_path / str(number), by="perceptual", workers=workers)
    assert shard_bytes(tmp_path / "0") == shard_bytes(tmp_path / "1")


def test_preferences_differ_by_any_text(tmp_path: Path) -> None:
    assert dedup(preferences(tmp_path, 4), None).drops == []


def test_contamination_by_shards_and_folders(tmp_path: Path) -> None:
    train = messages(tmp_path, [row(50), held(noise(1)), held(noise(5), noise(2)), held(noise(3, (128, 96)))], "train")
    exam = messages(tmp_path, [held(noise(1)), held(noise(9))], "exam")
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "two.png").write_bytes(noise(2))
    (photos / "three.png").write_bytes(noise(3))
    (photos / "broken.png").write_bytes(b"nothing")
    found = contamination(train, [exam, photos])
    assert [(m.row, m.image, m.evaluation, m.name) for m in found.matches] == [
        (1, 0, "exam", "exam.parquet:0"),
        (2, 1, "photos", "sub/two.png"),
    ]
    assert found.contaminated == 2 and [name for name, _ in found.evaluations[1].unreadable] == ["broken.png"]
    lines = "\n".join(contamination_lines(found))
    assert "2 of 4 hold an image" in lines and "1 files not compared; broken.png" in lines
    looks = contamination(train, [exam, photos], tmp_path / "out", by="perceptual", report=tmp_path / "r" / "r.json")
    assert [(m.row, m.name) for m in looks.matches][2] == (3, "three.png")
    assert ids_of(tmp_path / "out") == ["train.parquet:0"]
    assert looks.dataset is not None and looks.dataset.manifest.rejected == {"contaminated": 3}
    assert_valid(tmp_path / "out")
    told = json.loads((tmp_path / "r" / "r.json").read_text())
    assert told["contaminated"] == 3 and told["rows"] == 4 and len(told["matches"]) == 3
    assert [(held["name"], held["images"], held["found"], held["rows"]) for held in told["evaluations"]] == [
        ("exam", 2, 1, 1),
        ("photos", 2, 2, 2),
    ]
    assert str(tmp_path) not in (tmp_path / "r" / "r.json").read_text()
    assert contamination(tmp_path / "out", [exam, photos], by="perceptual").matches == []


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    train = messages(tmp_path, [row(1)], "train")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a\n\x1b[31m.png").write_bytes(rows_of(train)[0]["images"][0]["bytes"])
    (photos / "b\x1b.png").write_bytes(b"nothing")
    lines = contamination_lines(contamination(train, [photos]))
    assert any("photos/a \N{REPLACEMENT CHARACTER}[31m.png" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_file_matches_as_it_is_and_as_it_would_be_stored(tmp_path: Path) -> None:
    """A grey picture is stored anew; the evaluation set's file is still found by bytes."""
    train = messages(tmp_path, [row(1, mode="L", kind="PNG"), row(2)], "train")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(encoded("L", kind="PNG", seed=1))
    (photos / "b.png").write_bytes(rows_of(train)[1]["images"][0]["bytes"])
    for by in ("bytes", "pixels"):
        assert [m.name for m in contamination(train, [photos], by=by).matches] == ["a.png", "b.png"]


def test_mistakes(tmp_path: Path) -> None:
    made = messages(tmp_path, ROWS)
    (tmp_path / "empty").mkdir()
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, "valid: bytes, pixels, perceptual", {"by": "eye"}),
        (ConfigError, "--distance is for", {"distance": 3}),
        (ConfigError, "0 to 16", {"by": "perceptual", "distance": 17}),
        (ConfigError, "--workers is 0", {"workers": 0}),
    ]
    for kind, says, options in cases:
        for run in (lambda **o: dedup(made, None, **o), lambda **o: contamination(made, [made], **o)):
            with pytest.raises(kind, match=says):
                run(**options)
    with pytest.raises(DataError, match="neither a manifest.json nor pictures"):
        contamination(made, [tmp_path / "empty"])
    with pytest.raises(MissingError):
        contamination(made, [tmp_path / "gone"])
    with pytest.raises(ConfigError, match="named geo"):
        contamination(made, [made, made])
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="r.json is already there"):
        contamination(made, [made], report=tmp_path / "r.json")
    for inside in (made, tmp_path / "out"):
        with pytest.raises(OutputExistsError, match="r.json lies in"):
            contamination(made, [made], tmp_path / "out", report=inside / "r.json", overwrite=True)
    only = messages(tmp_path, [row(1)], "only")
    with pytest.raises(DataError, match="nothing would be left"):
        contamination(only, [only], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path) -> None:
    made = str(messages(tmp_path, ROWS))
    clean = str(messages(tmp_path, [row(77)], "clean"))

    def run(*words: str) -> Any:
        return CliRunner().invoke(command, list(words))

    dry = run(made, "--dry-run", "--by", "pixels")
    assert dry.exit_code == 0 and "11 read = 8 to keep + 3 duplicates" in dry.output
    written = run(made, "--out", str(tmp_path / "out"))
    assert written.exit_code == 0 and "11 read = 9 kept + 2 dropped" in written.output
    assert run(made, "--against", clean).exit_code == 0
    found = run(made, "--against", str(tmp_path / "out"))
    assert found.exit_code == 1 and "8 of 11 hold an image" in found.output
    removed = run(made, "--against", str(tmp_path / "out"), "--out", str(tmp_path / "rest"))
    assert removed.exit_code == 0 and "8 contaminated" in removed.output
    assert len(ids_of(tmp_path / "rest")) == 3
    for words, says in (
        ([made], "--out is missing"),
        ([made, "--dry-run", "--report", "x"], "--report is for --against"),
        ([made, "--against", clean, "--images-only"], "--images-only is for duplicates"),
    ):
        result = run(*words)
        assert isinstance(result.exception, ConfigError) and says in str(result.exception)
