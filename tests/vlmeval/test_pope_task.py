from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import amber_world
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmeval.cli import main
from vlmeval.metrics import yesno
from vlmeval.run import evaluate
from vlmeval.task import load

REAL = amber_world.REAL.parent / "pope"
SPLITS = ("random", "popular", "adversarial")
WORDS = [
    "Yes",
    "No",
    "yes",
    "no.",
    "",
    "NO!",
    "I cannot tell.",
    "It is not. Yes",
    "Yes, no dog",
    "Sure. No.",
    "nothing",
]


def pope_script(answers: list[str], labels: list[str]) -> dict[str, float]:
    """What the official script computes, written down from its description."""
    said = []
    for text in answers:
        first = text[: text.index(".")] if "." in text else text
        said.append(0 if any(w in ("No", "not", "no") for w in first.replace(",", "").split(" ")) else 1)
    true = [0 if label == "no" else 1 for label in labels]
    pairs = list(zip(said, true, strict=True))
    tp, fp, tn, fn = (pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 0), (0, 1)))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": said.count(1) / len(said),
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small files in POPE's format, numbered alike, with their pictures."""
    folder = tmp_path_factory.mktemp("pope") / "pope"
    (folder / "images").mkdir(parents=True)
    for image in range(1, 5):
        Image.new("RGB", (32, 24), (50 * image, 20, 90)).save(folder / "images" / f"COCO_{image}.png")
    for split, absent in zip(SPLITS, ("kite", "person", "fork"), strict=True):
        rows = []
        for image in range(1, 5):
            for word, label in (("dog", "yes"), (absent, "no"), ("apple", "yes" if image < 3 else "no")):
                article = "an" if word[0] == "a" else "a"
                text = f"Is there {article} {word} in the image?"
                rows.append({"question_id": len(rows) + 1, "image": f"COCO_{image}.png", "text": text, "label": label})
        text = "\r\n".join(json.dumps(row) for row in rows)
        (folder / f"coco_pope_{split}.json").write_bytes(text.encode())
    return folder


def respond(path: Path, answers: dict[Any, Any]) -> Path:
    path.write_text(json.dumps([{"id": ident, "response": text} for ident, text in answers.items()]))
    return path


def truth(folder: Path, split: str) -> dict[int, str]:
    lines = (folder / f"coco_pope_{split}.json").read_text().splitlines()
    return {row["question_id"]: row["label"] for row in map(json.loads, lines)}


def pope(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["pope", *map(str, arguments)])


def test_real_files_score_as_the_script_does(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"the official POPE files are not at {REAL} (VLM_REAL_DATA names another place)")
    rng = random.Random(5)
    answers: dict[str, str] = {}
    labels: dict[str, str] = {}
    for split in SPLITS:
        for ident, label in truth(REAL, split).items():
            labels[f"{split}:{ident}"] = label
            answers[f"{split}:{ident}"] = label.capitalize() if rng.random() < 0.7 else rng.choice(WORDS)
    report = evaluate("pope", data=REAL, responses=respond(tmp_path / "r.json", answers))
    assert report["coverage"]["expected"] == 9000 and report["coverage"]["complete"] and report["clusters"] == 500
    for group in ("all", *SPLITS):
        mine = [ident for ident in answers if group == "all" or ident.startswith(group)]
        expected = pope_script([answers[ident] for ident in mine], [labels[ident] for ident in mine])
        assert report["script"][group] == pytest.approx(expected, abs=1e-12)
        exact = {name: figure["value"] / 100 for name, figure in report["exact"][group].items()}
        assert exact == pytest.approx({name: value for name, value in expected.items() if name != "yes_ratio"})
        assert report["rates"][group]["yes_rate"]["value"] / 100 == pytest.approx(expected["yes_ratio"])
        assert all(figure["interval"] for figure in report["exact"][group].values())
    assert report["protocol"]["read_answers"] == "official"
    assert {row["name"] for row in report["published"]["rows"]} == {"LLaVA-1.5 7B", "LLaVA-1.5 13B"}
    assert report["published"]["warnings"] == []


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(["yes", "no"])), min_size=1, max_size=60))
def test_any_answers_count_as_the_description_says(pairs: list[tuple[str, str]]) -> None:
    from vlmeval.metrics.sums import total

    answers, labels = [list(side) for side in zip(*pairs, strict=True)]
    ours = yesno.script(total(yesno.polled(yesno.by_sentence(text), label) for text, label in pairs))
    try:
        assert ours == pytest.approx(pope_script(answers, labels))
    except ZeroDivisionError:
        assert ours["f1"] == 0


