from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmeval.charts import Scatter
from vlmeval.cli import main
from vlmeval.run import evaluate
from vlmeval.task import load

CATEGORIES = ["person", "dog", "dining table", "elephant", "tie"]
THERE = {10: ["person", "dog", "dog"], 11: ["dining table"], 12: [], 13: ["elephant"]}
REFERENCES = {
    10: ["A man and his dog."],
    11: ["A desk beside a wall.", "A woman at a table."],
    12: ["Grass."],
    13: ["x"],
}
CAPTIONS = {
    10: "A man with two dogs at a table.",
    11: "A woman sits at a desk. The desk is brown, with a tie on it.",
    12: "Nothing but grass.",
    13: "A baby elephant.",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images in COCO's form, with instances and captions."""
    folder = tmp_path_factory.mktemp("coco") / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    images = [{"id": ident, "file_name": f"{ident:012}.png", "width": 8, "height": 8} for ident in THERE]
    for image in images:
        Image.new("RGB", (32, 24), (int(image["id"]) * 10, 90, 20)).save(folder / "images" / str(image["file_name"]))
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(CATEGORIES)]
    instances = [
        {"image_id": ident, "category_id": CATEGORIES.index(name) + 1}
        for ident, names in THERE.items()
        for name in names
    ]
    captions = [{"image_id": ident, "caption": text} for ident, texts in REFERENCES.items() for text in texts]
    value: dict[str, Any] = {"images": images, "annotations": instances, "categories": categories}
    (folder / "annotations" / "instances_val2014.json").write_text(json.dumps(value))
    value = {"images": images, "annotations": captions}
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(value))
    return folder


def respond(path: Path, answers: dict[Any, Any]) -> Path:
    path.write_text(json.dumps([{"id": ident, "response": text} for ident, text in answers.items()]))
    return path


def scored(data: Path, folder: Path, answers: dict[Any, Any], **settings: Any) -> dict[str, Any]:
    return evaluate("chair", data=data, responses=respond(folder / "r.json", answers), **settings)


def values(report: dict[str, Any]) -> dict[str, float]:
    found = {**report["exact"]["all"], **report["rates"]["all"]}
    return {name: figure["value"] for name, figure in found.items()}


def test_figures_worked_out_by_hand(world: Path, tmp_path: Path) -> None:
    """Named: 10 person dog TABLE, 11 person table table TIE, 13 elephant; two of eight are not there."""
    report = scored(world, tmp_path, CAPTIONS)
    assert report["coverage"]["complete"] and report["protocol"]["truth"] == "instances and captions"
    assert values(report) == pytest.approx(
        {"chair_i": 25.0, "chair_s": 50.0, "recall": 100.0, "objects": 2.0, "words": 29 / 4}
    )
    assert all(figure["interval"] for figure in report["exact"]["all"].values())
    assert report["counts"]["all"]["there"] == 5
    assert "1 of 4 captions name no object" in " ".join(report["notes"])


def test_truth_of_one_kind(world: Path, tmp_path: Path) -> None:
    alone = scored(world, tmp_path, CAPTIONS, truth="instances")
    # The woman of 11 stands in its reference caption only.
    assert values(alone)["chair_i"] == pytest.approx(100 * 3 / 8) and alone["counts"]["all"]["there"] == 4
    assert "Only instance annotations say" in " ".join(alone["notes"])
    file = world / "annotations" / "instances_val2014.json"
    assert scored(file, tmp_path, CAPTIONS)["exact"] == alone["exact"]
    told = scored(world, tmp_path, CAPTIONS, truth="captions")
    assert told["protocol"]["truth"] == "captions" and told["protocol"]["classes"] == 80
    assert "Only reference captions say" in " ".join(told["notes"])


def test_what_is_wrong_can_be_looked_at(world: Path, tmp_path: Path) -> None:
    report = scored(world, tmp_path, CAPTIONS, out=tmp_path / "e")
    assert report["invented"] == [
        {"word": "dining table", "times": 1, "captions": 1, "id": 10},
        {"word": "tie", "times": 1, "captions": 1, "id": 11},
    ]
    assert report["objects"][0]["object"] == "dining table" and report["objects"][0]["hallucinated"] == 1
    rows = [json.loads(line) for line in (tmp_path / "e" / "scores.jsonl").read_text().splitlines()]
    assert rows[1]["detail"] == {
        "nouns": ["woman", "desk", "desk", "tie"],
        "hallucinated": ["tie"],
        "missed": [],
        "objects": ["person", "dining table", "dining table", "tie"],
        "invented": ["tie"],
    }
    assert rows[0]["detail"]["hallucinated"] == ["table"] and rows[0]["detail"]["invented"] == ["dining table"]
    (chart,) = load("chair").charts(report)
    assert isinstance(chart, Scatter) and chart.points == [(25.0, 100.0, "this run", True)]


def test_only_some_images(world: Path, tmp_path: Path) -> None:
    for text in ("13\n10\n", "[10, 13]", '["10", "13"]'):
        (tmp_path / "ids.txt").write_text(text)
        report = scored(world, tmp_path, CAPTIONS, ids=str(tmp_path / "ids.txt"))
        assert report["coverage"] == {**report["coverage"], "expected": 2, "answered": 2, "outside": 2}
    (tmp_path / "ids.txt").write_text("10\n99\n")
    with pytest.raises(DataError, match="1 of 2 are no images of the annotations: 99"):
        scored(world, tmp_path, CAPTIONS, ids=str(tmp_path / "ids.txt"))
    (tmp_path / "ids.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no ids"):
        scored(world, tmp_path, CAPTIONS, ids=str(tmp_path / "ids.txt"))
    with pytest.raises(MissingError, match="--ids nowhere cannot be read"):
        scored(world, tmp_path, CAPTIONS, ids="nowhere")


