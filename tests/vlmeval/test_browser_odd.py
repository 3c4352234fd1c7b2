"""Reports of whatever a task or a comparison can bring: every item opens, nothing is complained of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import amber_world
import pytest
from browser import WATCHED, Browser
from report_pages import NASTY, choose, count, link, opened, settle, two_runs

from vlmeval import page, store
from vlmeval.compare import compare
from vlmeval.compare_report import write as write_comparison
from vlmeval.run import evaluate
from vlmeval.task import load
from vlmeval.thumbnails import Thumbnails

pytestmark = WATCHED


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return two_runs(world, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def rows(runs: list[Path]) -> list[dict[str, Any]]:
    return store.read_rows(runs[0] / "scores.jsonl")


STRANGE: list[dict[str, Any]] = [
    {"detail": {"a": None, "b": [], "c": {}, "d": {"e": [1, 2], "f": ["x", None]}, "g": [[1], {"h": True}], "i": 1e-9}},
    {"detail": {"probabilities": {"Yes": float("nan"), "No": 2.0}}, "response": None, "correct": False},
    {"detail": {"log_likelihoods": [-1.5, -2.25], "tokens": [3, 4]}, "response": "1", "answer": "rejected"},
    {"target": {"truth": ["a"], "hallu": "b", "deep": {"x": [1]}}, "facets": {"state": "Ohio", "id": "7", "q": NASTY}},
    {"target": 7.5, "images": ["gone.png", "gone.png", "other.png"], "prompt": None, "id": "a b&c#d/é=1"},
    {"target": [], "groups": ["not a group"], "response": "", "correct": None, "facets": {"state": "Utah"}},
    {
        "turns": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "image", "text": None}]},
        ]
    },
    {"response": "x" * 50_000, "prompt": "word " * 5_000, "detail": {"long": "y" * 50_000, NASTY: NASTY}},
]


def test_whatever_a_task_reports_can_be_opened(
    browser: Browser, runs: list[Path], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    strange = [{**rows[4], "id": f"s{number}", **change} for number, change in enumerate(STRANGE)]
    report = store.read_json(runs[0] / "report.json")
    report["tables"] = [
        {
            "title": NASTY,
            "columns": ["id", "state", NASTY, ""],
            "rows": [["s1", "Ohio", None, [1]], [1, True, 2.5, NASTY]],
        },
        {"title": "empty", "columns": ["a"], "rows": []},
    ]
    pictures = Thumbnails(None).make(page.image_names(strange))
    (tmp_path / "r.html").write_text(page.html(load("amber"), report, strange, pictures), encoding="utf-8")
    browser.open(tmp_path / "r.html")
    browser.press("2", "j", "Enter")
    for row in strange:
        assert browser.run("new URLSearchParams(location.hash.slice(1)).get('id')") == str(row["id"])
        assert opened(browser)
        browser.press("ArrowRight")
    browser.press("Escape")
    settle(browser)
    choose(browser, "filter-facet-state", "Ohio")
    assert count(browser).startswith(f"1 of {len(strange)} items")
    assert browser.run("document.querySelector('a[href=\"#id=s1\"]') !== null"), "an id in a table leads to its item"
    for order in browser.run("[...document.getElementById('order').options].map((one) => one.value)"):
        choose(browser, "order", order)
    assert browser.run("document.title") != "hit"


def test_runs_that_answered_different_items(browser: Browser, world: Path, runs: list[Path], tmp_path: Path) -> None:
    truth = amber_world.truthful()
    path = amber_world.respond(tmp_path / "r.json", {number: truth[number] for number in (1, 5, 6, 9)})
    evaluate("amber", data=world, responses=path, out=tmp_path / "few")
    write_comparison(compare([*runs, tmp_path / "few"]), {"html": tmp_path / "c.html"})
    browser.open(tmp_path / "c.html")
    assert "PARTIAL" in browser.run("document.getElementById('overview').innerText")
    link(browser, tmp_path / "c.html", "id=7~0")
    assert "not asked" in opened(browser) and "few" in opened(browser)
    browser.press("ArrowRight")
    assert opened(browser)
