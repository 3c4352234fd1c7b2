"""Breakdowns, probabilities, notes, refusals: comparisons of a task of one's own, forty images, six questions each."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo_runs
from click.testing import CliRunner, Result

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmeval.cli import main
from vlmeval.compare import Pair, compare
from vlmeval.metrics.intervals import bootstrap_plain, interval, standard_error
from vlmeval.metrics.pair_tests import holm, mcnemar, sign_flip
from vlmeval.metrics.power import detectable
from vlmeval.tidy import COLUMNS, to_csv
from vlmeval.verdicts import largest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo_runs.home(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs: a fair one, a better one, a much worse one."""
    folder = tmp_path_factory.mktemp("runs")
    shares = {"fair": 0.3, "good": 0.1, "bad": 0.5}
    return [zoo_runs.run(place, folder / n, zoo_runs.answers(i, s)) for i, (n, s) in enumerate(shares.items())]


@pytest.fixture
def copy(made: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "copy"))


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def figure(pair: Pair, group: str, metric: str) -> dict[str, Any]:
    return next(d for d in pair.differences if (d["group"], d["metric"]) == (group, metric))


def by_image(sides: list[list[dict[str, Any]]], names: list[str]) -> np.ndarray:
    """Counters of both runs summed by image, images by name."""
    clusters = sorted({row["cluster"] for row in sides[0]})
    table = np.zeros((len(clusters), 2 * len(names)))
    for side, rows in enumerate(sides):
        for row in rows:
            for number, name in enumerate(names):
                table[clusters.index(row["cluster"]), side * len(names) + number] += row["counts"][name]
    return table


def test_every_figure_is_that_of_the_plain_loop(made: list[Path]) -> None:
    """F1 is no proportion: both runs' counters are drawn image by image and the metric is taken again."""
    pair = compare(made[:2]).pairs[0]
    for group, kept in (("all", lambda row: True), ("cats", lambda row: "cats" in row["groups"])):
        sides = [[row for row in rows_of(folder) if kept(row)] for folder in made[:2]]
        table = by_image(sides, ["hit", "said", "true"])
        # Other draws than those of the comparison: agreement is that of two samples of 10,000.
        drawn = bootstrap_plain(table, seed=5)
        f1 = [200 * drawn[:, 3 * s] / (drawn[:, 3 * s + 1] + drawn[:, 3 * s + 2]) for s in (0, 1)]
        found = figure(pair, group, "f1")
        sums = table.sum(axis=0)
        assert found["before"] == pytest.approx(200 * sums[0] / (sums[1] + sums[2]))
        assert found["after"] - found["before"] == pytest.approx(found["difference"])
        assert found["interval"] == pytest.approx(interval(f1[1] - f1[0], zoo_runs.IMAGES), abs=0.35)
        assert found["se"] == pytest.approx(standard_error(f1[1] - f1[0]), rel=0.05)
        assert found["mdd"] == pytest.approx(detectable(found["se"]))
        assert (found["n"], found["images"]) == (len(sides[0]), zoo_runs.IMAGES)
        needed = zoo_runs.IMAGES * (found["mdd"] / found["difference"]) ** 2
        assert found["images_needed"] == pytest.approx(needed, abs=1)


def test_verdicts_in_words(made: list[Path]) -> None:
    found = compare(made)
    accuracy = figure(found.pairs[0], "all", "accuracy")
    assert accuracy["verdict"] == "better" and accuracy["words"].startswith("Accuracy +")
    assert "is better beyond noise: 95 % interval +" in accuracy["words"]
    assert f"can see {accuracy['mdd']:.1f} or more" in accuracy["words"]
    for pair in found.pairs:
        for entry in (*pair.differences, *pair.by_facet):
            assert ("inside noise" in entry["words"]) == (entry["verdict"] == "inside noise" and bool(entry["mdd"]))
    text = "\n".join(found.sentences)
    assert "fair → good: better in Accuracy +" in text and "fair → bad: worse in Accuracy −" in text
    assert "right→wrong" in text and "over images p = " in text
    assert "headline differences are beyond noise" in text
    assert list(found.order) == ["good", "fair", "bad"]
    flipped = [a["id"] for a, _ in found.pairs[0].flips]
    assert flipped == sorted(flipped) and len(flipped) > 20


def test_tests_by_group_and_image(made: list[Path]) -> None:
    found = compare(made)
    for pair, (one, other) in zip(found.pairs, ((0, 1), (0, 2), (1, 2)), strict=True):
        sides = [{row["id"]: row for row in rows_of(made[number])} for number in (one, other)]
        for group, test in pair.mcnemar.items():
            net: dict[str, int] = {}
            flipped = [0, 0]
            for ident, a in sides[0].items():
                b = sides[1][ident]
                if group in a["groups"] and a["correct"] != b["correct"]:
                    flipped[b["correct"]] += 1
                    net[a["cluster"]] = net.get(a["cluster"], 0) + (1 if b["correct"] else -1)
            assert [test["right_to_wrong"], test["wrong_to_right"]] == flipped
            assert test["images"] == len(net)
            assert test["p"] == pytest.approx(mcnemar(*flipped))
            assert test["clustered_p"] == pytest.approx(sign_flip(list(net.values())))
    tests = [test for pair in found.pairs for test in pair.mcnemar.values()]
    assert len(tests) == 9
    for key in ("p", "clustered_p"):
        assert [test[f"{key}_holm"] for test in tests] == holm([test[key] for test in tests])
    entries = [entry for pair in found.pairs for entry in pair.differences]
    headline = [entry for entry in entries if entry["headline"]]
    assert {(entry["group"], entry["metric"]) for entry in headline} == {("all", "accuracy"), ("all", "f1")}
    assert [entry["p_holm"] for entry in headline] == holm([entry["p"] for entry in headline])
    assert not [entry for entry in entries if not entry["headline"] and entry["p_holm"] is not None]


def test_breakdown_by_facet(made: list[Path]) -> None:
    pair = compare(made[:2]).pairs[0]
    cells = {entry["value"]: entry for entry in pair.by_facet if entry["metric"] == "accuracy"}
    assert len(cells) == 4 and sum(cell["n"] for cell in cells.values()) == zoo_runs.IMAGES * zoo_runs.EACH
    test = pair.mcnemar["all"]
    for key in ("right_to_wrong", "wrong_to_right"):
        assert sum(cell[key] for cell in cells.values()) == test[key]
    for value, cell in cells.items():
        sides = [[row for row in rows_of(folder) if row["facets"]["object"] == value] for folder in made[:2]]
        shares = [100 * sum(row["correct"] for row in side) / len(side) for side in sides]
        assert cell["difference"] == pytest.approx(shares[1] - shares[0])
        assert cell["small"] == (cell["images"] < 10) == (value == "rare")
        drawn = bootstrap_plain(by_image(sides, ["right", "asked"]), resamples=4000, seed=2)
        change = 100 * (drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1])
        assert cell["interval"] == pytest.approx(interval(change, cell["images"]), abs=4)
    values = [cell["clustered_p"] for cell in cells.values()]
    assert [cell["clustered_p_holm"] for cell in cells.values()] == holm(values)
    shown = largest(compare(made[:2]).task, pair, 3)
    assert [entry["metric"] for entry in shown] == ["accuracy"] * 3
    keys = [(entry["small"], -abs(entry["difference"])) for entry in shown]
    assert keys == sorted(keys)


def test_probabilities_of_the_truth(place: Path, tmp_path: Path) -> None:
    """The same answers, surer by 0.2 in the first half: shares of the two choices' sum, whatever else there is."""
    folders = []
    for name, gain in (("before", 0.0), ("after", 0.2)):
        rows = []
        for question in zoo_runs.questions():
            sure = 0.7 + gain * (question["id"] < 120)
            other = {"yes": "no", "no": "yes"}[question["truth"]]
            rated = {question["truth"].capitalize(): 0.5 * sure, other.capitalize(): 0.5 * (1 - sure)}
            rows.append({"id": question["id"], "response": question["truth"], "detail": {"probabilities": rated}})
        folders.append(zoo_runs.run(place, tmp_path / name, rows))
    found = compare(folders)
    sure = found.pairs[0].probabilities
    assert sure is not None and sure["n"] == 240
    assert (sure["before"], sure["after"]) == pytest.approx((0.7, 0.8))
    # Twenty of forty images gain 0.2: the standard error of the mean is 0.1 / sqrt(40).
    assert sure["difference"] == pytest.approx(0.1) and sure["se"] == pytest.approx(0.1 / 40**0.5, rel=0.05)
    assert sure["interval"][0] < 0.1 < sure["interval"][1] and sure["margin_difference"] == pytest.approx(0.2)
    assert sure["moved"] == 120 and len(sure["largest"]) == 50
    assert sure["largest"][0]["after"] - sure["largest"][0]["before"] == pytest.approx(0.4)
    assert any("P(truth) +10.0 points" in line for line in found.sentences)
    # The likeliest few of many choices are others in another run: their shares are of different sums.
    zoo_runs.edit(folders[1], "scores.jsonl", lambda text: text.replace('"Yes"', '"Perhaps"', 5))
    fewer = compare(folders).pairs[0].probabilities
    assert fewer is not None and fewer["n"] == 235
    assert any("identical answers to all 240" in note for note in found.notes)


def test_answers_that_became_readable(place: Path, made: list[Path], tmp_path: Path) -> None:
    said: dict[int, str | None] = {**zoo_runs.answers(0, 0.3), 0: "perhaps", 1: None, 2: "I see"}
    mute = zoo_runs.run(place, tmp_path / "mute", said)
    pair = compare([mute, made[0]]).pairs[0]
    assert pair.reading == {"n": 240, "unread_to_read": [0, 1, 2], "read_to_unread": [], "unread_in_both": []}
    found = compare([made[0], mute])
    assert found.pairs[0].reading is not None and found.pairs[0].reading["read_to_unread"] == [0, 1, 2]
    assert any("0 answers became readable, 3 unreadable" in line for line in found.sentences)
    assert found.pairs[0].same == 237


def test_what_compares_badly_is_said(place: Path, made: list[Path], copy: Path, tmp_path: Path) -> None:
    assert any("are the same folder" in note for note in compare([made[0], made[0]], names=["a", "b"]).notes)
    twin = compare([made[1], copy])
    assert "good and copy gave identical answers to all 240 items." in twin.notes
    assert any("no difference at all" in entry["words"] for entry in twin.pairs[0].differences)
    again = zoo_runs.run(place, tmp_path / "again", [*_rows(0), *({**row, "response": "?"} for row in _rows(0)[:3])])
    twice = compare([made[0], again])
    assert any("again answers 3 items again" in note for note in twice.notes) and twice.pairs[0].same == 240
    zoo_runs.edit(copy, "scores.jsonl", lambda text: text.replace("Question 7?", "Is it 7?"))
    assert any("asked in other words at 1 items (7)" in note for note in compare([made[0], copy]).notes)
    zoo_runs.edit(copy, "report.json", lambda text: json.dumps({**json.loads(text), "version": "0.0.1"}))
    assert any("scored by 0.0.1" in note or "by 0.0.1" in note for note in compare([made[0], copy]).notes)
    zoo_runs.edit(copy, "scores.jsonl", lambda text: text.replace('"letters"', '"signs"'))
    older = compare([made[0], copy])
    assert any("Letters is not compared" in note and "letters" in note for note in older.notes)
    assert {entry["metric"] for entry in older.pairs[0].differences} == {"accuracy", "f1"}


def test_groups_that_are_no_more(made: list[Path], copy: Path) -> None:
    zoo_runs.edit(copy, "scores.jsonl", lambda text: text.replace('["all", "cats"]', '["all", "lions"]'))
    found = compare([made[0], copy])
    assert "120 scores of copy count in 'lions', which zoo does not have any more." in found.notes
    assert set(found.pairs[0].mcnemar) == {"all", "dogs"}


def test_one_image_has_no_interval(place: Path, tmp_path: Path) -> None:
    runs = [
        zoo_runs.run(
            place, tmp_path / name, {i: t for i, t in zoo_runs.answers(seed, 0.5).items() if i < zoo_runs.EACH}
        )
        for seed, name in enumerate(("a", "b"))
    ]
    found = compare(runs)
    assert {entry["verdict"] for entry in found.pairs[0].differences} == {"unknown"}
    assert all("no interval, all of one image" in entry["words"] for entry in found.pairs[0].differences)
    assert found.sentences[0] == "a → b: nothing that has an interval"


def _rows(seed: int) -> list[dict[str, Any]]:
    return [{"id": ident, "response": text} for ident, text in zoo_runs.answers(seed, 0.3).items()]


def test_only_common_items_are_paired(place: Path, made: list[Path], tmp_path: Path) -> None:
    half = zoo_runs.run(place, tmp_path / "half", {i: t for i, t in zoo_runs.answers(0, 0.3).items() if i < 120})
    rest = zoo_runs.run(place, tmp_path / "rest", {i: t for i, t in zoo_runs.answers(0, 0.3).items() if i >= 120})
    found = compare([made[0], half, rest])
    assert [(pair.other, pair.common, pair.images) for pair in found.pairs] == [("half", 120, 20), ("rest", 120, 20)]
    assert figure(found.pairs[0], "all", "accuracy")["n"] == 120
    assert "half and rest have no item in common and are not paired." in found.notes
    assert any("rest on 20 images" in note for note in found.notes)
    with pytest.raises(ConfigError, match="no item in common"):
        compare([half, rest])


def test_figures_do_not_depend_on_the_order_of_files_or_runs(made: list[Path], copy: Path) -> None:
    zoo_runs.edit(copy, "scores.jsonl", lambda text: "".join(reversed(text.splitlines(keepends=True))))
    plain, turned = (compare([made[0], other], names=["a", "b"]).pairs[0] for other in (made[1], copy))
    assert plain.differences == turned.differences and plain.mcnemar == turned.mcnemar
    # In a comparison of many a run is drawn once for all its pairs.
    many = compare([*made, made[0]], names=["fair", "good", "bad", "too"])
    alone = compare([made[1], made[2]]).pairs[0]
    among = next(pair for pair in many.pairs if (pair.one, pair.other) == ("good", "bad"))
    for one, other in zip(alone.differences, among.differences, strict=True):
        assert one["interval"] == pytest.approx(other["interval"]) and one["difference"] == other["difference"]
    assert among.by_facet == () and many.pairs[0].by_facet
    assert [line.split(":")[0] for line in many.sentences[:3]] == ["fair → good", "fair → bad", "fair → too"]


def test_another_baseline(made: list[Path]) -> None:
    found = compare(made, baseline="bad")
    assert [run.name for run in found.runs] == ["bad", "fair", "good"]
    assert [(pair.one, pair.other) for pair in found.pairs][:2] == [("bad", "fair"), ("bad", "good")]
    with pytest.raises(ConfigError, match="none of the runs; valid: bad, fair, good"):
        compare(made, baseline="worst")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("scores.jsonl", lambda t: t[:-40], "line 240 is not JSON"),
        ("scores.jsonl", lambda t: "".join(t.splitlines(keepends=True)[:-1]), "holds 239 scores where report.json"),
        ("scores.jsonl", lambda t: "", "holds no scores"),
        ("scores.jsonl", lambda t: t.replace('"right": 1', '"right": NaN', 1), "counter 'right' is nan"),
        ("scores.jsonl", lambda t: t.replace('"right": 1', '"right": 1e999', 1), "counter 'right' is inf"),
        ("scores.jsonl", lambda t: t.replace('"right": 1', '"right": "1"', 1), "counter 'right' is '1'"),
        ("scores.jsonl", lambda t: t.replace('"counts"', '"count"', 1), "line 1 is no score: it has no 'counts'"),
        ("scores.jsonl", lambda t: "[1]\n" + t, "expected a JSON object, got list"),
        ("scores.jsonl", lambda t: "[" * 100_000 + "\n" + t, "nested too deeply"),
        ("scores.jsonl", lambda t: t.replace('"correct": true', '"correct": "yes"', 1), "expected true, false or null"),
        ("scores.jsonl", lambda t: t.replace('["all", "cats"]', '"all"', 1), "expected a list of names"),
        ("scores.jsonl", lambda t: t.replace('"detail": {}', '"detail": []', 1), "'detail' is [], expected an object"),
        ("scores.jsonl", lambda t: t.replace('"facets": {', '"facets": 1, "x": {', 1), "'facets' is 1"),
        ("report.json", lambda t: t[: len(t) // 2], "is not JSON"),
        ("report.json", lambda t: "[]", "expected a JSON object"),
        ("report.json", lambda t: json.dumps({"task": "zoo", "version": "0.1"}), "this one is of 0.1"),
        ("report.json", lambda t: t.replace('"coverage": {', '"coverage": {}, "x": {', 1), "'coverage' is {}"),
        ("report.json", lambda t: t.replace('"counts": {', '"counts": 7, "x": {', 1), "'counts' is 7"),
        ("report.json", lambda t: t.replace('"data": {', '"data": 3, "x": {', 1), "does not name answers and data"),
    ],
)
def test_damaged_folders_are_one_line(copy: Path, made: list[Path], name: str, change: Any, said: str) -> None:
    zoo_runs.edit(copy, name, change)
    with pytest.raises(DataError) as error:
        compare([made[0], copy])
    assert said in str(error.value) and str(copy / name) in str(error.value) and "\n" not in str(error.value)
    result = command(made[0], copy)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_text_that_is_none(copy: Path, made: list[Path]) -> None:
    for name in ("scores.jsonl", "report.json"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole.replace(b"Question", b"Qu\xe9stion").replace(b"zoo", b"z\xe9o"))
        with pytest.raises(DataError, match="is not UTF-8 text"):
            compare([made[0], copy])
        (copy / name).write_bytes(whole)
        (copy / name).unlink()
        with pytest.raises(MissingError, match="is no evaluation folder, or its run did not finish"):
            compare([made[0], copy])
        (copy / name).write_bytes(whole)
    with pytest.raises(MissingError, match="no evaluation folder"):
        compare([made[0], copy / "none"])


def test_other_questions_are_refused(copy: Path, made: list[Path]) -> None:
    whole = (copy / "scores.jsonl").read_text()
    zoo_runs.edit(copy, "scores.jsonl", lambda text: text.replace('"target": "no"', '"target": "yes"', 1))
    with pytest.raises(ConfigError, match="the truth of item 0 is 'no' in fair and 'yes' in copy"):
        compare([made[0], copy])
    (copy / "scores.jsonl").write_text(whole.replace('["0.png"]', '["9.png"]', 1))
    with pytest.raises(ConfigError, match=r"item 0 shows 0.png in fair and 9.png in copy"):
        compare([made[0], copy])
    # A run that does not know the images takes them from the other.
    (copy / "scores.jsonl").write_text(whole)
    bare = [{**row, "images": [], "cluster": str(row["id"])} for row in rows_of(copy)]
    (copy / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    for order in ([made[0], copy], [copy, made[0]]):
        found = compare(order)
        assert found.pairs[0].images == zoo_runs.IMAGES
        assert "copy does not know the images: those of the other run say what belongs together." in found.notes


def test_a_task_file_that_moved(place: Path, made: list[Path], tmp_path: Path) -> None:
    moved = zoo_runs.home(tmp_path / "moved")
    runs = [zoo_runs.run(moved, tmp_path / name, zoo_runs.answers(i, 0.2)) for i, name in enumerate(("a", "b"))]
    (moved / "zoo.py").unlink()
    with pytest.raises(MissingError, match="--task FILE"):
        compare(runs)
    assert compare(runs, task=place / "zoo.py").task.name == "zoo"
    assert command(*runs, "--task", place / "zoo.py").exit_code == 0
    (moved / "zoo.py").write_text(zoo_runs.TASK + "# changed\n")
    last = zoo_runs.run(moved, tmp_path / "c", zoo_runs.answers(1, 0.2))
    assert any("task's file changed between a and c" in note for note in compare([runs[0], last]).notes)


def test_fail_if(made: list[Path], tmp_path: Path) -> None:
    fine = command(*made[:2], "--fail-if", "worse")
    assert fine.exit_code == 0, fine.output
    for how in ("worse", "worse-holm"):
        failed = command(*made, "--fail-if", how)
        assert failed.exit_code == 1
        lines = failed.stderr.splitlines()
        assert len(lines) == 2 and all(line.startswith("vlmeval: bad against fair: ") for line in lines)
    # Against another baseline, another answer.
    assert command(*made, "--baseline", "bad", "--fail-if", "worse").exit_code == 0
    assert command(*made, "--baseline", "good", "--fail-if", "worse").exit_code == 1


def test_holm_forgives_what_one_figure_of_many_shows(made: list[Path]) -> None:
    """A figure that is worse by its own interval, and not by itself among all."""
    from vlmeval.verdicts import worse

    pairs = compare(made[:2]).pairs
    entry = figure(pairs[0], "all", "accuracy")
    entry.update(verdict="worse", p=0.04, p_holm=0.08, words="Accuracy fell")
    assert worse(pairs, "fair", "worse") == ["good against fair: Accuracy fell"]
    assert worse(pairs, "fair", "worse-holm") == []


def test_json_and_csv_hold_everything(made: list[Path], tmp_path: Path) -> None:
    files = {kind: tmp_path / f"c.{kind}" for kind in ("json", "csv")}
    result = command(*made, *(part for kind, path in files.items() for part in (f"--{kind}", path)))
    assert result.exit_code == 0, result.output
    content = json.loads(files["json"].read_text())
    found = compare(made)
    assert content["order"] == list(found.order) and content["sentences"] == list(found.sentences)
    kept = {field.name for field in fields(Pair)} - {"texts"}
    for written, pair in zip(content["pairs"], found.pairs, strict=True):
        assert kept == written.keys()
        assert written["differences"] == list(pair.differences) and written["by_facet"] == list(pair.by_facet)
        assert len(written["flips"]) == len(pair.flips) and written["flips"][0]["facets"]["object"]
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert files["csv"].read_text() == to_csv(found) and tuple(rows[0]) == COLUMNS
    assert len(rows) == sum(len(pair.differences) + len(pair.by_facet) for pair in found.pairs)
    first = found.pairs[0].differences[0]
    assert float(rows[0]["difference"]) == first["difference"] and float(rows[0]["low"]) == first["interval"][0]
    assert rows[0]["facet"] == "" and float(rows[0]["mcnemar_p"]) == found.pairs[0].mcnemar["all"]["p"]