@pytest.mark.parametrize(
    ("text", "sentence", "word"),
    [
        ("Yes", "Yes", "Yes"),
        ("no", "No", "No"),
        ("NO", "Yes", "No"),
        ("No, there is no dog.", "No", "No"),
        ("There is not", "No", None),
        ("It is a dog. No cat.", "Yes", "No"),
        ("no!", "Yes", "No"),
        ("", "Yes", None),
        ("I cannot tell", "Yes", None),
        ("yes and no", "No", None),
        (None, None, None),
    ],
)
def test_reading(text: str | None, sentence: str | None, word: str | None) -> None:
    assert yesno.by_sentence(text) == sentence
    assert yesno.by_word(text) == word


def test_generated_answers_are_read_by_the_word_rule(world: Path) -> None:
    benchmark = load("pope").open(world, {}, None)
    assert benchmark.protocol["read_answers"] == "word"
    assert len(benchmark.items) == 36 and benchmark.items[0].id == "random:1"
    assert benchmark.items[0].groups == ("all", "random") and benchmark.items[0].choices == ("Yes", "No")
    assert benchmark.items[2].facets == {"split": "random", "object": "apple"}
    assert benchmark.items[0].cluster == benchmark.items[12].cluster


def test_ambiguous_answers_are_told_of(world: Path, tmp_path: Path) -> None:
    answers = {f"random:{ident}": label for ident, label in truth(world, "random").items()}
    answers |= {"random:1": "Perhaps", "random:2": "Hard to say", "random:3": None}
    path = respond(tmp_path / "r.json", answers)
    official = evaluate("pope", data=world, responses=path, split="random")
    assert official["counts"]["all"]["unread"] == 1 and official["counts"]["all"]["right"] == 10
    assert "the official rule takes 2 of them for yes" in " ".join(official["notes"])
    worded = evaluate("pope", data=world, responses=path, split="random", read_answers="word")
    assert worded["counts"]["all"]["unread"] == 3 and worded["counts"]["all"]["right"] == 9
    assert worded["script"] == official["script"]
    assert [row["id"] for row in worded["unread"]] == ["random:1", "random:2", "random:3"]
    text = " ".join(worded["notes"])
    assert "3 of 12 answers hold neither yes nor no alone" in text and "reads 2 answers otherwise" in text
    assert worded["protocol"]["unread"] == {"word": 3, "official": 1, "otherwise": 2, "of": 12}


def test_baselines_and_groups(world: Path, tmp_path: Path) -> None:
    answers = {f"{split}:{i}": label for split in SPLITS for i, label in truth(world, split).items()}
    report = evaluate("pope", data=world, responses=respond(tmp_path / "r.json", answers))
    assert list(report["exact"]) == ["all", *SPLITS]
    assert report["exact"]["all"]["f1"]["value"] == 100
    yes = report["baselines"]["all_yes"]["random"]
    assert yes == {"accuracy": 50.0, "precision": 50.0, "recall": 100.0, "f1": 66.7}
    assert report["baselines"]["all_no"]["random"]["f1"] == 0
    # Not the official files: nothing is published about them.
    assert report["published"]["rows"] == [] and "not the official file" in report["published"]["warnings"][0]


