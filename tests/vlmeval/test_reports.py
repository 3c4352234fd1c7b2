"""What an evaluation leaves to be read: pages that stand alone, Markdown that GitHub leaves alone, a terminal table."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import amber_world
import pytest
from PIL import Image

from vlmeval import drawing, page, published_table, store
from vlmeval.charts import Curve, Matrix, Scatter
from vlmeval.compare import compare
from vlmeval.compare_report import html as comparison_html
from vlmeval.compare_report import markdown as comparison_markdown
from vlmeval.compare_report import terminal as comparison_terminal
from vlmeval.compare_report import write as write_comparison
from vlmeval.markdown import code, escape, markdown
from vlmeval.report import terminal, write
from vlmeval.run import evaluate
from vlmeval.task import load
from vlmeval.thumbnails import Thumbnails
from vlmeval.view import Cell

NASTY = "<script>alert('x')</script> | `a` & \"b\" </td> </script> \u2028 @you #12 GH-12 \N{SNOWMAN}\x00\x1b[31m"
VOID = {"meta", "img", "rect", "path", "line", "br", "input", "circle"}


class Balanced(HTMLParser):
    """Every tag that opens closes; nothing points outside the file."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not {"srcset", "action", "src", "style"} & values.keys()
        assert not [name for name in values if name.startswith("on")], "no inline handler"
        assert (values.get("href") or "#").startswith("#")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(text: str) -> dict[str, Any]:
    """The data of a page that is well formed and refers to nothing."""
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    shell = re.sub(r'<script type="application/json" id="data">.*?</script>', "", text, flags=re.S)
    assert not re.search(r"url\(|@import|<link", shell) and "connect-src" not in shell
    assert "default-src &#39;none&#39;" in shell and 'name="viewport"' in shell
    assert text.count("<script") == 2, "its data and its own script"
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("nasty")
    truth = amber_world.truthful()
    for name, change in (("one", {5: NASTY, 1: f"a dog {NASTY}", 29: "Yes"}), ("other", {7: NASTY, 2: ""})):
        path = amber_world.respond(folder / f"{name}.json", {**truth, **change})
        evaluate("amber", data=world, responses=path, out=folder / name, images=world / "images")
    return [folder / "one", folder / "other"]


def test_the_page_of_a_run_stands_alone(runs: list[Path]) -> None:
    text = (runs[0] / "report.html").read_text()
    data = checked(text)
    assert "<script>alert" not in text and "\x00" not in text and "\x1b" not in text
    said = {item["id"]: item for item in data["items"]}
    assert (
        len(said) == len(amber_world.annotations())
        and said[5]["said"] == NASTY
        and said[5]["state"] != "right"
        and said[29]["state"] == "wrong"
    )
    assert said[1]["detail"]["hallucinated"] == ["dog"] and said[1]["state"] == "text"
    first = data["pictures"][said[1]["images"][0]]
    assert first["name"] == "AMBER_1.png"
    picture = Image.open(io.BytesIO(base64.b64decode(first["url"].split(",", 1)[1])))
    assert picture.size == (40, 30)


def test_the_page_of_a_comparison_stands_alone(runs: list[Path]) -> None:
    data = checked(comparison_html(compare(runs)))
    flips = [(data["items"][at]["id"], kind) for at, _, kind in data["changes"]]
    assert sorted(flips) == [(1, "less"), (2, "reworded"), (5, "won"), (7, "lost"), (29, "won")]
    assert data["runs"] == ["one", "other"] and data["pairs"] == [[0, 1]]
    five = next(item for item in data["items"] if item["id"] == 5)
    assert [said["said"] for said in five["answers"]] == [NASTY, "Yes"] and five["images"]


def test_every_figure_of_the_page_is_in_the_report(runs: list[Path]) -> None:
    text, report = (runs[0] / "report.html").read_text(), store.read_json(runs[0] / "report.json")
    for group, figures in report["official"].items():
        row = re.search(
            rf'<tr><td><a href="#view=items&amp;group={group}">{group.capitalize()}</a></td>(.*?)</tr>', text
        )
        assert row, group
        shown = [float(value) for value in re.findall(r"<td>([\d.]+)", row.group(1))]
        assert shown[: len(figures)] == list(figures.values())


def test_the_reports_without_pictures(world: Path, tmp_path: Path) -> None:
    path = amber_world.respond(tmp_path / "r.json", {5: "No", 6: "No"})
    (tmp_path / "none").mkdir()
    report = evaluate("amber", data=world, responses=path, out=tmp_path / "e", images=tmp_path / "none")
    begin = str(report["headline"]).split(" · ")[0]
    assert begin == f"PARTIAL 2/{report['coverage']['expected']}"
    data = checked((tmp_path / "e" / "report.html").read_text())
    assert [picture["why"] for picture in data["pictures"]] == ["the image is missing"] * 2
    assert not (tmp_path / "e" / "thumbnails").exists()
    text = (tmp_path / "e" / "report.md").read_text()
    assert text.startswith(f"# {begin}: AMBER")
    assert text.index(f"| {begin} |") < text.index("<details>") and text.count("<details>") == text.count("</details>")
    assert max(map(len, terminal(report).splitlines())) <= 80


