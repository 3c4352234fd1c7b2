from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import amber_world
import pytest
from PIL import Image

from vlmeval.compare import compare
from vlmeval.compare_report import html as comparison_html
from vlmeval.report import terminal
from vlmeval.run import evaluate
from vlmeval.thumbnails import Thumbnails

NASTY = "<script>alert('x')</script> | `a` & \"b\" </td> \N{SNOWMAN}\x00"
VOID = {"meta", "img", "rect", "path", "line", "br"}


class Balanced(HTMLParser):
    """Every tag that opens closes; nothing points outside the file."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not {"href", "srcset", "action"} & values.keys()
        source = values.get("src")
        if source is not None:
            assert source.startswith("data:image/")
            self.pictures.append(source)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert not re.search(r"https?://|url\(|@import", page)
    assert "prefers-color-scheme:dark" in page and 'name="viewport"' in page
    return parser


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("nasty")
    truth = amber_world.truthful()
    for name, change in (("one", {5: NASTY, 1: f"a dog {NASTY}", 29: "Yes"}), ("other", {7: NASTY, 2: ""})):
        path = amber_world.respond(folder / f"{name}.json", {**truth, **change})
        evaluate("amber", data=world, responses=path, out=folder / name, images=world / "images")
    return [folder / "one", folder / "other"]


def test_the_page_of_a_run_stands_alone(runs: list[Path]) -> None:
    page = (runs[0] / "report.html").read_text()
    parser = checked(page)
    assert "<script>alert" not in page and html.escape(NASTY, quote=False)[:20] in page
    assert len(parser.pictures) == 6, "two wrong answers and four captions"
    picture = Image.open(io.BytesIO(base64.b64decode(parser.pictures[0].split(",", 1)[1])))
    assert picture.size == (40, 30)


def test_the_page_of_a_comparison_stands_alone(runs: list[Path]) -> None:
    page = comparison_html(compare(runs))
    parser = checked(page)
    assert page.count("<script>") == 1, "its own script only"
    assert page.count('class="item flip"') == 3
    assert parser.pictures


def test_every_figure_of_the_page_is_in_the_report(runs: list[Path]) -> None:
    page, report = (runs[0] / "report.html").read_text(), json.loads((runs[0] / "report.json").read_text())
    for group, figures in report["official"].items():
        row = re.search(rf"<tr><td>{group.capitalize()}</td>(.*?)</tr>", page, re.S)
        assert row, group
        shown = [float(text) for text in re.findall(r"<td>([\d.]+)", row.group(1))]
        assert shown[: len(figures)] == list(figures.values())


def test_the_reports_without_pictures(world: Path, tmp_path: Path) -> None:
    path = amber_world.respond(tmp_path / "r.json", {5: "No", 6: "No"})
    report = evaluate("amber", data=world, responses=path, out=tmp_path / "e")
    assert not checked((tmp_path / "e" / "report.html").read_text()).pictures
    text = (tmp_path / "e" / "report.md").read_text()
    assert text.startswith("# PARTIAL 2/40: AMBER")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == table[0].count("|") for line in table[:9])
    assert max(map(len, terminal(report).splitlines())) <= 80


def test_terminal_of_a_full_report(runs: list[Path]) -> None:
    report = json.loads((runs[0] / "report.json").read_text())
    plain = terminal(report)
    assert "\x1b" not in plain and max(len(line) for line in plain.splitlines() if "AMBER" not in line) <= 80
    assert "all-no on the same questions (discriminative): accuracy 60.0, F1 75.0" in " ".join(plain.split())
    assert "\x1b[" in terminal(report, color=True)


def test_thumbnails_keep_to_their_budget(tmp_path: Path) -> None:
    for index in range(5):
        Image.effect_noise((400, 300), 80).convert("RGB").save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    one = Thumbnails(tmp_path)("0.png")
    assert one is not None and one.startswith("data:image/jpeg")
    some = Thumbnails(tmp_path, budget=len(one) * 5 // 2)
    made = [some(f"{index}.png") for index in range(5)]
    assert made[0] == one and [url is not None for url in made] == [True, True, False, False, False]
    assert some("0.png") == one and some.left >= 0
    assert some("bad.png") is None and some("none.png") is None and some.skipped == 5
    assert Thumbnails(None)("0.png") is None


def test_very_long_answers(world: Path, tmp_path: Path) -> None:
    path = amber_world.respond(tmp_path / "r.json", {1: "dog " * 25_000, 5: "No " * 33_000, 6: "No"})
    report = evaluate("amber", data=world, responses=path, out=tmp_path / "e", read_answers="word")
    assert report["counts"]["generative"]["hallucinated"] == 25_000
    assert report["counts"]["discriminative"]["said_no"] == 2
    assert (tmp_path / "e" / "report.html").stat().st_size < 60_000