@pytest.mark.parametrize("split", SPLITS)
def test_one_split(world: Path, tmp_path: Path, split: str) -> None:
    """Asked alone, its ids are the same; a responses file may number its answers as the file does."""
    whole = {f"{name}:{i}": "yes" for name in SPLITS for i in truth(world, name)}
    report = evaluate("pope", data=world, responses=respond(tmp_path / "r.json", whole), split=split)
    assert report["coverage"] == {**report["coverage"], "expected": 12, "answered": 12, "outside": 24}
    assert list(report["exact"]) == ["all", split] and list(report["protocol"]["data"]) == [f"coco_pope_{split}.json"]
    plain = evaluate("pope", data=world, responses=respond(tmp_path / "p.json", truth(world, split)), split=split)
    assert plain["coverage"]["complete"] and plain["exact"]["all"]["accuracy"]["value"] == 100
    alone = world / f"coco_pope_{split}.json"
    assert evaluate("pope", data=alone, responses=tmp_path / "p.json")["exact"] == plain["exact"]


def test_plain_numbers_of_three_files_are_refused(world: Path, tmp_path: Path) -> None:
    result = pope("--responses", respond(tmp_path / "r.json", {1: "yes"}), "--data", world)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "3 files number their questions alike: write ids like random:1, or say with --split" in result.stderr


def test_a_file_of_ones_own(world: Path, tmp_path: Path) -> None:
    rows = [
        {"question_id": "a", "image": "COCO_1.png", "text": "Do you see <b>it</b>?", "label": "Yes", "extra": 1},
        {"question_id": 7, "image": "COCO_2.png", "text": "Is there an ox in the picture?", "label": "no"},
    ]
    own = tmp_path / "mine.json"
    own.write_text(json.dumps(rows))
    answers = respond(tmp_path / "r.json", {"a": "<script>alert(1)</script> yes", 7: "`rm -rf` no"})
    report = evaluate("pope", data=own, responses=answers, out=tmp_path / "e", images=world / "images")
    assert report["coverage"]["complete"] and list(report["exact"]) == ["all"]
    assert report["objects"][0]["object"] == "ox" and "published" not in report
    page = (tmp_path / "e" / "report.html").read_text()
    assert "<script>alert(1)" not in page
    own.write_text("\n".join(json.dumps(row) for row in rows))
    assert evaluate("pope", data=own, responses=answers)["exact"] == report["exact"]


ROW = {"question_id": 1, "image": "a.png", "text": "Is there a dog in the image?", "label": "yes"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no questions"),
        ("[]", "holds no questions"),
        ("{", "line 1 is not JSON"),
        (json.dumps(ROW) + "\n\n{oops}", "line 3 is not JSON"),
        ("[1]", "row 1: expected an object with question_id, image, text, label, got 1"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({**ROW, "label": "maybe"}), "label is 'maybe', expected yes or no"),
        (json.dumps({**ROW, "question_id": None}), "question_id is None"),
        (json.dumps({**ROW, "image": None}), "image and text are not both texts"),
        (json.dumps([ROW, ROW]), "question_id 1 stands there twice"),
        (json.dumps({"id": 1, "response": "yes"}), "expected an object with question_id"),
    ],
)
def test_bad_questions_end_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "own.json").write_text(content)
    result = pope("--responses", respond(tmp_path / "r.json", {1: "yes"}), "--data", tmp_path / "own.json")
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


def test_folders_that_are_none(world: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no POPE questions in .*vlmeval fetch pope"):
        load("pope").open(tmp_path, {}, None)
    shutil.copytree(world, tmp_path / "two")
    shutil.copy(world / "coco_pope_random.json", tmp_path / "two" / "gqa_pope_random.json")
    with pytest.raises(DataError, match="are both random: give --data one of the files"):
        load("pope").open(tmp_path / "two", {}, None)
    with pytest.raises(MissingError, match="has no file of --split popular; it has random"):
        load("pope").open(world / "coco_pope_random.json", {"split": "popular"}, None)
    with pytest.raises(ConfigError, match="--read-answers is 'none'; valid: official, word"):
        load("pope").open(world, {"read_answers": "none"}, None)


def test_asking_a_model(world: Path, tiny: Path, tmp_path: Path) -> None:
    report = evaluate("pope", data=world, model=str(tiny), out=tmp_path / "e", split="popular", quiet=True)
    assert report["coverage"]["complete"] and report["coverage"]["expected"] == 12
    again = evaluate("pope", data=world, model=str(tiny), out=tmp_path / "e", split="popular", quiet=True, resume=True)
    assert again["exact"] == report["exact"]
