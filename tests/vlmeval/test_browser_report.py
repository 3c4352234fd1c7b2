"""The reports in a real browser: nothing breaks, everything can be found, opened, linked to and printed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import amber_world
import pytest
from browser import WATCHED, Browser
from PIL import Image
from report_pages import choose, count, link, opened, settle, shown, two_runs

from vlmeval import page, store
from vlmeval.compare import compare
from vlmeval.compare_report import write as write_comparison
from vlmeval.task import load
from vlmeval.thumbnails import Thumbnails

pytestmark = WATCHED

MANY = 15_220


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return two_runs(world, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def report(runs: list[Path]) -> Path:
    return runs[0] / "report.html"


@pytest.fixture(scope="module")
def rows(runs: list[Path]) -> list[dict[str, Any]]:
    return store.read_rows(runs[0] / "scores.jsonl")


@pytest.fixture(scope="module")
def flips(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flips") / "flips.html"
    write_comparison(compare(runs), {"html": out})
    return out


@pytest.fixture(scope="module")
def many(runs: list[Path], rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many items as AMBER has."""
    out = tmp_path_factory.mktemp("many") / "report.html"
    copies = [{**rows[number % len(rows)], "id": number + 1} for number in range(MANY)]
    out.write_text(page.html(load("amber"), store.read_json(runs[0] / "report.json"), copies, []), encoding="utf-8")
    return out


def test_the_overview_is_what_is_seen_first(browser: Browser, report: Path, runs: list[Path]) -> None:
    browser.open(report)
    official = store.read_json(runs[0] / "report.json")["official"]
    text = browser.run("document.getElementById('overview').innerText")
    assert f"{official['discriminative']['accuracy']}" in text and "Existence" in text and "CHAIR" in text
    assert browser.run("document.querySelectorAll('#overview svg.bar').length") > 8
    assert browser.run("document.getElementById('items').offsetParent") is None
    assert browser.run("document.title").startswith("AMBER")


def test_filters_and_search_count_right(browser: Browser, report: Path, rows: list[dict[str, Any]]) -> None:
    browser.open(report)
    browser.press("2")
    judged = [row for row in rows if row["correct"] is not None]
    assert count(browser).startswith(f"{len(rows)} items") and f"{len(rows) - len(judged)} texts" in count(browser)
    choose(browser, "filter-state", "wrong")
    wrong = [row for row in rows if row["correct"] is False and not row["counts"].get("unread")]
    assert shown(browser) == [str(row["id"]) for row in wrong]
    assert count(browser).startswith(f"{len(wrong)} of {len(rows)} items · {len(wrong)} wrong · 0.0 % right")
    choose(browser, "filter-group", "existence")
    assert shown(browser) == [str(row["id"]) for row in wrong if "existence" in row["groups"]] == ["29"]
    browser.run("document.getElementById('clear').click()")
    settle(browser)
    assert len(shown(browser)) > 5 and browser.run("document.getElementById('clear').hidden")
    browser.press("Escape", "/")
    browser.call("Input.insertText", text="TWO dogs")
    assert shown(browser) == ["1"]
    browser.call("Input.insertText", text=" nowhere")
    assert shown(browser) == [] and browser.run("document.getElementById('empty').offsetParent !== null")


def test_a_name_in_the_table_leads_to_its_items(browser: Browser, report: Path, rows: list[dict[str, Any]]) -> None:
    browser.open(report)
    browser.run("document.querySelector('a[href=\"#view=items&group=relation\"]').click()")
    settle(browser)
    members = [row for row in rows if "relation" in row["groups"]]
    assert count(browser).startswith(f"{len(members)} of {len(rows)} items")
    assert browser.run("document.getElementById('filter-group').value") == "relation"
    browser.run("history.back()")
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert browser.run("document.getElementById('overview').hidden") is False


def test_an_item_opens_with_its_image_and_answers(browser: Browser, report: Path, rows: list[dict[str, Any]]) -> None:
    browser.open(report)
    browser.press("2")
    browser.run("document.querySelectorAll('#list .row')[0].click()")
    text = opened(browser)
    assert "Describe this image." in text and "two dogs" in text and "not mentioned" in text.lower()
    marked = browser.run("[...document.querySelectorAll('#large mark.bad')].map((one) => one.textContent)")
    assert marked == ["dogs"]
    names = [row["images"][0] for row in rows]
    url = browser.run("document.querySelector('#large img').src")
    data = json.loads(browser.run("document.getElementById('data').textContent"))
    assert data["pictures"][data["items"][0]["images"][0]] == {"name": names[0], "url": url}
    assert browser.run("document.querySelector('#large img').decode().then(() => true)")
    others = browser.run("document.querySelectorAll('#large .others li').length")
    assert others == names.count(names[0]) - 1
    assert browser.run("location.hash") == "#id=1"


