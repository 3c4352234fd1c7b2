"""vlmeval ocr, vqa and caption: converted datasets in, reports out, with files of answers and with a model."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "vlmtrain"))

import colour_rows as rows  # noqa: E402

from vlmdata.errors import DataError  # noqa: E402
from vlmeval import store  # noqa: E402
from vlmeval.cli import main  # noqa: E402
from vlmeval.compare import compare  # noqa: E402
from vlmeval.run import evaluate  # noqa: E402
from vlmeval.task import load  # noqa: E402


def write(folder: Path, *samples: dict[str, Any]) -> Path:
    return rows.write(folder, list(samples))


def ask(name: str, question: str, answer: str, colour: str = "red", **more: Any) -> dict[str, Any]:
    turns = [rows.user(rows.PLACE, question), rows.assistant(answer)]
    return {**rows.sample(name, turns, [rows.picture(colour)]), **more}


def scored(task: str, data: Path, answers: dict[Any, Any], out: Path | None = None) -> dict[str, Any]:
    path = data.parent / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": i, "response": text}) + "\n" for i, text in answers.items()))
    return evaluate(task, data=data, responses=path, out=out)


def values(report: dict[str, Any]) -> dict[str, Any]:
    return {name: figure["value"] for column in ("exact", "rates") for name, figure in report[column]["all"].items()}


def test_plates_field_by_field(tmp_path: Path) -> None:
    plates = [{"serial": f"VK7X{i}", "model": "DUKE"} for i in range(4)]
    data = write(tmp_path / "plates", *(ask(f"p{i}", "Read it.", json.dumps(p)) for i, p in enumerate(plates)))
    answers = {
        "p0": 'Here: {"model": "DUKE", "serial": "VK7X0"} done',
        "p1": '{"serial": "VK7X7", "model": "DUKE"}',
        "p2": "no idea",
        "p3": json.dumps({**plates[3], "colour": "red"}),
    }
    report = scored("ocr", data, answers, tmp_path / "e")
    found = values(report)
    assert found["exact"] == 25 and found["fields"] == 100 * 5 / 8 and found["json"] == 75
    # VK7X7 for VK7X1, and all ten characters of p2.
    assert found["cer"] == pytest.approx(100 * 11 / 40)
    assert report["fields"] == {"serial": {"right": 2, "n": 4}, "model": {"right": 3, "n": 4}}
    assert "Fields right: serial 50.0 % of 4, model 75.0 % of 4." in report["notes"]
    assert re.search(r"\b1 of \d answers hold no JSON object", " ".join(report["notes"]))
    first = store.read_rows(tmp_path / "e" / "scores.jsonl")[1]
    assert first["detail"] == {"fields": {"serial": ["VK7X1", "VK7X7"], "model": ["DUKE", "DUKE"]}}


def test_plain_transcriptions(tmp_path: Path) -> None:
    data = write(tmp_path / "d", ask("a", "Read.", "Hello World"), ask("b", "Read.", "two\nlines", "blue"))
    found = values(scored("ocr", data, {"a": "Hello Word", "b": "two lines"}))
    assert found == {
        "exact": 50, "fields": None, "anls": pytest.approx(100 * (10 / 11 + 1) / 2), "cer": pytest.approx(100 / 20),
        "wer": 25, "json": None,
    }  # fmt: skip


def test_questions_with_one_and_with_many_right_answers(tmp_path: Path) -> None:
    many = json.dumps({"answers": ["red"] * 2 + ["crimson"] * 7})
    asked = [("0017", "Colour?", "red"), ("b", "Colour?", "red"), ("c", "How many?", "100")]
    data = write(tmp_path / "d", *(ask(*one) for one in asked))
    patched = [{**row, "meta": many} if row["id"] == "b" else row for row in _rows(data)]
    data = _written(tmp_path / "patched", patched)
    found = values(scored("vqa", data, {"0017": "The RED.", "b": "red", "c": "98"}))
    # Three of ten say red: 2/3 for each of them, 1 for the other seven.
    assert found["accuracy"] == pytest.approx(100 * (1 + 0.9 + 0) / 3)
    assert found["exact"] == pytest.approx(100 / 3) and found["relaxed"] == pytest.approx(200 / 3)
    assert found["words"] == pytest.approx(4 / 3)


def _rows(data: Path) -> list[dict[str, Any]]:
    from vlmdata.shards import open_shards

    return list(open_shards(data).rows())


def _written(folder: Path, samples: list[dict[str, Any]]) -> Path:
    from vlmdata.shards import ShardWriter, shard_schema

    path = rows.write(folder, samples)
    with ShardWriter(path / "data-00000-of-00001.parquet", shard_schema("messages")) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def test_captions_of_one_picture_are_one_item(tmp_path: Path) -> None:
    texts = ["a red square", "there is a red square", "a blue circle on grass", "one blue circle"]
    samples = [ask(f"c{i}", "Describe it.", text, ("red", "blue")[i // 2]) for i, text in enumerate(texts)]
    samples.append(ask("c4", "Name it.", "a square", "red"))
    data = write(tmp_path / "d", *samples)
    report = scored("caption", data, {"c0": texts[1], "c2": texts[2], "c4": "a square"})
    assert report["protocol"]["captions"] == 5 and report["protocol"]["pictures"] == 3
    assert report["coverage"]["complete"]
    found = values(report)
    assert found["bleu4"] == 100 and found["rouge_l"] == 100 and found["cider"] > 200
    worse = values(scored("caption", data, {"c0": "a dog", "c2": texts[2], "c4": ""}))
    assert worse["cider"] < found["cider"] and worse["rouge_l"] < 60


def test_only_the_last_answer_is_asked_for(tmp_path: Path) -> None:
    """Earlier turns are context; what comes after the last answer is not."""
    first = [rows.user(rows.PLACE, "Colour?"), rows.assistant("Red."), rows.user("Shape?"), rows.assistant("Square")]
    late = [rows.user("Hello?"), rows.assistant("Hi"), rows.user(rows.PLACE, "And now?")]
    silent = [rows.user(rows.PLACE, "Nothing?")]
    samples = [
        rows.sample("a", first, [rows.picture("red")]),
        rows.sample("b", late, [rows.picture("blue")]),
        rows.sample("c", silent, [rows.picture("blue")]),
        rows.sample("a", first, [rows.picture("green")]),
    ]
    found = load("vqa").open(write(tmp_path / "d", *samples), {}, None)
    one, two, again = found.items
    assert [turn["role"] for turn in one.turns] == ["user", "assistant", "user"]
    assert (one.prompt, one.target, len(one.images)) == ("Shape?", ["Square"], 1)
    assert (two.prompt, two.target, two.images) == ("Hello?", ["Hi"], ())
    assert again.id == "a#2"
    assert found.notes == ("1 rows without an answer to compare with are not asked.",)
    with pytest.raises(DataError, match="holds an answer to compare with"):
        load("ocr").open(write(tmp_path / "none", samples[2]), {}, None)


@pytest.mark.parametrize("task", ["ocr", "vqa", "caption"])
def test_a_model_is_asked(task: str, tiny: Path, tmp_path: Path) -> None:
    samples = rows.colours(6)
    samples[0]["messages"] = [*samples[0]["messages"], rows.user("Sure?"), rows.assistant("Yes.")]
    data = rows.write(tmp_path / "d", samples)
    command = [task, "--data", data, "--model", tiny, "--batch-size", 4]
    command += ["--max-new-tokens", 6, "--max-answer-tokens", 6]
    for out, more in (("a", ()), ("b", ("--prompt-suffix", "Be short."))):
        result = CliRunner().invoke(main, [*map(str, command), "--out", str(tmp_path / out), *more])
        assert result.exit_code == 0, result.output
        # The last line is the report's path, however long that is.
        assert all(len(line) <= 80 for line in result.stdout.splitlines()[:-1])
    report = store.read_json(tmp_path / "a" / "report.json")
    assert report["coverage"]["complete"] and report["speed"]["answers"] == report["coverage"]["expected"]
    page = (tmp_path / "a" / "report.html").read_text()
    assert "s an answer, 4 at a time, on cpu" in page and "data:image" in page and "official" not in page
    assert "s an answer" in (tmp_path / "a" / "report.md").read_text()
    comparison = compare([tmp_path / "a", tmp_path / "b"])
    assert comparison.pairs[0].common == report["coverage"]["expected"]


def test_the_conversation_reaches_the_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All turns before the answer, in their order, with the suffix after the last one's text."""
    from vlmeval.models.local import Local
    from vlmtrain import collate

    seen: list[Any] = []
    plain = collate.prompt_batch
    monkeypatch.setattr(collate, "prompt_batch", lambda *given: seen.append(given[2]) or plain(*given))
    turns = [rows.user(rows.PLACE, "Colour?"), rows.assistant("Red."), rows.user("Shape?"), rows.assistant("?")]
    data = rows.write(tmp_path / "d", [rows.sample("a", turns, [rows.picture("red")])])
    items = load("ocr").open(data, {}, None).items
    limits = {"answer": 6, "text": 6}
    (batch,) = Local(str(tiny), None, images=data, batch_size=3, max_new_tokens=limits).answer(items)
    (suffixed,) = Local(
        str(tiny), None, images=data, batch_size=3, max_new_tokens=limits, prompt_suffix="Briefly."
    ).answer(items)
    assert [response.id for response in (*batch, *suffixed)] == ["a", "a"]
    assert list(seen[0][0]) == turns[:3]
    assert seen[1][0][:2] == turns[:2]
    assert [part["text"] for part in seen[1][0][2]["content"]] == ["Shape?", "\nBriefly."]


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    data = rows.write(tmp_path / "d", rows.colours(2))
    pairs = rows.write(tmp_path / "pairs", rows.pairs(2))
    answers = tmp_path / "r.jsonl"
    answers.write_text('{"id": "row-9", "response": "x"}\n')
    for task, folder, said in (
        ("vqa", tmp_path / "nowhere", "nowhere"),
        ("caption", pairs, "holds preference rows, expected messages"),
        ("ocr", data, "none of 1 answers is one to ocr: its ids are row-0 to row-1"),
    ):
        result = CliRunner().invoke(main, [task, "--data", str(folder), "--responses", str(answers)])
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr
