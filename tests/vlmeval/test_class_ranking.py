"""vlmeval classify --decide likelihood: the names of classes ranked, nothing generated."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "vlmtrain"))

import labelled_rows  # noqa: E402

from vlmdata.errors import ConfigError  # noqa: E402
from vlmeval.run import evaluate  # noqa: E402
from vlmeval.task import load  # noqa: E402

CLASSES = tuple(sorted(labelled_rows.COLOURS))


data = labelled_rows.shards("held", 3, seed=9)


def likely(data: Path, settings: dict[str, str], file: Path) -> Path:
    """Answers of a model that finds the truth likeliest, but for the first item, and per token the last class."""
    bench = load("classify").open(data, settings, None)
    lines = []
    for number, item in enumerate(bench.items):
        place = CLASSES.index(item.target)
        each = [-9.0] * 6
        each[place if number else (place + 1) % 6] = -3.0
        detail = {"log_likelihoods": each, "tokens": [1, 1, 1, 1, 1, 90]}
        lines.append(json.dumps({"id": item.id, "response": str(each.index(-3.0)), "detail": detail}) + "\n")
    file.write_text("".join(lines))
    return file


def test_classes_are_ranked_by_likelihood(data: Path, tmp_path: Path) -> None:
    settings = {"decide": "likelihood"}
    items = load("classify").open(data, settings, None).items
    assert {item.kind for item in items} == {"choice"}
    assert items[0].choices == ("blue", "dark pink", "green", "grey", "red", "yellow"), (
        "as the data's answers have them"
    )
    file = likely(data, settings, tmp_path / "a.jsonl")
    report = evaluate("classify", data=data, responses=file, decide="likelihood")
    exact = report["exact"]["all"]
    assert exact["accuracy"]["value"] == pytest.approx(100 * 17 / 18) and exact["top5"]["n"] == 18
    assert report["rates"]["all"]["no_answer_rate"]["value"] == 0
    # Divided by 90 tokens, the last class is always the likeliest.
    assert "Ranked by the mean log-likelihood per token, accuracy is 16.7 %." in report["notes"]
    assert report["protocol"]["decide"] == "likelihood"


def test_a_vlm_ranks_classes(data: Path, tiny: Path, tmp_path: Path) -> None:
    report = evaluate(
        "classify", data=data, model=str(tiny), out=tmp_path / "out", decide="likelihood", limit=4, quiet=True
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == report["coverage"]["answered"] == 4
    for row in rows:
        each = row["detail"]["log_likelihoods"]
        assert len(each) == 6 and row["answer"] == CLASSES[each.index(max(each))]


def test_too_many_classes_are_not_ranked(tmp_path: Path) -> None:
    folder = labelled_rows.write(tmp_path / "many", 1)
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["label_names"] = [*CLASSES, *(f"more{number}" for number in range(123))]
    file.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="expected at most 128 classes, .*many has 129; use --decide words"):
        load("classify").open(folder, {"decide": "likelihood"}, None)
    assert len(load("classify").open(folder, {}, None).items) == 6


def test_an_image_classifier_ranks_by_itself(data: Path, tmp_path: Path) -> None:
    import tiny_models

    vit = tiny_models.make("vit", tmp_path / "vit", labels=CLASSES)
    with pytest.raises(ConfigError, match="is an image classifier: it answers vlmeval classify --decide words"):
        evaluate("classify", data=data, model=str(vit), decide="likelihood", out=tmp_path / "out", quiet=True)
