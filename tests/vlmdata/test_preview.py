from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rawfiles import CAULDRON, RLAIF, chat, encoded, food_schema, image, pairs, picture, rlaif_row, write_parquet
from rawfiles import write_json as write_raw

from vlmdata.charts import histogram_svg
from vlmdata.commands.preview import preview as command
from vlmdata.convert import convert
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmdata.gallery_rows import LONGEST_TEXT, choose
from vlmdata.histogram import distribution
from vlmdata.manifest import RowCounts
from vlmdata.preview import preview, script_json
from vlmdata.shards import Shards, open_shards
from vlmdata.thumbnails import thumbnail, thumbnails
from vlmdata.word_diff import word_diff

NASTY = "</script><script>document.title='hit'</script><img src=x onerror='document.title=1'><!-- {{ 7*7 }} & \u2028"


class Page(HTMLParser):
    """Elements, ids, addresses and the data of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self._in_data = False
        self.data: dict[str, Any] = {}
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags[tag] += 1
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action") and value]
        self.ids += [value for name, value in attrs if name == "id" and value]
        self._in_data = values.get("id") == "data"
        assert not [name for name in values if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data = json.loads(data)
        else:
            self.words.append(data)


def made(tmp_path: Path, source: str, raw: Path, **options: Any) -> Shards:
    return open_shards(convert(source, raw, tmp_path / "shards", **options).out)


def talks(tmp_path: Path, count: int, **options: Any) -> Shards:
    rows = [{"images": [image(number % 5)], "texts": pairs((f"Q{number}?", f"A{number}."))} for number in range(count)]
    raw = write_parquet(tmp_path / "x.parquet", rows, CAULDRON)
    return made(tmp_path, "the_cauldron", raw, config="clevr", **options)


def test_a_page_holds_the_rows_and_loads_nothing(tmp_path: Path) -> None:
    shards = talks(tmp_path, 12)
    done = preview(shards, tmp_path / "new" / "x.html")
    page = Page(done.path)
    assert (done.rows, done.records, done.rejects) == (12, 12, 0)
    assert [row["id"] for row in page.data["rows"]] == [row["id"] for row in shards.rows(["id"])]
    assert page.data["rows"][3]["turns"] == [
        {"role": "user", "parts": [0, "Q3?"]},
        {"role": "assistant", "parts": ["A3."]},
    ]
    assert page.addresses == ["#rows"] and not page.tags["link"] and not page.tags["base"]
    assert "default-src 'none'" in page.text and "url(" not in page.text and "@import" not in page.text
    assert len(page.ids) == len(set(page.ids))
    assert len(page.data["pictures"]) == 5, "an image that several rows share is held once"


def test_the_policy_names_the_script_of_the_page(tmp_path: Path) -> None:
    text = preview(talks(tmp_path, 1), tmp_path / "x.html").path.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    shards = talks(tmp_path, 40)
    pages = [preview(shards, tmp_path / f"{n}.html", count=9, seed=n // 2).path.read_bytes() for n in range(4)]
    assert pages[0] == pages[1] and pages[2] == pages[3] and pages[0] != pages[2]


def test_what_the_data_brings_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded())
    rows = [
        chat(f"<image>{NASTY}", NASTY, ["a.jpg"], id=NASTY),
        chat("No image place", "x", ["a.jpg"], id=NASTY),
    ]
    shards = made(tmp_path, "ocr_json", write_raw(tmp_path / "x.json", rows), licence=NASTY)
    page = Page(preview(shards, tmp_path / "x.html").path)
    assert page.tags["script"] == 2 and page.tags["img"] == 0
    row = page.data["rows"][0]
    assert row["turns"][0]["parts"] == [0, NASTY] and row["turns"][1]["parts"] == [NASTY] and row["licence"] == NASTY
    assert page.data["rejects"][0]["reason"] == "image_count"
    assert NASTY in "".join(page.words)


def test_labels_with_markup_stay_text(tmp_path: Path) -> None:
    rows = [{"image": image(number), "label": number % 2} for number in range(4)]
    raw = write_parquet(tmp_path / "x.parquet", rows, food_schema([NASTY, "pizza"]))
    page = Page(preview(made(tmp_path, "food101", raw), tmp_path / "x.html").path)
    assert [row["label"] for row in page.data["rows"]] == [NASTY, "pizza"] * 2
    assert page.tags["script"] == 2 and page.tags["img"] == 0


json_values = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(), st.sampled_from([NASTY, "<!--", "]]>", "<ScRiPt", "\ud800"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


@given(json_values)
def test_json_cannot_leave_its_element(value: Any) -> None:
    text = script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text.encode("utf-8", "backslashreplace")) == value


def test_preferences_mark_what_differs(tmp_path: Path) -> None:
    row = rlaif_row(chosen="A red car stands.", rejected="A blue car stands.")
    shards = made(tmp_path, "rlaif_v", write_parquet(tmp_path / "x.parquet", [row], RLAIF))
    page = Page(preview(shards, tmp_path / "x.html").path)
    assert page.data["rows"][0]["chosen"] == [["A ", False], ["red", True], [" car stands.", False]]
    assert page.data["rows"][0]["rejected"] == [["A ", False], ["blue", True], [" car stands.", False]]
    assert "Not for commercial use" in page.text


def test_rejects_are_counted_explained_and_shown(tmp_path: Path) -> None:
    rows = [rlaif_row(number) for number in range(6)]
    rows += [rlaif_row(number, rejected="A gradient.") for number in range(6, 26)]
    rows += [rlaif_row(30, image={"bytes": b"no image", "path": None}), rlaif_row(31, question=" ")]
    shards = made(tmp_path, "rlaif_v", write_parquet(tmp_path / "x.parquet", rows, RLAIF))
    done = preview(shards, tmp_path / "x.html", count=8)
    page = Page(done.path)
    shown = Counter(reject["reason"] for reject in page.data["rejects"])
    assert shown == {"same_answers": 6, "image_format": 1, "empty_turn": 1} and done.rejects == 8
    assert all(reject["why"] for reject in page.data["rejects"])
    same = [reject for reject in page.data["rejects"] if reject["reason"] == "same_answers"]
    assert all(len(reject["thumbs"]) == 1 and "What is shown in" in reject["raw"] for reject in same)
    broken = next(reject for reject in page.data["rejects"] if reject["reason"] == "image_format")
    assert broken["thumbs"] == [] and broken["place"] == "x.parquet, row 26"
    words = " ".join(" ".join(page.words).split())
    assert "28 raw rows read = 6 kept + 22 rejected" in words and "8 of 22 rejected rows are on this page" in words


def test_a_derived_dataset_tells_what_it_dropped(tmp_path: Path) -> None:
    shards = talks(tmp_path, 6)
    manifest = replace(shards.manifest, command="filter", rows=RowCounts(9, 6, 3), rejected={"filtered_size": 3})
    manifest.write(shards.path)
    line = {"id": "x", "file": None, "row": None, "reason": "filtered_size", "detail": "too small"}
    (shards.path / "rejects.jsonl").write_text("".join(json.dumps(line) + "\n" for _ in range(3)))
    page = Page(preview(open_shards(shards.path), tmp_path / "x.html").path)
    words = " ".join(" ".join(page.words).split())
    assert "9 rows read = 6 kept + 3 dropped" in words and "kept + rejected" not in words
    assert [reject["place"] for reject in page.data["rejects"]] == [""] * 3


@pytest.mark.parametrize("total", [1, 7, 100, 12_345])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_rows_are_spread_over_the_whole_dataset(total: int, count: int) -> None:
    chosen = choose(total, count, 3)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(total, count)
    assert 0 <= chosen[0] and chosen[-1] < total
    if total > count:
        assert all(
            total * index // count <= number < total * (index + 1) // count for index, number in enumerate(chosen)
        )
    assert choose(total, count, 3) == chosen


def test_the_page_says_how_much_it_shows(tmp_path: Path) -> None:
    shards = talks(tmp_path, 30, shard_size=3000)
    assert len(shards.files) > 2
    done = preview(shards, tmp_path / "x.html", count=10)
    page = Page(done.path)
    assert "10 of 30 rows are on this page" in page.text and len(page.data["rows"]) == 10
    rows = list(shards.rows(["id"]))
    assert [row["id"] for row in page.data["rows"]] == [rows[row["number"]]["id"] for row in page.data["rows"]]


def test_a_huge_text_is_cut_and_says_so(tmp_path: Path) -> None:
    rows = [{"images": [image()], "texts": pairs(("q", "x" * (LONGEST_TEXT + 1234)))}]
    raw = write_parquet(tmp_path / "x.parquet", rows, CAULDRON)
    page = Page(preview(made(tmp_path, "the_cauldron", raw, config="vsr"), tmp_path / "x.html").path)
    assert page.data["rows"][0]["turns"][1]["parts"][0].endswith("[1,234 more characters]")
    assert page.data["rows"][0]["characters"] == LONGEST_TEXT + 1235


def test_rows_without_images(tmp_path: Path) -> None:
    shards = made(tmp_path, "ocr_json", write_raw(tmp_path / "x.json", [chat("Hello?", "Hi.")]))
    page = Page(preview(shards, tmp_path / "x.html").path)
    assert page.data["rows"][0]["images"] == [] and page.data["pictures"] == []


def test_command_and_mistakes(tmp_path: Path) -> None:
    shards, out, runner = talks(tmp_path, 3), tmp_path / "x.html", CliRunner()
    done = runner.invoke(command, [str(shards.path), "--out", str(out), "--rows", "2"])
    assert done.exit_code == 0 and "2 of 3 rows" in done.stdout, done.output
    before = out.read_bytes()
    assert isinstance(runner.invoke(command, [str(shards.path), "--out", str(out)]).exception, OutputExistsError)
    assert out.read_bytes() == before
    assert runner.invoke(command, [str(shards.path), "--out", str(out), "--overwrite"]).exit_code == 0
    assert out.read_bytes() != before
    for words in (["--rows", "0"], ["--rows", "9999"], ["--thumbnail", "9"]):
        failed = runner.invoke(command, [str(shards.path), "--out", str(tmp_path / "y.html"), *words])
        assert isinstance(failed.exception, ConfigError) and words[1].lstrip("0") in str(failed.exception)
    gone = runner.invoke(command, [str(tmp_path / "none"), "--out", str(tmp_path / "y.html")])
    assert isinstance(gone.exception, MissingError)
    inside = runner.invoke(command, [str(shards.path), "--out", str(shards.path / "y.html")])
    assert isinstance(inside.exception, OutputExistsError)
    (shards.path / "rejects.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"rejects\.jsonl cannot be read"):
        preview(shards, tmp_path / "y.html")
    assert not list(tmp_path.glob("y.html*"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_thumbnails_keep_the_shape(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    url = thumbnail(encoded(mode, (400, 200), kind), 100)
    assert url is not None and url.startswith("data:image/webp;base64,")
    small = picture(base64.b64decode(url.partition(",")[2]))
    assert small.size == (100, 50) and small.mode == "RGB"


def test_thumbnails_of_transparent_and_turned_pictures() -> None:
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    turned = Image.new("RGB", (80, 40), "red")
    tags = Image.Exif()
    tags[0x0112] = 6
    found = []
    for one, kind, more in ((clear, "PNG", {}), (turned, "JPEG", {"exif": tags})):
        out = BytesIO()
        one.save(out, kind, **more)
        url = thumbnail(out.getvalue(), 64)
        assert url is not None
        found.append(picture(base64.b64decode(url.partition(",")[2])))
    assert min(np.asarray(found[0]).ravel()) > 250
    assert found[1].size == (32, 64)


@pytest.mark.parametrize("data", [b"", b"x", encoded()[:100], b"%PDF-1.7", encoded(kind="PNG")[:60]])
def test_what_is_no_image_has_no_thumbnail(data: bytes) -> None:
    assert thumbnail(data, 64) is None


def test_thumbnails_come_in_order() -> None:
    images = [encoded(size=(10 + number, 10)) for number in range(90)]
    found = [picture(base64.b64decode((url or "").partition(",")[2])).width for url in thumbnails(images, 200)]
    assert found == list(range(10, 100))


words = st.lists(st.sampled_from(["a", "b", "c", " ", "  ", ",", "\n", "é", "<b>"]), max_size=24).map("".join)


@settings(max_examples=300, deadline=None)
@given(words, words)
def test_differing_words_join_to_the_texts(left: str, right: str) -> None:
    a, b = word_diff(left, right)
    assert "".join(text for text, _ in a) == left and "".join(text for text, _ in b) == right
    for pieces in (a, b):
        assert all(x[1] != y[1] for x, y in zip(pieces, pieces[1:], strict=False)) and all(text for text, _ in pieces)
    assert (left != right) or not any(differs for _, differs in a + b)
    kept = ["".join("".join(text for text, differs in side if not differs).split()) for side in (a, b)]
    assert kept[0] == kept[1]


def test_long_texts_are_compared_at_their_ends() -> None:
    middle = "word " * 3000
    a, b = word_diff(f"same {middle}old end", f"same {middle}new end")
    assert [text for text, differs in a if differs] == ["old"] and [text for text, differs in b if differs] == ["new"]


@pytest.mark.parametrize("largest", [9, 900, 9e3, 9e4, 2_100_000, 9e7])
def test_labels_of_an_axis_do_not_lie_on_each_other(largest: float) -> None:
    spread = distribution(np.array([1, 2, 3, largest], np.int64))
    assert spread is not None
    ends = 0.0
    for text in ElementTree.fromstring(histogram_svg(spread, "x", "")).iter("text"):
        place, width = float(text.get("x") or 0), len(text.text or "") * 6.5
        start = place - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor") or ""]
        assert start >= ends
        ends = start + width


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.sampled_from(["px", '<"&', ""]))
def test_charts_are_sound_xml(values: list[float], unit: str) -> None:
    spread = distribution(np.array(values))
    assert spread is not None
    root = ElementTree.fromstring(histogram_svg(spread, "a <title>", unit))
    bars = [element for element in root.iter() if element.get("class") == "fill"]
    assert len(bars) == len(list(spread.bins()))
    assert all(float(bar.get("height") or -1) >= 0 and float(bar.get("y") or -1) >= 0 for bar in bars)
    assert "from" in (root.get("aria-label") or "")
