"""The gallery in a real browser: nothing breaks, everything can be reached by keys, a phone needs no side scroll."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import WATCHED, Browser
from rawfiles import CAULDRON, RLAIF, chat, encoded, food_schema, image, pairs, rlaif_row, write_json, write_parquet

from vlmdata.convert import Conversion, convert
from vlmdata.preview import preview
from vlmdata.shards import open_shards

pytestmark = WATCHED

NASTY = "</script><script>document.title='hit'</script><img src=x onerror='document.title=1'><!-- &amp;"
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 8


def page_of(done: Conversion, **options: Any) -> Path:
    return preview(open_shards(done.out), done.out.parent / "gallery.html", **options).path


@pytest.fixture(scope="module")
def food(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("food")
    rows = [{"image": image(number), "label": number % 3} for number in range(30)]
    raw = write_parquet(folder / "x.parquet", rows, food_schema(["pizza", "sushi", NASTY]))
    return page_of(convert("food101", raw, folder / "out"), count=24)


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    folder = tmp_path_factory.mktemp("preferences")
    rows = [rlaif_row(number, chosen=f"A {LONG} stands.", rejected="A dog stands.") for number in range(8)]
    rows += [rlaif_row(number, rejected="A gradient.") for number in range(8, 13)]
    rows += [rlaif_row(number, question=" ") for number in range(13, 16)]
    done = convert("rlaif_v", write_parquet(folder / "x.parquet", rows, RLAIF), folder / "out")
    page_of(done)
    return done


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wild")
    (folder / "a.jpg").write_bytes(encoded(size=(300, 20)))
    rows = [
        chat(f"<image><image>{NASTY} {LONG}", NASTY, ["a.jpg"] * 2),
        chat("<image>" * 6 + "six", "مرحبا بالعالم", ["a.jpg"] * 6),
        chat("no image at all", LONG),
        chat(NASTY, "refused", ["a.jpg"]),
    ]
    return page_of(convert("ocr_json", write_json(folder / f"{LONG[:60]}.json", rows), folder / "out", licence=NASTY))


def shown(browser: Browser) -> int:
    return int(browser.run("[...document.querySelectorAll('#cards > li')].filter((item) => item.offsetParent).length"))


def type_into(browser: Browser, text: str) -> None:
    browser.call("Input.insertText", text=text)


def test_search_and_filters_narrow_the_rows(browser: Browser, food: Path) -> None:
    browser.open(food)
    assert shown(browser) == 24 and "24 of 30 rows are on this page" in browser.run("document.body.innerText")
    browser.press("/")
    assert browser.run("document.activeElement.id") == "search"
    type_into(browser, "SUSHI")
    sushi = browser.run(
        "JSON.parse(document.getElementById('data').textContent).rows.filter((row) => row.label === 'sushi').length"
    )
    assert shown(browser) == sushi > 0
    assert browser.run("document.getElementById('count').textContent") == f"{sushi} of 24 rows fit"
    type_into(browser, " nowhere")
    assert shown(browser) == 0 and browser.run("document.getElementById('empty').offsetParent !== null")
    browser.run("document.getElementById('clear-empty').click()")
    assert shown(browser) == 24
    browser.run("""(() => {
        const select = document.getElementById('filter-label');
        select.value = [...select.options].find((one) => one.text.startsWith('pizza')).value;
        select.dispatchEvent(new Event('change'));
    })()""")
    labels = browser.run(
        "[...document.querySelectorAll('#cards > li:not([hidden]) .chip.label')].map((one) => one.textContent)"
    )
    assert set(labels) == {"pizza"} and len(labels) == shown(browser) < 24


def test_every_row_can_be_reached_by_keys(browser: Browser, food: Path) -> None:
    browser.open(food)
    focused = "[...document.querySelectorAll('.card')].indexOf(document.activeElement)"
    browser.press("j")
    assert browser.run(focused) == 0
    browser.press("j", "j", "k", "ArrowRight")
    assert browser.run(focused) == 2
    browser.press("ArrowDown")
    below = browser.run(focused)
    assert below > 3
    browser.press("ArrowUp")
    assert browser.run(focused) == 2
    browser.press("Enter")
    title = "document.getElementById('large-title').textContent"
    assert browser.run("document.getElementById('large').open")
    third = browser.run(title)
    browser.press("j")
    assert browser.run(title) != third
    browser.press("ArrowLeft")
    assert browser.run(title) == third
    browser.press("Escape")
    assert not browser.run("document.getElementById('large').open") and browser.run(focused) == 2
    browser.press("?")
    assert browser.run("document.getElementById('keys').open")
    browser.press("Escape", "3")
    assert not browser.run("document.getElementById('keys').open")
    assert browser.run("document.getElementById('stats').offsetParent !== null")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement.id") == "tab-dataset" and browser.run("location.hash") == "#dataset"


def test_the_number_of_rejects_is_that_of_the_manifest(browser: Browser, preferences: Conversion) -> None:
    browser.open(preferences.out.parent / "gallery.html")
    browser.press("2")
    buttons = browser.run(
        "[...document.querySelectorAll('.reason')].map((one) => [one.dataset.reason,"
        " Number(one.querySelector('b').textContent)])"
    )
    assert dict(buttons) == {"": preferences.manifest.rows.rejected, **preferences.manifest.rejected}
    visible = "[...document.querySelectorAll('.reject')].filter((one) => one.offsetParent).length"
    assert browser.run(visible) == 8
    for reason, count in preferences.manifest.rejected.items():
        browser.run(f"document.querySelector('[data-reason={reason}]').click()")
        assert browser.run(visible) == count
    assert browser.run("document.querySelectorAll('.reject img').length") == 8


def test_what_the_data_brings_never_runs(browser: Browser, wild: Path, food: Path) -> None:
    for path in (wild, food):
        browser.open(path)
        browser.press("j", "Enter")
        assert "·" in browser.run("document.title")
        assert NASTY in browser.run("document.body.textContent")
        assert browser.run("document.querySelectorAll('img[src=x]').length") == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_is_wider_than_the_window(
    browser: Browser, food: Path, wild: Path, preferences: Conversion, width: int, dark: bool
) -> None:
    for path in (food, wild, preferences.out.parent / "gallery.html"):
        browser.open(path, width, 780, dark=dark)
        for key in "1234":
            browser.press(key)
            assert browser.run("document.documentElement.scrollWidth") <= width, (path, key)
        browser.press("1", "j", "Enter")
        assert browser.run("document.getElementById('large').scrollWidth") <= width
        assert browser.run("document.getElementById('large').open")


@pytest.mark.parametrize("dark", [False, True])
def test_texts_can_be_read_against_their_ground(browser: Browser, preferences: Conversion, dark: bool) -> None:
    """WCAG 2.2 asks for a contrast of 4.5 to 1."""
    browser.open(preferences.out.parent / "gallery.html", dark=dark)
    on = {
        "--ink": ("--bg", "--card", "--good-bg", "--bad-bg", "--good-mark", "--bad-mark", "--chip"),
        "--soft": ("--bg", "--card", "--chip"),
        "--accent": ("--card", "--wash", "--bg"),
        "--good": ("--good-bg",),
        "--bad": ("--bad-bg", "--bg"),
    }
    for text, grounds in on.items():
        for ground in grounds:
            assert browser.contrast(text, ground) >= 4.5, (text, ground)


def test_what_screen_readers_need_is_there(browser: Browser, food: Path, wild: Path) -> None:
    for path in (food, wild):
        browser.open(path)
        assert browser.run("[...document.images].every((one) => one.hasAttribute('alt'))")
        unnamed = (
            "[...document.querySelectorAll('button, select, input')].filter((one) => "
            "!(one.textContent.trim() || one.ariaLabel)).length"
        )
        assert browser.run(unnamed) == 0
        assert browser.run("document.querySelectorAll('[role=tab][aria-selected=true]').length") == 1
        assert browser.run(
            "[...document.querySelectorAll('[role=tab]')]"
            ".every((one) => document.getElementById(one.getAttribute('aria-controls')))"
        )
        assert browser.run("document.querySelectorAll('.card[tabindex=\"0\"]').length") == 1


def test_many_rows_are_drawn_and_searched(browser: Browser, tmp_path: Path) -> None:
    texts = [pairs((f"Question {number}?", "word " * 90)) for number in range(500)]
    rows = [{"images": [image(number % 9)], "texts": talk} for number, talk in enumerate(texts)]
    raw = write_parquet(tmp_path / "x.parquet", rows, CAULDRON)
    done = convert("the_cauldron", raw, tmp_path / "out", config="vsr")
    browser.open(page_of(done, count=500))
    assert shown(browser) == 500
    browser.press("/")
    type_into(browser, "question 499?")
    assert shown(browser) == 1