def test_names_of_ones_own(world: Path, tmp_path: Path) -> None:
    """The official synonyms.txt has this form; a class it leaves out is found by its own name."""
    (tmp_path / "synonyms.txt").write_text("person, mahout\ndog, hound\n")
    report = scored(
        world, tmp_path, {10: "A mahout, a hound, a man.", 13: "An elephant."}, synonyms=str(tmp_path / "synonyms.txt")
    )
    assert report["counts"]["all"]["named"] == 3 and report["protocol"]["names"].startswith("table ")
    assert report["headline"].startswith("PARTIAL 2/4")
    (tmp_path / "synonyms.txt").write_text("person\nperson\n")
    with pytest.raises(DataError, match="line 2: expected a class and its other names, each class once"):
        scored(world, tmp_path, CAPTIONS, synonyms=str(tmp_path / "synonyms.txt"))
    with pytest.raises(MissingError, match="--synonyms nowhere cannot be read"):
        scored(world, tmp_path, CAPTIONS, synonyms="nowhere")


def test_any_set_of_categories(tmp_path: Path) -> None:
    value = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "category_id": 5}],
        "categories": [{"id": 5, "name": "Fire_Extinguisher"}, {"id": 6, "name": "valve"}],
    }
    (tmp_path / "plant.json").write_text(json.dumps(value))
    text = "Two fire extinguishers and a valve; a man and a potted plant."
    report = scored(tmp_path / "plant.json", tmp_path, {1: text})
    assert report["counts"]["all"]["named"] == 2 and report["counts"]["all"]["wrong"] == 1
    assert report["invented"][0]["word"] == "valve"


def test_rows_of_a_converted_dataset(tmp_path: Path) -> None:
    """A column of a CSV says what a picture shows."""
    from vlmdata.convert import convert

    for index in (1, 2):
        Image.new("RGB", (20, 20), (index * 90, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "rows.csv").write_text('image,caption,objects\n1.png,A dog.,"dog, kite"\n2.png,A fork.,fork\n')
    convert("table", tmp_path / "rows.csv", tmp_path / "shards")
    ids = [item.id for item in load("chair").open(tmp_path / "shards", {}, None).items]
    report = scored(tmp_path / "shards", tmp_path, {ids[0]: "Two puppies.", ids[1]: "A kite and a fork."})
    assert report["coverage"]["complete"] and report["protocol"]["classes"] == 3
    assert values(report)["chair_i"] == pytest.approx(100 / 3) and values(report)["recall"] == pytest.approx(200 / 3)
    (tmp_path / "bare.csv").write_text("image,caption\n1.png,A dog.\n")
    convert("table", tmp_path / "bare.csv", tmp_path / "bare")
    with pytest.raises(DataError, match="no row of .* has objects in its meta"):
        load("chair").open(tmp_path / "bare", {}, None)


def chair(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["chair", *map(str, arguments)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "is not JSON"),
        ("[]", "expected an object with images and annotations"),
        ('{"images": 3}', "expected an object with images and annotations"),
        ('{"images": [], "annotations": []}', "the annotations list no images"),
        ('{"images": [{"id": 1}], "annotations": []}', "an image, category or annotation lacks 'file_name'"),
        ('{"images": [{"id": 1, "file_name": "a"}]}', "lacks 'annotations'"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "category_id": 4}]}', "lacks 4"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"caption": "x"}]}', "lacks 'image_id'"),
    ],
)
def test_bad_annotations_end_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "own.json").write_text(content)
    result = chair("--responses", respond(tmp_path / "r.json", {1: "a dog"}), "--data", tmp_path / "own.json")
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


def test_folders_that_are_none(world: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no annotations in .*: expected instances_\*.json"):
        load("chair").open(tmp_path, {}, None)
    with pytest.raises(MissingError, match="has no instances_train2017.json; valid for --split: val2014"):
        load("chair").open(world, {"split": "train2017"}, None)
    for name in ("instances_a.json", "instances_b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="has 2 files of instances: say which with --split; valid: a, b"):
        load("chair").open(tmp_path, {}, None)
    with pytest.raises(ConfigError, match="--truth is 'all'; valid: both, captions, instances"):
        load("chair").open(world, {"truth": "all"}, None)


def test_answers_of_every_kind(world: Path, tmp_path: Path) -> None:
    answers = {10: "<script>dog</script>", 11: "x " * 50_000, 12: "", 13: "$(elephant) `dogs`"}
    report = scored(world, tmp_path, answers, out=tmp_path / "e")
    assert report["counts"]["all"]["named"] == 3 and report["counts"]["all"]["wrong"] == 1
    assert "<script>dog" not in (tmp_path / "e" / "report.html").read_text()
    null = scored(world, tmp_path, {**CAPTIONS, 10: None})
    assert null["coverage"]["null"] == 1 and null["headline"].startswith("PARTIAL 3/4")


def test_asking_a_model(world: Path, tiny: Path, tmp_path: Path) -> None:
    report = evaluate(
        "chair", data=world, model=str(tiny), out=tmp_path / "e", quiet=True, max_new_tokens=6, prompt="What is it?"
    )
    assert report["coverage"]["complete"] and report["protocol"]["prompt"] == "What is it?"
    row = json.loads((tmp_path / "e" / "scores.jsonl").read_text().splitlines()[0])
    assert row["prompt"] == "What is it?" and row["images"] == ["000000000010.png"]