def test_tables_of_markdown_have_one_width(runs: list[Path]) -> None:
    for text in ((runs[0] / "report.md").read_text(), comparison_markdown(compare(runs))):
        block: list[int] = []
        for line in [*text.splitlines(), ""]:
            if line.startswith("|"):
                block.append(len(re.findall(r"(?<!\\)\|", line)))
            else:
                assert len(set(block)) <= 1, text
                block = []


def test_markdown_notifies_nobody_and_links_nothing() -> None:
    text = escape(NASTY + "\nhttps://example.org/a_b www.example.org *x* _y_ [z](w) a@b.c \\ $x$ ~~q~~")
    assert "\n" not in text and "<script" not in text and not re.search(r"(?<!\\)[|`*_\[\]~$]", text)
    assert not re.search(r"@\w|#\d|GH-\d|://", text), text
    assert "@<!-- -->you" in text and "#<!-- -->12" in text
    for start in ("- a", "# a", "1. a", "+ a", "= a"):
        assert not re.match(r"\s*([-+#=]|\d+[.)])", escape(start)), start
    assert code("a|b") == "`a\\|b`" and code("``x`") == "``` ``x` ```" and code(" ") == "–"


def test_terminal_of_a_full_report(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    report = store.read_json(runs[0] / "report.json")
    plain = terminal(report)
    assert "\x1b" not in plain and max(len(line) for line in plain.splitlines() if "AMBER" not in line) <= 80
    assert "all-no on the same questions (discriminative): accuracy 60.0, F1 75.0" in " ".join(plain.split())
    assert "\x1b[" in terminal(report, color=True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in terminal(report, width=80)


def test_nothing_steers_the_terminal(runs: list[Path]) -> None:
    report = store.read_json(runs[0] / "report.json")
    report["protocol"]["answers"] = {"kind": "responses", "file": f"{NASTY}\r\x9b2J"}
    report["notes"] = [NASTY]
    report["published"] = {
        "rows": [{"name": NASTY, "figures": {"accuracy": 1.0}, "source": NASTY}],
        "warnings": [NASTY],
    }
    controls = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
    assert not controls.search(terminal(report, width=80))
    renamed = compare(runs, names=[f"a{NASTY}", "b"])
    assert not controls.search(comparison_terminal(renamed))
    for text in (markdown(load("amber"), report), comparison_markdown(renamed)):
        assert not controls.search(text) and not re.search(r"@you|#12|GH-12|<script", re.sub(r"(`+).*?\1", "", text))


def test_many_runs_fit_the_terminal(runs: list[Path], tmp_path: Path) -> None:
    folders = [(tmp_path / f"checkpoint-with-a-long-name-{index}") for index in range(6)]
    for folder in folders:
        shutil.copytree(runs[0], folder)
    text = comparison_terminal(compare(folders), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"name-{index}" in "".join(text.split()) for index in range(6))


def test_very_long_answers_are_shortened_and_said_so(world: Path, tmp_path: Path) -> None:
    path = amber_world.respond(tmp_path / "r.json", {1: "dog " * 25_000, 5: "No " * 33_000, 6: "No"})
    report = evaluate("amber", data=world, responses=path, out=tmp_path / "e", read_answers="word")
    assert report["counts"]["generative"]["hallucinated"] == 25_000
    assert report["counts"]["discriminative"]["said_no"] == 2
    text = (tmp_path / "e" / "report.html").read_text()
    caption = next(item for item in checked(text)["items"] if item["id"] == 1)
    assert caption["cut"] == 100_000 and len(caption["said"]) == 3_000
    assert caption["detail"]["hallucinated"] == ["dog ×25000"] and len(text) < 120_000
    assert store.read_rows(tmp_path / "e" / "scores.jsonl")[0]["response"] == "dog " * 25_000


def row(number: int, **more: Any) -> dict[str, Any]:
    base = {"id": number, "groups": ["all"], "facets": {}, "cluster": "x", "images": [], "prompt": "q", "target": "t"}
    return {**base, "response": "r", "answer": None, "correct": True, "counts": {}, "detail": {}, **more}


def test_rows_become_items_whatever_they_hold() -> None:
    groups: dict[tuple[str, ...], int] = {}
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}
    found = page.entry(
        row(1, response=None, detail={"x": float("nan"), "words": ["a"] * 200}, turns=[turn], facets={"n": 3}),
        groups,
        {},
    )
    assert "said" not in found and found["detail"]["words"] == ["a ×200"] and found["facets"] == {"n": "3"}
    assert found["turns"] == [["user", "[image]\na"]] and groups == {("all",): 0}
    states = [
        page.state(row(1, correct=correct, counts=counts))
        for correct, counts in ((True, {}), (False, {}), (False, {"unread": 1.0}), (None, {}))
    ]
    assert states == ["right", "wrong", "unread", "text"]


def test_more_items_than_a_page_holds_keep_the_mistakes(monkeypatch: pytest.MonkeyPatch, runs: list[Path]) -> None:
    monkeypatch.setattr(page, "MOST", 10)
    report, rows = store.read_json(runs[0] / "report.json"), store.read_rows(runs[0] / "scores.jsonl")
    text = page.html(load("amber"), report, rows, [])
    kept = checked(text)["items"]
    assert len(kept) == 10 and {5, 29} <= {item["id"] for item in kept}
    assert f"10 of {len(rows)} items are on this page, mistakes first" in text


def noise(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.effect_noise((400, 300), 80 + index).convert("RGB").save(folder / f"{index}.png")
    return [f"{index}.png" for index in range(count)]


def test_thumbnails_keep_to_their_budget(tmp_path: Path) -> None:
    names = noise(tmp_path / "in", 4)
    whole = Thumbnails(tmp_path / "in").make(names)
    assert all((picture.url or "").startswith("data:image/webp;base64,") for picture in whole)
    budget = len(whole[0].url or "") + len(whole[1].url or "")
    some = Thumbnails(tmp_path / "in", budget=budget).make(names)
    assert [bool(picture.url) for picture in some] == [True, True, False, False]
    assert some[2].why == "over the size budget of this page"
    assert Thumbnails(tmp_path / "in", most=1).make(names)[1].why == "only 1 images of a page are shown"
    assert [picture.name for picture in Thumbnails(tmp_path / "in").make([*names, names[0]])] == [*names, names[0]]


def test_thumbnails_say_why_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    (tmp_path / "empty.png").touch()
    names = ["bad.png", "empty.png", "none.png", "../none.png", "a\0b"]
    assert [picture.why for picture in Thumbnails(tmp_path).make(names)] == [
        "not an image that can be read", "the image file is empty", *["the image is missing"] * 3,
    ]  # fmt: skip
    assert Thumbnails(None).make(["x"])[0].why == "the image folder is not known"
    assert Thumbnails(tmp_path / "gone").make(["x"])[0].why == "the image folder is gone"


def test_thumbnails_over_budget_lie_beside_and_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, beside = noise(tmp_path / "in", 4), tmp_path / "thumbnails"
    budget = 2 * len(Thumbnails(tmp_path / "in").make(names[:1])[0].url or "")
    first = Thumbnails(tmp_path / "in", beside, budget=budget).make(names)
    inside = [(picture.url or "").startswith("data:") for picture in first]
    assert sum(inside) < 4 and inside == sorted(inside, reverse=True)
    outside = [picture.url or "" for picture in first if not (picture.url or "").startswith("data:")]
    assert outside and all((tmp_path / url).is_file() for url in outside)
    assert len(list(beside.glob("*.webp"))) == 4

    monkeypatch.setattr("vlmdata.thumbnails.thumbnail", lambda data, side: pytest.fail("made again"))
    assert Thumbnails(tmp_path / "in", beside, budget=budget).make(names) == first
    assert Thumbnails(None, beside, budget=budget).make(names) == first, "without the images too"
    for images in (None, tmp_path / "in"):
        copied = Thumbnails(images, tmp_path / "flips-thumbnails", budget=budget, spare=[beside]).make(names)
        assert [picture.url for picture in copied][0] == first[0].url and all(picture.url for picture in copied)
    monkeypatch.undo()

    fewer = Thumbnails(tmp_path / "in", beside, budget=budget).make(names[:3])
    assert len(list(beside.glob("*.webp"))) == 3 and [picture.name for picture in fewer] == names[:3]
    (beside / "index.json").write_text("{")
    assert Thumbnails(None, beside).make(names[:1])[0].url is None
    assert not beside.exists(), "what fits into the page needs no folder"


def test_a_picture_is_upright_and_on_white(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    found = Thumbnails(tmp_path).make(["turned.jpg", "clear.png"])
    pictures = [Image.open(io.BytesIO(base64.b64decode((one.url or "").split(",", 1)[1]))) for one in found]
    assert pictures[0].size == (20, 40) and pictures[1].convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_pictures_of_a_comparison_lie_beside_it(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Thumbnails.__init__
    monkeypatch.setattr(Thumbnails, "__init__", lambda self, *args, **more: keep(self, *args, **more, budget=0))
    write_comparison(compare(runs), {"html": tmp_path / "flips.html", "csv": tmp_path / "flips.csv", "json": None})
    urls = {picture.get("url") for picture in checked((tmp_path / "flips.html").read_text())["pictures"]}
    assert urls == {f"flips-thumbnails/{path.name}" for path in (tmp_path / "flips-thumbnails").glob("*.webp")} and urls
    assert (tmp_path / "flips.csv").read_text().startswith("task,")


def test_charts_are_drawn_with_their_texts() -> None:
    nasty = "<b>&\x00"
    confusion = drawing.draw(Matrix("m", "truth", "answer", [nasty, "b"], [nasty, "b"], [[3, 1], [0, 0]]))
    assert "<b>" not in confusion and "\x00" not in confusion and "3 of 4 (75.0 %)" in confusion
    assert confusion.count('class="cell right"') == 2 and 'fill-opacity="0.750"' in confusion
    points = [(0.1, 0.2, 4.0), (0.9, float("nan"), 2.0), (0.8, 0.7, 1.0)]
    curve = drawing.draw(Curve("c", "said", "was", points, diagonal=True))
    assert curve.count("<circle") == 2 and 'class="diagonal"' in curve and "said 0.1, was 0.2, n 4" in curve
    many = [(float(place % 3), float(place % 2), f"run {place}", place == 4) for place in range(9)]
    scatter = drawing.draw(Scatter("s", "x", "y", many))
    assert scatter.count("<circle") == 9 and scatter.count("point own") == 1 and ">run 4</text>" in scatter
    for one in (confusion, curve, scatter):
        parser = Balanced()
        parser.feed(one)
        assert not parser.open
    for empty in (Curve("c", "x", "y", []), Scatter("s", "x", "y", [(float("inf"), 1.0, "a", True)])):
        assert drawing.draw(empty) == '<p class="soft">Nothing to draw.</p>'
    for single in (Curve("c", "x", "y", [(5.0, 5.0, 0.0)]), Scatter("s", "x", "y", [(2.0, 2.0, "a", True)])):
        assert drawing.draw(single).count("<circle") == 1
    assert drawing.draw(Matrix("m", "r", "c", [], [], [])).startswith("<svg")


def test_bars_stay_inside() -> None:
    assert drawing.bar(Cell("–", None, None, None, "", True)) == drawing.bar(Cell("3", 3.0, 1.0, 4.0, "", False)) == ""
    drawn = drawing.bar(Cell("104", 104.0, -2.0, 120.0, "", True), [("blind <", 50.0)])
    assert 'class="fill" width="100.00"' in drawn and "M0.00 4H100.00" in drawn and "blind &lt; 50" in drawn


def test_published_rows_stand_beside_the_run(runs: list[Path]) -> None:
    report = store.read_json(runs[0] / "report.json")
    rows = [
        {"name": "High", "figures": {"accuracy": 99.9, "f1": 1}, "source": "a paper"},
        {"name": "Low", "figures": {"discriminative.accuracy": 2.0}, "source": "a post"},
        {"name": "Other", "figures": {"f1": 50.0}, "source": "a paper"},
    ]
    report["published"] = {"rows": rows, "warnings": ["other data"]}
    found = published_table.table(load("amber"), report)
    assert found and [place.name for place in found.places if not place.own] == ["High", "Low", "Other"]
    assert [place.own for place in found.places] == [False, True, False, False]
    assert [metric.name for metric in found.metrics] == ["accuracy", "f1"]
    assert found.sources == ("a paper", "a post") and [place.source for place in found.places] == [1, None, 2, 1]
    text = " ".join(terminal(report, width=80).split())
    assert "place 2 of 3" in text and "Not the same protocol: other data" in text
    del report["published"]
    assert published_table.table(load("amber"), report) is None


def test_items_without_an_answer_are_listed(runs: list[Path], tmp_path: Path) -> None:
    report, rows = store.read_json(runs[0] / "report.json"), store.read_rows(runs[0] / "scores.jsonl")
    store.write_rows(tmp_path / "failures.jsonl", [{"id": 7, "error": "<timeout> after 5 s"}])
    write(tmp_path, report, rows)
    text = (tmp_path / "report.html").read_text()
    assert "Not answered" in text and html.escape("<timeout> after 5 s") in text
    checked(text)


def test_a_report_written_again_is_the_same(runs: list[Path], tmp_path: Path) -> None:
    report, rows = store.read_json(runs[0] / "report.json"), store.read_rows(runs[0] / "scores.jsonl")
    write(tmp_path, report, rows)
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / name).read_bytes() == (runs[0] / name).read_bytes(), name
