from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import amber_world
import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy.stats import norm, t

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmeval import store
from vlmeval.cli import main
from vlmeval.compare import compare
from vlmeval.compare_report import html, sentences, terminal
from vlmeval.run import evaluate

TRUTH = amber_world.truthful()
FLIP = {"Yes": "No", "No": "Yes"}
GOLDEN = ("d_flip10", "d_odd5", "d_all_no")


def noisy(seed: int, share: float) -> dict[int, str]:
    rng = random.Random(seed)
    answers = {ident: FLIP.get(text, text) if rng.random() < share else text for ident, text in TRUTH.items()}
    return {**answers, **{ident: "There is a dog and a bus." for ident in range(1, 5) if rng.random() < share}}


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed, (name, share) in enumerate((("base", 0.6), ("sft", 0.3), ("dpo", 0.1))):
        path = amber_world.respond(folder / f"{name}.json", noisy(seed, share))
        evaluate("amber", data=world, responses=path, out=folder / name, images=world / "images")
    return [folder / name for name in ("base", "sft", "dpo")]


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def golden(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Official answer sets as evaluations; d_flip30 is made as d_flip10 was, by another seed and share."""
    folder = tmp_path_factory.mktemp("golden")
    said = {name: json.loads((real / "golden" / name / "responses.json").read_text()) for name in GOLDEN}
    questions = [n for n in json.loads((real / "annotations.json").read_text()) if n["type"] != "generative"]
    for name, seed, share in (("d_flip10", 20241110, 0.1), ("d_flip30", 20241130, 0.3)):
        rng = random.Random(seed)
        flips = [(q["id"], (q["truth"] == "yes") != (rng.random() < share)) for q in questions]
        made = [{"id": ident, "response": "Yes" if yes else "No"} for ident, yes in flips]
        assert name == "d_flip30" or made == said[name]
        said[name] = made
    with pytest.MonkeyPatch.context() as patch:
        # Reports of 14,216 answers take their time, and nothing here reads them.
        patch.setattr(
            "vlmeval.report.write", lambda out, report, *_, **__: store.write_json(out / "report.json", report)
        )
        for name, rows in said.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps(rows))
            evaluate("amber", data=real, responses=path, out=folder / name)
    return folder


def test_published_counts(golden: Path) -> None:
    """Counts and exact p-values of the official sets, strings as they are."""
    found = compare([golden / name for name in ("d_flip10", "d_odd5", "d_flip30", "d_all_no")])
    counts = {(pair.one, pair.other): pair.mcnemar["discriminative"] for pair in found.pairs}
    expected = {("d_flip10", "d_odd5"): (1887, 1260), ("d_flip10", "d_flip30"): (3810, 1029)}
    for key, both in expected.items():
        assert (counts[key]["right_to_wrong"], counts[key]["wrong_to_right"]) == both
    assert f"{counts['d_flip10', 'd_odd5']['p']:.1e}" == "4.3e-29"
    assert counts["d_flip10", "d_flip30"]["p"] < 1e-300
    back = counts["d_flip30", "d_all_no"]
    assert (back["wrong_to_right"], back["right_to_wrong"], f"{back['p']:.1e}") == (2862, 3388, "3.0e-11")
    accuracy = found.pairs[0].differences[0]
    assert accuracy["difference"] == pytest.approx((1260 - 1887) / 14216 * 100)
    # Answers of one image were flipped independently: clustered figures are near those that know no images.
    half = 196 * math.sqrt(1887 + 1260) / 14216
    assert (accuracy["interval"][1] - accuracy["interval"][0]) / 2 == pytest.approx(half, rel=0.06)
    assert accuracy["mdd"] == pytest.approx(2.8016 * half / 1.96, rel=0.06)
    assert accuracy["verdict"] == "worse"
    p = counts["d_flip10", "d_odd5"]
    assert math.log10(p["clustered_p"]) == pytest.approx(math.log10(p["p"]), abs=3)


def test_a_tenth_of_a_point_is_inside_noise(golden: Path, real: Path, tmp_path: Path) -> None:
    """As published for Idefics2 before and after DPO: +0.1 at n = 14,216; here five percent of the answers changed."""
    rng = random.Random(2)
    rows = json.loads((golden / "d_flip10.json").read_text())
    truth = {note["id"]: note["truth"] for note in json.loads((real / "annotations.json").read_text())}
    right = [row for row in rows if row["response"].lower() == truth[row["id"]]]
    wrong = [row for row in rows if row["response"].lower() != truth[row["id"]]]
    for row in [*rng.sample(right, 348), *rng.sample(wrong, 362)]:
        row["response"] = FLIP[row["response"]]
    path = tmp_path / "dpo.json"
    path.write_text(json.dumps(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vlmeval.report.write", lambda out, report, *_, **__: store.write_json(out / "report.json", report)
        )
        evaluate("amber", data=real, responses=path, out=tmp_path / "dpo")
    found = compare([golden / "d_flip10", tmp_path / "dpo"])
    accuracy = found.pairs[0].differences[0]
    assert accuracy["difference"] == pytest.approx(0.1, abs=0.002) and accuracy["verdict"] == "inside noise"
    assert accuracy["words"].startswith("Accuracy +0.1 is inside noise: 95 % interval −0.")
    assert 0.4 < accuracy["mdd"] < 0.7 and accuracy["images_needed"] > 10_000
    assert any("inside noise: Accuracy +0.1" in line for line in found.sentences)


def test_counts_add_up(runs: list[Path]) -> None:
    found = compare(runs)
    assert [(pair.one, pair.other) for pair in found.pairs] == [("base", "sft"), ("base", "dpo"), ("sft", "dpo")]
    for pair in found.pairs:
        assert pair.common == 44
        assert "generative" not in pair.mcnemar and len(pair.texts) == 4
        test = pair.mcnemar["discriminative"]
        assert test["right_to_wrong"] + test["wrong_to_right"] == len(pair.flips)
        parts = [pair.mcnemar[group] for group in ("existence", "attribute", "relation")]
        assert sum(part["n"] for part in parts) == test["n"] == 40
        assert sum(part["right_to_wrong"] for part in parts) == test["right_to_wrong"]
        for difference in pair.differences:
            low, high = difference["interval"] or (-math.inf, math.inf)
            assert low - 1e-9 <= difference["difference"] <= high + 1e-9 or difference["metric"] in ("precision", "f1")
            assert (difference["verdict"] == "inside noise") == (low <= 0 <= high) or not difference["interval"]


def test_a_run_against_itself_differs_in_nothing(runs: list[Path]) -> None:
    pair = compare([runs[0], runs[0]], names=["one", "other"]).pairs[0]
    assert not pair.flips and pair.mcnemar["discriminative"]["p"] == 1.0
    assert {difference["difference"] for difference in pair.differences} == {0.0}
    assert {difference["verdict"] for difference in pair.differences} <= {"inside noise", "unknown"}


def test_the_paired_interval_is_that_of_a_plain_loop(runs: list[Path]) -> None:
    """Images are drawn with replacement, the same for both runs; here one draw after another."""
    pair = compare(runs[:2]).pairs[0]
    sides = [[json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()] for run in runs[:2]]
    clusters = list(dict.fromkeys(row["cluster"] for row in sides[0]))
    rng, differences = np.random.default_rng(11), []
    for _ in range(3000):
        drawn = [clusters[index] for index in rng.integers(0, len(clusters), len(clusters))]
        accuracy = []
        for side in sides:
            rows = [row for name in drawn for row in side if row["cluster"] == name and row["correct"] is not None]
            accuracy.append(100 * sum(row["correct"] for row in rows) / len(rows))
        differences.append(accuracy[1] - accuracy[0])
    # With four images the percentiles are those of Student's t with three degrees of freedom, times sqrt(4 / 3).
    tail = 100 * norm.cdf(t.ppf(0.025, 3) * math.sqrt(4 / 3))
    expected = np.percentile(differences, [tail, 100 - tail])
    found = next(d for d in pair.differences if (d["group"], d["metric"]) == ("discriminative", "accuracy"))
    assert found["interval"] == pytest.approx(list(expected), abs=2.0)


def test_partial_and_unlike_runs_are_said(world: Path, runs: list[Path], tmp_path: Path) -> None:
    half = {ident: text for ident, text in TRUTH.items() if ident % 2 and ident > 4}
    path = amber_world.respond(tmp_path / "r.json", half)
    evaluate("amber", data=world, responses=path, out=tmp_path / "half", read_answers="word")
    found = compare([runs[0], tmp_path / "half"])
    assert found.pairs[0].common == len(half) == found.pairs[0].mcnemar["discriminative"]["n"]
    notes = " ".join(found.notes)
    for said in ("half: PARTIAL 20/40", "read answers differs: base none, half word", "different numbers of items"):
        assert said in notes
    for text in (terminal(found), html(found), " ".join(sentences(found)) + notes):
        assert "PARTIAL 20/40" in text


def test_what_cannot_be_compared(world: Path, runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        compare(runs[:1])
    with pytest.raises(ConfigError, match="1 names for 2 runs"):
        compare(runs[:2], names=["one"])
    with pytest.raises(ConfigError, match="same name"):
        compare(runs[:2], names=["one", "one"])
    with pytest.raises(ConfigError, match="base is given twice"):
        compare([runs[0], runs[1], runs[0].parent / "." / "sft" / ".." / "base"])
    with pytest.raises(MissingError, match="no evaluation folder"):
        compare([runs[0], tmp_path])
    other = amber_world.write(tmp_path / "amber")
    (other / "safe_words.txt").write_text("dog")
    path = amber_world.respond(tmp_path / "r.json", TRUTH)
    evaluate("amber", data=other, responses=path, out=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"different data: safe_words.txt differs"):
        compare([runs[0], tmp_path / "other"])
    (tmp_path / "other" / "scores.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="line 1 is no score"):
        compare([tmp_path / "other", runs[0]])
    (tmp_path / "other" / "report.json").write_text("{}")
    with pytest.raises(DataError, match="has no 'task'"):
        compare([tmp_path / "other", runs[0]])
    (tmp_path / "other" / "report.json").write_text("[")
    assert command(tmp_path / "other", runs[0]).exit_code == 2


def test_answers_that_cannot_be_read_are_no_other_protocol(world: Path, runs: list[Path], tmp_path: Path) -> None:
    mute = amber_world.respond(tmp_path / "mute.json", {**TRUTH, 5: "Perhaps."})
    evaluate("amber", data=world, responses=mute, out=tmp_path / "mute")
    assert not [note for note in compare([runs[0], tmp_path / "mute"]).notes if "differs" in note]


def test_same_folder_names_are_told_apart(world: Path, runs: list[Path], tmp_path: Path) -> None:
    path = amber_world.respond(tmp_path / "r.json", TRUTH)
    evaluate("amber", data=world, responses=path, out=tmp_path / "second" / "base")
    names = [run.name for run in compare([runs[0], tmp_path / "second" / "base"]).runs]
    assert names == [f"{runs[0].parent.name}/base", "second/base"]


def test_the_command(runs: list[Path], tmp_path: Path) -> None:
    files = {kind: tmp_path / "new" / f"c.{kind}" for kind in ("html", "markdown", "json")}
    flags = [part for kind, path in files.items() for part in (f"--{kind}", path)]
    names = ["--name", "base", "--name", "SFT", "--name", "SFT+DPO"]
    result = command(*runs, *names, *flags)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    head = lines[0].split()
    assert head == ["AMBER", "base", "SFT", "SFT+DPO"]
    labels = [line.split()[0] for line in lines[2:10]]
    assert labels == ["Accuracy", "F1", "CHAIR", "Cover", "Hal", "Cog", "Says", "Words"]
    figures = re.findall(r"\d+\.\d", lines[2])
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert float(figures[0]) == reports[0]["official"]["discriminative"]["accuracy"]
    assert all(path.is_file() for path in files.values())
    assert "| base | SFT | SFT+DPO |" in files["markdown"].read_text()
    assert "Wrote" in result.stdout
    again = command(*runs, *names, *flags)
    assert again.exit_code == 2 and "--overwrite" in again.stderr and again.stderr.count("\n") == 1
    assert command(*runs, *names, *flags, "--overwrite").exit_code == 0
    content: dict[str, Any] = json.loads(files["json"].read_text())
    assert [run["name"] for run in content["runs"]] == ["base", "SFT", "SFT+DPO"]
    flips = content["pairs"][0]["flips"]
    assert len(flips) == sum(
        content["pairs"][0]["mcnemar"]["discriminative"][k] for k in ("right_to_wrong", "wrong_to_right")
    )
    assert {flip["change"] for flip in flips} == {"right_to_wrong", "wrong_to_right"}


def test_more_runs_than_pairs(runs: list[Path]) -> None:
    found = compare([*runs, runs[0]], names=["a", "b", "c", "d"])
    assert [(p.one, p.other) for p in found.pairs] == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("c", "d")]
    assert max(map(len, terminal(found).splitlines())) <= 80


def test_mistakes_of_the_command(runs: list[Path], tmp_path: Path) -> None:
    same = command(*runs, "--html", tmp_path / "x", "--json", tmp_path / "x")
    assert same.exit_code == 2 and "the same file" in same.stderr
    images = command(*runs, "--html", tmp_path / "x", "--images", tmp_path / "none")
    assert images.exit_code == 2 and "no image folder" in images.stderr
    assert command(runs[0]).exit_code == 2
    assert not (tmp_path / "x").exists()