def test_everything_can_be_reached_by_keys(browser: Browser, report: Path, rows: list[dict[str, Any]]) -> None:
    browser.open(report)
    browser.press("2", "j")
    at = "Number(document.activeElement.dataset.at)"
    assert browser.run(at) == 0
    browser.press("ArrowDown", "ArrowDown", "j", "ArrowUp")
    assert browser.run(at) == 2
    browser.press("Enter")
    assert browser.run("location.hash") == "#id=3" and opened(browser)
    browser.press("ArrowRight")
    assert browser.run("location.hash") == "#id=4"
    browser.press("ArrowLeft", "k")
    assert browser.run("location.hash") == "#id=2"
    browser.press("Escape")
    settle(browser)
    assert opened(browser) == "" and browser.run(at) == 1 and browser.run("location.hash") == "#view=items"
    for _ in range(len(rows) + 3):
        browser.press("j")
    assert browser.run(at) == len(rows) - 1
    box = "document.activeElement.getBoundingClientRect()"
    assert browser.run(f"{box}.bottom <= innerHeight && {box}.top >= 0")
    browser.press("?")
    assert browser.run("document.getElementById('keys').open")
    browser.press("Escape", "3")
    assert browser.run("document.getElementById('protocol').offsetParent !== null")


def test_an_address_leads_to_the_same_item_and_filters(browser: Browser, report: Path) -> None:
    link(browser, report, "group=existence&state=wrong&id=29")
    assert "29" in opened(browser) and "WRONG" in opened(browser)
    browser.press("Escape")
    settle(browser)
    assert shown(browser) == ["29"] and browser.run("location.hash") == "#view=items&state=wrong&group=existence"
    link(browser, report, "id=6&state=right")
    assert opened(browser), "an item that the filters hide is shown all the same"
    link(browser, report, "id=nothing&group=%3Cb%3E&state=&q=&view=nowhere")
    assert opened(browser) == "" and count(browser)
    browser.run("location.hash = '#id=7'")
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert opened(browser)
    browser.run("history.back()")
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert opened(browser) == ""


def test_what_models_say_never_runs(browser: Browser, report: Path, flips: Path) -> None:
    for path, name in ((report, "5"), (flips, "5"), (report, "1"), (flips, "1")):
        link(browser, path, f"id={name}")
        browser.run("new Promise((done) => setTimeout(done, 50))")
        assert "document.title='hit'" in opened(browser)
        assert browser.run("document.title") != "hit"
        assert browser.run("document.querySelectorAll('img[src=x]').length") == 0


def test_the_list_is_as_long_as_needed_and_the_page_small(browser: Browser, many: Path) -> None:
    browser.open(many)
    browser.press("2")
    assert count(browser).startswith("15,220 items")
    small = browser.run("document.querySelectorAll('#list li').length")
    assert 5 < small < 60
    assert browser.run("document.documentElement.scrollHeight") > MANY * 60
    browser.run("scrollTo(0, document.documentElement.scrollHeight)")
    settle(browser)
    assert shown(browser)[-1] == str(MANY) and browser.run("document.querySelectorAll('#list li').length") < 60
    browser.run("scrollTo(0, 400000)")
    settle(browser)
    tops = browser.run("[...document.querySelectorAll('#list li')].map((one) => one.getBoundingClientRect().top)")
    assert min(tops) < 300 and max(tops) > 800, "the window is full"
    browser.press("/")
    browser.call("Input.insertText", text="two dogs")
    found = sum(number % len(amber_world.annotations()) == 0 for number in range(MANY))
    assert count(browser).startswith(f"{found} of 15,220 items")
    assert shown(browser)[:2] == ["1", str(1 + len(amber_world.annotations()))]


def ground(browser: Browser) -> list[str]:
    return list(
        browser.run("['--bg', '--ink'].map((one) => getComputedStyle(document.documentElement).getPropertyValue(one))")
    )


def test_light_and_dark(browser: Browser, report: Path) -> None:
    browser.open(report)
    light = ground(browser)
    browser.run("document.getElementById('theme').click()")
    assert ground(browser) == light
    browser.run("document.getElementById('theme').click()")
    dark = ground(browser)
    assert dark != light and browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 25)"
    browser.open(report, dark=False)
    assert ground(browser) == dark, "the choice is remembered"
    browser.run("localStorage.clear()")
    browser.open(report, dark=True)
    assert ground(browser) == dark
    browser.run("document.getElementById('theme').click()")
    assert ground(browser) == light
    browser.run("localStorage.clear()")


