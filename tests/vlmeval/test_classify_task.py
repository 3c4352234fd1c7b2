"""vlmeval classify: classifiers and models that answer in words, on really converted labelled pictures."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "vlmtrain"))

import labelled_rows  # noqa: E402

from vlmdata.errors import ConfigError, DataError, MissingError  # noqa: E402
from vlmeval.cli import main  # noqa: E402
from vlmeval.compare import compare  # noqa: E402
from vlmeval.measure import columns, resampled  # noqa: E402
from vlmeval.metrics import labels  # noqa: E402
from vlmeval.metrics.class_names import ClassNames  # noqa: E402
from vlmeval.metrics.intervals import bootstrap, bootstrap_plain  # noqa: E402
from vlmeval.run import evaluate  # noqa: E402
from vlmeval.shardset import ShardImages, reader  # noqa: E402
from vlmeval.task import Response, load  # noqa: E402

CLASSES = tuple(sorted(labelled_rows.COLOURS))
FOOD = ("cake", "chocolate_cake", "creme_brulee", "hot_dog", "pho", "apple_pie")


data = labelled_rows.shards("held", 3, seed=9)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_models

    return tiny_models.make("vit", tmp_path_factory.mktemp("models") / "vit", labels=CLASSES)


def truths(data: Path) -> dict[str, str]:
    bench = load("classify").open(data, {}, None)
    return {str(item.id): item.target for item in bench.items}


def answers(file: Path, found: dict[str, str | None]) -> Path:
    file.write_text("".join(json.dumps({"id": key, "response": value}) + "\n" for key, value in found.items()))
    return file


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("apple_pie", "apple_pie"),
        ("Apple pie.", "apple_pie"),
        ("This looks like an apple-pie to me!", "apple_pie"),
        ("It is a chocolate cake", "chocolate_cake"),
        ("cake", "cake"),
        ("A Crème Brûlée", "creme_brulee"),
        ("chocolate cake or just cake?", None),
        ("apple pie, not cake", None),
        ("cakes", None),
        ("pho pho pho", "pho"),
        ("", None),
        (None, None),
        ("hot", None),
        ("HOT DOG\n", "hot_dog"),
        ("pho\ncake\nhot_dog", "pho"),
        ("pho\ncake\nI am not sure", None),
        ("pho\npho", "pho"),
    ],
)
def test_the_class_an_answer_names(answer: str | None, said: str | None) -> None:
    found = ClassNames(FOOD).said(answer)
    assert (None if found is None else FOOD[found]) == said


def test_a_ranking_is_names_only_and_each_once() -> None:
    names = ClassNames(FOOD)
    assert names.ranking("pho\ncake\nhot_dog") == [4, 0, 3]
    assert names.ranking("pho") == names.ranking("pho\npho") == names.ranking("pho\nbread") == names.ranking(None) == []


def test_names_that_differ_in_case_only_are_told_apart_where_they_are_exact() -> None:
    names = ClassNames(("Turkey", "turkey", "!"))
    assert [names.said(text) for text in ("turkey", "Turkey", "!", "a turkey")] == [1, 0, 2, 0]


def test_figures_by_class_add_up() -> None:
    draws = random.Random(0)
    true = [draws.randrange(6) for _ in range(200)]
    said = [t if draws.random() < 0.5 else draws.randrange(6) for t in true]
    rows, confusions = labels.per_class(said, true, CLASSES)
    assert sum(row["n"] for row in rows) == sum(row["said"] for row in rows) == 200
    assert sum(c["n"] for c in confusions) == 200 - sum(row["right"] for row in rows)
    assert [c["n"] for c in confusions] == sorted((c["n"] for c in confusions), reverse=True)
    assert np.mean([row["f1"] for row in rows]) == pytest.approx(labels.f1(said, true, "macro"))
    one = rows[2]
    assert one["f1"] == pytest.approx(2 * one["precision"] * one["recall"] / (one["precision"] + one["recall"]))
    nobody, _ = labels.per_class([0, 0], [0, 0], ("a", "b"))
    assert nobody[1]["f1"] is nobody[1]["precision"] is nobody[1]["recall"] is None


def test_top_k() -> None:
    ranked, true = [[0, 1], [1, 2], [2, 0]], [1, 1, 1]
    assert labels.top_k(ranked, true) == pytest.approx(2 / 3)
    figures, _ = labels.summary([[*range(5)]] * 2, [4, 5], CLASSES)
    assert figures["top5"] == 0.5 and "top5" not in labels.summary([[0, 1]], [1], ("a", "b"))[0]
    with pytest.raises(DataError):
        labels.top_k([], [])


def random_answers(data: Path, seed: int) -> dict[str, str | None]:
    draws = random.Random(seed)
    found: dict[str, str | None] = {}
    for key, truth in truths(data).items():
        other = draws.choice([*CLASSES, "no idea"])
        found[key] = (truth if draws.random() < 0.5 else other).replace("_", " ")
    return found


def test_the_report_has_the_figures_of_the_definitions(data: Path, tmp_path: Path) -> None:
    given = random_answers(data, 1)
    report = evaluate("classify", data=data, responses=answers(tmp_path / "a.jsonl", given), out=tmp_path / "out")
    true = [CLASSES.index(name) for name in truths(data).values()]
    said = [CLASSES.index(a.replace(" ", "_")) if a != "no idea" else None for a in given.values() if a is not None]
    exact = report["exact"]["all"]
    assert exact["accuracy"]["value"] == pytest.approx(100 * np.mean([t == s for t, s in zip(true, said, strict=True)]))
    unread = said.count(None)
    assert report["rates"]["all"]["no_answer_rate"]["value"] == pytest.approx(100 * unread / 18)
    # An answer without a class is a class of its own to scikit-learn's F1; here it is none, and counts as missed only.
    scores = []
    for index in range(6):
        hits = sum(t == s == index for t, s in zip(true, said, strict=True))
        scores.append(2 * hits / (true.count(index) + said.count(index)))
    assert exact["f1"]["value"] == pytest.approx(100 * np.mean(scores))
    assert exact["f1_weighted"]["value"] == pytest.approx(100 * np.mean(scores), rel=1e-6), "3 of each"
    assert exact["top5"]["value"] is None, "nothing was ranked"
    for name in ("accuracy", "f1", "f1_weighted"):
        low, high = exact[name]["interval"]
        assert low < exact[name]["value"] < high
    assert sum(row["n"] for row in report["classes"]) == 18
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Most confused" in text and "official" not in text


def test_macro_f1_of_resamples_is_that_of_the_definition(data: Path, tmp_path: Path) -> None:
    """Also where a resample lacks a class: it is then none that occurs."""
    task = load("classify")
    bench = task.open(data, {}, None)
    said = [Response(item.id, item.target if n % 2 else "red") for n, item in enumerate(bench.items[:4])]
    rows = [bench.score(item, answer).to_json() for item, answer in zip(bench.items[:4], said, strict=True)]
    drawn = resampled(task, rows, [row["cluster"] for row in rows])["all"]
    metric = next(m for m in task.metrics if m.name == "f1")
    values = metric.value(drawn)
    plain = [metric.value({name: float(column[i]) for name, column in drawn.items()}) for i in range(200)]
    np.testing.assert_allclose(values[:200], plain)
    found = columns(task, rows, ["all"])["exact"]["all"]["f1"]["value"]
    true = [row["target"] for row in rows]
    assert found == pytest.approx(100 * labels.f1([row["answer"] for row in rows], true))


def test_intervals_of_many_classes_are_those_of_the_plain_loop() -> None:
    """Three counters for each of 60 classes: rows of which little is not zero are multiplied by that."""
    draws = np.random.default_rng(1)
    table = np.zeros((200, 183))
    for row in table:
        true, said = draws.integers(0, 60, 2)
        row[[true, 60 + said, 180, 182]] = 1
        row[120 + true] = row[181] = float(true == said)
    assert np.count_nonzero(table) < 0.1 * table.size
    drawn = bootstrap(table, resamples=40, seed=3)
    np.testing.assert_allclose(drawn, bootstrap_plain(table, resamples=40, seed=3), atol=1e-12)


def test_a_classifier_answers_with_its_likeliest_classes(data: Path, vit: Path, tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    report = evaluate("classify", data=data, model=str(vit), out=tmp_path / "out", batch_size=5, quiet=True)
    assert report["coverage"]["complete"] and report["protocol"]["answers"]["family"] == "vit"
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    model, processor = AutoModelForImageClassification.from_pretrained(vit), AutoImageProcessor.from_pretrained(vit)
    images = ShardImages(data)
    for row in rows[:6]:
        import io

        picture = Image.open(io.BytesIO(images(row["images"][0]))).convert("RGB")
        with torch.no_grad():
            scores = model(**processor(images=[picture], return_tensors="pt")).logits[0]
        assert row["response"].split("\n") == [CLASSES[i] for i in scores.topk(5).indices]
    assert report["exact"]["all"]["top5"]["n"] == 18
    assert "data:image/" in (tmp_path / "out" / "report.html").read_text(), "pictures come out of the shards"
    assert str(tmp_path) not in (tmp_path / "out" / "responses.jsonl").read_text()


def test_the_score_is_the_one_of_the_training_run(data: Path, vit: Path, tmp_path: Path) -> None:
    from vlmtrain.classify import train

    more = labelled_rows.write(tmp_path / "train", 4)
    result = train(
        more, tmp_path / "run", eval_data=[data], model=str(vit), epochs=3, learning_rate=5e-3, progress=False
    )
    report = evaluate(
        "classify", data=data, model=str(vit), adapter=tmp_path / "run", out=tmp_path / "eval", quiet=True
    )
    exact, evaluated = report["exact"]["all"], result.metrics["eval"]
    pairs = {"accuracy": "eval_accuracy", "f1": "eval_f1_macro", "f1_weighted": "eval_f1_weighted", "top5": "eval_top5"}
    for ours, theirs in pairs.items():
        assert exact[ours]["value"] == pytest.approx(100 * evaluated[theirs])
    assert report["confusions"] == json.loads((tmp_path / "run" / "eval.json").read_text())["confusions"]


def test_micro_f1_and_tables(data: Path, tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    given = random_answers(data, 1)
    report = evaluate("classify", data=data, responses=answers(tmp_path / "a.jsonl", given), out=tmp_path / "out")
    true = [CLASSES.index(name) for name in truths(data).values()]
    said = [CLASSES.index(name) if (name := str(a).replace(" ", "_")) in CLASSES else -1 for a in given.values()]
    for metric, average in (("f1_micro", "micro"), ("f1", "macro"), ("f1_weighted", "weighted")):
        theirs = f1_score(true, said, labels=sorted({*true, *said} - {-1}), average=average, zero_division=0)
        assert report["exact"]["all"][metric]["value"] == pytest.approx(100 * theirs, abs=1e-9)
    tables = {table["title"]: table for table in report["tables"]}
    assert [row[0] for row in tables["Classes"]["rows"]] == [
        row["name"] for row in sorted(report["classes"], key=lambda row: (row["f1"], row["name"]))
    ]
    unread = tables["Answers that name no class"]["rows"]
    assert len(unread) == said.count(-1) and {row[2] for row in unread} == {"no idea"}
    assert all(len(row) == len(table["columns"]) for table in report["tables"] for row in table["rows"])


def test_the_confusion_matrix_holds_every_answer(data: Path, tmp_path: Path) -> None:
    task = load("classify")
    report = evaluate("classify", data=data, responses=answers(tmp_path / "a.jsonl", random_answers(data, 1)))
    assert task.charts is not None
    (matrix,) = task.charts(report)
    assert matrix.columns[-1] == "no class" and sum(map(sum, matrix.cells)) == 18
    diagonal = [matrix.cells[place][place] for place in range(len(matrix.rows))]
    assert sum(diagonal) == sum(row["right"] for row in report["classes"])


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    """Sums of the rows are those of the whole, what is left out standing in its own column."""
    draws = random.Random(3)
    names = [f"c{number:02d}" for number in range(60)]
    true = [place for place in range(60) for _ in range(20)]
    said = [t if draws.random() < 0.6 else draws.choice([None, (t + 1) % 60, draws.randrange(60)]) for t in true]
    classes, confusions = labels.per_class(said, true, names)
    task = load("classify")
    assert task.charts is not None
    (matrix,) = task.charts({"classes": classes, "confusions": confusions})
    assert len(matrix.rows) == 30 and list(matrix.columns[30:]) == ["other classes", "no class"]
    assert "30 of 60 classes" in matrix.title and all(sum(row) == 20 for row in matrix.cells)
    wrong = {name: sum(c["n"] for c in confusions if name in (c["true"], c["said"])) for name in names}
    assert min(wrong[name] for name in matrix.rows) >= max(wrong[name] for name in names if name not in matrix.rows)
    assert task.charts({"classes": [], "confusions": []}) == []


def test_a_model_that_answers_in_words_is_asked_the_question(data: Path, tiny: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": data, "model": str(tiny), "max_answer_tokens": 4, "quiet": True}
    report = evaluate("classify", out=tmp_path / "out", list_classes="yes", **settings)
    assert report["coverage"]["complete"] and report["protocol"]["list_classes"] == "yes"
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    ask = "What is shown in this image?\nAnswer with one of: blue, dark pink, green, grey, red, yellow."
    assert {row["prompt"] for row in rows} == {ask}
    assert report["exact"]["all"]["top5"]["value"] is None


def test_two_classifiers_compare(data: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        evaluate(
            "classify",
            data=data,
            responses=answers(tmp_path / f"{seed}.jsonl", random_answers(data, seed)),
            out=tmp_path / str(seed),
        )
    comparison = compare([tmp_path / "1", tmp_path / "2"])
    (pair,) = comparison.pairs
    assert pair.common == 18 and pair.mcnemar["all"]["n"] == 18
    assert {d["metric"] for d in pair.differences} >= {"accuracy", "f1", "f1_weighted"}
    result = CliRunner().invoke(
        main, ["compare", str(tmp_path / "1"), str(tmp_path / "2"), "--html", str(tmp_path / "c.html")]
    )
    assert result.exit_code == 0, result.output


def test_the_command_fits_a_terminal(data: Path, tmp_path: Path) -> None:
    file = answers(tmp_path / "a.jsonl", random_answers(data, 3))
    result = CliRunner().invoke(main, ["classify", "--data", str(data), "--responses", str(file)])
    assert result.exit_code == 0, result.output
    assert "Macro F1" in result.output and "official" not in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    assert "Blind baseline always" in result.output


def test_images_come_out_of_the_shards(data: Path, tmp_path: Path) -> None:
    read = reader(data)
    name = next(iter(load("classify").open(data, {}, None).items)).images[0]
    import hashlib

    assert hashlib.sha256(read(name)).hexdigest() == name
    with pytest.raises(MissingError, match="holds no image nothing"):
        read("nothing")
    (tmp_path / "a.png").write_bytes(b"x")
    assert reader(tmp_path)("a.png") == b"x"
    with pytest.raises(MissingError, match="b.png cannot be read"):
        reader(tmp_path)("b.png")


def test_what_cannot_be_scored_is_refused(data: Path, vit: Path, world: Path, tmp_path: Path) -> None:
    import colour_rows

    plain = colour_rows.write(tmp_path / "plain", colour_rows.colours(3))
    pairs = colour_rows.write(tmp_path / "pairs", colour_rows.pairs(2))
    file = answers(tmp_path / "a.jsonl", {"x": "red"})
    with pytest.raises(DataError, match="plain has no labels"):
        evaluate("classify", data=plain, responses=file)
    with pytest.raises(DataError, match="pairs holds preference rows, expected messages"):
        evaluate("classify", data=pairs, responses=file)
    with pytest.raises(DataError, match="none of 1 answers is one to classify"):
        evaluate("classify", data=data, responses=file)
    with pytest.raises(MissingError):
        evaluate("classify", data=tmp_path / "nothing", responses=file)
    with pytest.raises(ConfigError, match="is an image classifier: it answers vlmeval classify --decide words"):
        evaluate("amber", data=world, model=str(vit), out=tmp_path / "amber", quiet=True)


def test_ids_that_two_rows_share_are_told_apart(data: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = labelled_rows.write(tmp_path / "twice", 1)
    file = next(folder.glob("*.parquet"))
    table = pq.read_table(file)
    rows = table.to_pylist()
    for row in rows[:3]:
        row["id"] = "same"
    rows[5]["label"] = None
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    bench = load("classify").open(folder, {}, None)
    assert [item.id for item in bench.items][:3] == ["same", "same#2", "same#3"]
    assert len(bench.items) == 5 and bench.notes == ("1 rows without a label are not asked.",)


def test_generate_names_the_classes_of_a_picture(data: Path, vit: Path, tmp_path: Path) -> None:
    """A picture from outside, as the guide ends; also from inside a folder of shards."""
    picture = next((data.parent / "held-raw" / "red").iterdir())
    result = CliRunner().invoke(main, ["generate", "--model", str(vit), "--image", str(picture)])
    assert result.exit_code == 0, result.output
    lines = [line.rpartition("  ") for line in result.stdout.splitlines()]
    assert {name for name, _, _ in lines} <= set(CLASSES) and len(lines) == 5
    shares = [float(share.removesuffix(" %")) for _, _, share in lines]
    assert shares == sorted(shares, reverse=True) and 80 < sum(shares) < 100
    asked = ["generate", "--model", str(vit), "--image", str(picture), "--prompt", "What is it?"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2 and "show it one image, and ask nothing" in result.output