def test_paper_has_figures_and_no_endless_list(browser: Browser, report: Path, flips: Path) -> None:
    for path in (report, flips):
        browser.open(path, dark=True)
        browser.press("2")
        browser.call("Emulation.setEmulatedMedia", media="print")
        seen = browser.run(
            "['overview', 'items', 'protocol'].map((one) => document.getElementById(one).offsetParent !== null)"
        )
        assert seen == [True, False, True]
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        pdf = browser.call("Page.printToPDF", printBackground=True)["data"]
        assert len(pdf) > 10_000
        browser.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_is_wider_than_the_window(browser: Browser, report: Path, flips: Path, width: int) -> None:
    for path in (report, flips):
        browser.open(path, width, 780)
        for key in "123":
            browser.press(key)
            assert browser.run("document.documentElement.scrollWidth") <= width, (path, key)
        browser.press("2", "j", "Enter")
        assert opened(browser) and browser.run("document.getElementById('large').scrollWidth") <= width


def test_a_comparison_shows_both_answers(browser: Browser, flips: Path) -> None:
    browser.open(flips)
    browser.press("2")
    assert "1 right → wrong" in count(browser) and "wrong → right" in count(browser)
    choose(browser, "filter-change", "lost")
    assert shown(browser) == ["7"]
    browser.run("document.querySelector('#list .row').click()")
    text = opened(browser)
    assert "one" in text and "other" in text and "RIGHT" in text and "WRONG" in text
    browser.press("Escape")
    settle(browser)
    choose(browser, "filter-change", "less")
    browser.run("document.querySelector('#list .row').click()")
    differs = browser.run(
        "[...document.querySelectorAll('#large .answer')].map((one) => [...one.querySelectorAll('.differs')]"
        ".map((mark) => mark.textContent))"
    )
    assert differs[1] == ["a", "tree"] and {"two", "dogs"} <= set(differs[0])
    assert browser.run("[...document.querySelectorAll('#large mark.bad')].map((one) => one.textContent)") == ["dogs"]


def test_pictures_beside_the_page_are_found_and_missed(browser: Browser, runs: list[Path], tmp_path: Path) -> None:
    world_rows = store.read_rows(runs[0] / "scores.jsonl")
    for name in dict.fromkeys(row["images"][0] for row in world_rows):
        Image.new("RGB", (50, 40), "red").save(tmp_path / name)
    first = next(tmp_path.glob("*.png"))
    first.write_bytes(b"broken")
    pictures = Thumbnails(tmp_path, tmp_path / "thumbnails", budget=0).make(page.image_names(world_rows))
    out = tmp_path / "report.html"
    out.write_text(page.html(load("amber"), store.read_json(runs[0] / "report.json"), world_rows, pictures))
    link(browser, out, "view=items")
    limit = time.monotonic() + 20
    while (
        browser.run("[...document.querySelectorAll('#list img')].filter((one) => one.naturalWidth === 50).length") < 3
    ):
        assert time.monotonic() < limit, "the pictures do not load"
    labels = browser.run("[...document.querySelectorAll('#list .none')].map((one) => one.title)")
    assert labels and set(labels) == {f"{first.name}: not an image that can be read"}
    for path in (tmp_path / "thumbnails").iterdir():
        path.unlink()
    link(browser, out, "id=3")
    missed = "the folder thumbnails/ with its pictures is not beside this page"
    while missed not in opened(browser) and first.name not in opened(browser):
        assert time.monotonic() < limit
    browser.errors.clear()  # the browser itself notes files that are not there


@pytest.mark.parametrize("dark", [False, True])
def test_texts_can_be_read_against_their_ground(browser: Browser, report: Path, dark: bool) -> None:
    """WCAG 2.2 asks for a contrast of 4.5 to 1."""
    browser.open(report, dark=dark)
    on = {
        "--ink": ("--bg", "--card", "--good-bg", "--bad-bg", "--good-mark", "--bad-mark", "--chip", "--wash"),
        "--soft": ("--bg", "--card", "--chip", "--wash"),
        "--accent": ("--card", "--bg"),
        "--good": ("--good-bg", "--bg", "--card"),
        "--bad": ("--bad-bg", "--bg", "--card"),
    }
    for text, grounds in on.items():
        for ground in grounds:
            assert browser.contrast(text, ground) >= 4.5, (text, ground)


def test_what_screen_readers_need_is_there(browser: Browser, report: Path, flips: Path) -> None:
    for path in (report, flips):
        browser.open(path)
        browser.press("2")
        assert browser.run("[...document.images].every((one) => one.hasAttribute('alt'))")
        controls = "[...document.querySelectorAll('button, select, input')]"
        assert browser.run(f"{controls}.filter((one) => !(one.textContent.trim() || one.ariaLabel)).length") == 0
        assert browser.run("document.querySelectorAll('[role=tab][aria-selected=true]').length") == 1
        assert browser.run("document.querySelector('#list li').getAttribute('aria-setsize')") is not None
