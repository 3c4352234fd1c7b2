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

from vlmdata.errors import ConfigError, DataError  # noqa: E402
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
    # 5 right of 8 asked for and 7 said.
    assert found["field_f1"] == pytest.approx(100 * 2 * 5 / (8 + 7)) and found["json_only"] == 50
    assert report["fields"]["serial"] == {
        "right": 2, "n": 4, "said": 3, "precision": pytest.approx(2 / 3), "recall": 0.5, "f1": pytest.approx(4 / 7),
    }  # fmt: skip
    assert report["fields"]["model"]["right"] == 3 and report["fields"]["colour"]["precision"] == 0
    assert report["tables"][0]["rows"][2] == ["colour", 0, 0, 1, 0.0, None, 0.0]
    assert "Fields right: serial 50.0 % of 4, model 75.0 % of 4." in report["notes"]
    assert re.search(r"\b1 of \d answers hold no JSON object", " ".join(report["notes"]))
    first = store.read_rows(tmp_path / "e" / "scores.jsonl")[1]
    assert first["detail"] == {"fields": {"serial": ["VK7X1", "VK7X7"], "model": ["DUKE", "DUKE"]}}


def test_plain_transcriptions(tmp_path: Path) -> None:
    data = write(tmp_path / "d", ask("a", "Read.", "Hello World"), ask("b", "Read.", "two\nlines", "blue"))
    found = values(scored("ocr", data, {"a": "Hello Word", "b": "two lines"}))
    assert found == {
        "exact": 50, "fields": None, "field_f1": None, "anls": pytest.approx(100 * (10 / 11 + 1) / 2),
        "cer": pytest.approx(100 / 20), "wer": 25, "alike": 50, "json": None, "json_only": None,
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


def test_characters_that_are_misread(tmp_path: Path) -> None:
    plates = ["VR80XX", "VR81XX", "UP5ZXX", "ABCD"]
    data = write(tmp_path / "d", *(ask(f"p{i}", "Read.", plate) for i, plate in enumerate(plates)))
    report = scored("ocr", data, {"p0": "UP80XX", "p1": "UR8lXX", "p2": "UP5ZXX", "p3": "WXYD"}, tmp_path / "e")
    found = [(c["true"], c["said"], c["n"], c["look_alike"]) for c in report["confused_characters"]]
    assert found == [("V", "U", 2, True), ("1", "l", 1, True), ("R", "P", 1, True)]
    # Three of four letters of ABCD are wrong: it is not aligned.
    assert "1 readings are wrong by half or more; their characters are not compared one by one." in report["notes"]
    assert "Characters: 7 taken for others, 0 left out, 0 added." in report["notes"]
    assert values(report)["exact"] == 25 and values(report)["alike"] == 75
    chart = load("ocr").charts
    assert chart is not None
    (matrix,) = chart(report)
    assert list(matrix.rows) == ["V", "1", "R"] and sum(map(sum, matrix.cells)) == 4
    assert matrix.cells[0][list(matrix.columns).index("U")] == 2
    assert chart({"confused_characters": []}) == [] == chart({})


def test_fields_in_lists_are_counted_together(tmp_path: Path) -> None:
    truth = {"items": [{"name": "tea", "price": 2}, {"name": "egg", "price": 3}], "sum": 5}
    data = write(tmp_path / "d", ask("a", "Read.", json.dumps(truth)), ask("b", "Read.", json.dumps(truth), "blue"))
    answer = {"items": [{"name": "tea", "price": 2}, {"name": "leg"}], "sum": "5"}
    report = scored("ocr", data, {"a": json.dumps(answer), "b": json.dumps({"items": []})})
    rows = {name: (row["right"], row["said"], row["n"]) for name, row in report["fields"].items()}
    assert rows == {"items.*.name": (1, 2, 4), "items.*.price": (1, 1, 4), "sum": (1, 1, 2), "items": (0, 1, 0)}
    assert values(report)["field_f1"] == pytest.approx(100 * 2 * 3 / (10 + 5))


GEOMETRY = (
    ("a", "How long is AB?", "AB = 3 * 4 = 12. Therefore the final answer is 12.", "So the length is $12.3$ cm."),
    ("b", "What is the degree of ABC?", "It is 45.5. Therefore the final answer is 45.5.", "45^\\circ"),
    ("c", "How long is BC?", "Therefore the final answer is 7.", "I cannot tell."),
)


def test_numbers_are_found_in_sentences(tmp_path: Path) -> None:
    data = write(tmp_path / "d", *(ask(name, question, truth) for name, question, truth, _ in GEOMETRY))
    said = {name: answer for name, _, _, answer in GEOMETRY}
    assert {item.kind for item in load("vqa").open(data, {"read_numbers": "yes"}, None).items} == {"text"}
    plain = values(scored("vqa", data, said))
    assert plain["relaxed"] == 0
    path = tmp_path / "answers.jsonl"
    for tolerance, right in (("0.05", 2), ("0.02", 1), ("0", 0)):
        report = evaluate("vqa", data=data, responses=path, read_numbers="yes", tolerance=tolerance)
        assert values(report)["relaxed"] == pytest.approx(100 * right / 3), tolerance
        assert "1 of 3 answers name no number, and count as wrong." in report["notes"]
    for wrong in ("5 %", "-1", "1", "nan"):
        with pytest.raises(ConfigError, match="--tolerance is .* expected a part of the true number"):
            evaluate("vqa", data=data, responses=path, tolerance=wrong)


def test_letters_of_options_are_read(tmp_path: Path) -> None:
    question = "What is it?\nA. a cat\nB. a dog\nAnswer with the letter."
    asked = [("a", question, "B"), ("b", question, "Answer: B"), ("c", question, "A"), ("d", "Colour?", "red")]
    data = write(tmp_path / "d", *(ask(*one) for one in asked))
    said = {"a": "The answer is (B).", "b": "A dog", "c": "A or B", "d": "red"}
    assert values(scored("vqa", data, said))["accuracy"] == 25
    report = evaluate("vqa", data=data, responses=tmp_path / "answers.jsonl", read_letters="yes")
    assert values(report)["accuracy"] == values(report)["exact"] == 75
    assert report["protocol"]["read_letters"] == "of 3 questions"
    assert "1 of 3 answers name no option, or several, and count as wrong." in report["notes"]
    assert "1 questions have no options, or a right answer that is none: read as texts." in report["notes"]
    items = load("vqa").open(data, {"read_letters": "yes"}, None).items
    assert [item.choices for item in items] == [("A", "B")] * 3 + [()]
    with pytest.raises(ConfigError, match="no question of .*e has options"):
        load("vqa").open(write(tmp_path / "e", ask("a", "Colour?", "red")), {"read_letters": "yes"}, None)


def test_yes_no_questions_have_choices_and_are_told_of(tmp_path: Path) -> None:
    asked = [("a", "Is it red?", "Yes."), ("b", "Is it blue?", "No"), ("c", "Colour?", "red")]
    data = write(tmp_path / "d", *(ask(*one) for one in asked))
    items = load("vqa").open(data, {}, None).items
    assert [item.choices for item in items] == [("Yes", "No"), ("Yes", "No"), ()]
    report = scored("vqa", data, {"a": "Yes, it is.", "b": "yes", "c": "red"})
    told = "2 questions are answered yes or no: 50.0 % right by the first word, yes said to 100.0 %, true for 50.0 %."
    assert told in report["notes"]


def test_figures_by_a_key_of_the_meta(tmp_path: Path) -> None:
    asked = [("a", "Colour?", "red"), ("b", "Colour?", "blue"), ("c", "How many?", "2"), ("d", "Where?", "here")]
    data = write(tmp_path / "d", *(ask(*one) for one in asked))
    metas = [{"type": "colour"}, {"type": "colour"}, {"type": {"name": "count"}}, {}]
    patched = [{**row, "meta": json.dumps(meta)} for row, meta in zip(_rows(data), metas, strict=True)]
    data = _written(tmp_path / "patched", patched)
    said = {"a": "red", "b": "red", "c": "2", "d": "there"}
    scored("vqa", data, said)
    path = tmp_path / "answers.jsonl"
    report = evaluate("vqa", data=data, responses=path, group_by="type", out=tmp_path / "e")
    rows = {value: (row["n"], row["accuracy"]) for value, row in report["by_value"]["type"].items()}
    assert rows == {"colour": (2, 50), '{"name": "count"}': (1, 100), "(none)": (1, 0)}
    assert sum(row["n"] for row in report["by_value"]["type"].values()) == 4
    (table,) = report["tables"]
    assert table["columns"][:3] == ["type", "n", "VQA acc"] and table["rows"][0][:3] == ["colour", 2, 50]
    facets = [row["facets"] for row in store.read_rows(tmp_path / "e" / "scores.jsonl")]
    assert facets[0] == {"type": "colour"} and facets[3] == {"type": "(none)"}
    nested = evaluate("vqa", data=data, responses=path, group_by="type.name")["by_value"]["type.name"]
    assert {value: row["n"] for value, row in nested.items()} == {"(none)": 3, "count": 1}
    by_source = evaluate("vqa", data=data, responses=path, group_by="source")["by_value"]["source"]
    assert by_source["test"]["n"] == 4
    with pytest.raises(DataError, match="has 'nothing' in its meta; its rows' keys: source, type"):
        evaluate("vqa", data=data, responses=path, group_by="nothing")


def test_captions_that_loop_or_are_all_the_same(tmp_path: Path) -> None:
    data = write(tmp_path / "d", *(ask(f"c{i}", f"Describe {i}.", f"a red square number {i}") for i in range(4)))
    said = {"c0": "a dog " * 5, "c1": "a dog " * 5, "c2": "a red square number 2", "c3": ""}
    report = scored("caption", data, said)
    found = values(report)
    # 7 4-grams of which 2 differ, twice; 2 of 2.
    assert found["loops"] == 50 and found["repeats"] == pytest.approx(100 * 10 / 16)
    assert report["diversity"]["different_captions"] == 3
    assert "2 captions loop: a phrase stands in them three times or more in a row." in report["notes"]
    assert "2 of 4 captions are the same: a dog a dog a dog a dog a dog" in report["notes"]
    assert "1 captions are empty." in report["notes"]


def test_document_frequencies_are_those_of_the_whole_set(tmp_path: Path) -> None:
    """A part that was asked scores as it does within the whole."""
    texts = ["a red square", "a blue circle", "a red circle on grass", "two dogs"]
    data = write(tmp_path / "d", *(ask(f"c{i}", f"Describe {i}.", text) for i, text in enumerate(texts)))
    whole = scored("caption", data, {f"c{i}": text for i, text in enumerate(texts)}, tmp_path / "whole")
    part = scored("caption", data, {"c2": texts[2]}, tmp_path / "part")
    assert whole["coverage"]["complete"] and part["coverage"]["answered"] == 1
    one = [row for row in store.read_rows(tmp_path / "whole" / "scores.jsonl") if row["id"] == "c2"]
    (other,) = store.read_rows(tmp_path / "part" / "scores.jsonl")
    assert one[0]["counts"] == other["counts"]


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
    assert found.notes == (
        "1 rows without an answer to compare with are not asked.",
        "2 earlier answers of conversations are shown as they are, not asked.",
    )
    each = load("vqa").open(tmp_path / "d", {"turns": "each"}, None)
    assert [item.id for item in each.items] == ["a/1", "a/2", "b", "a#2/1", "a#2/2"]
    assert [item.target for item in each.items[:2]] == [["Red."], ["Square"]]
    assert [len(item.turns) for item in each.items[:2]] == [1, 3] and len(each.notes) == 1
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


def test_a_question_may_show_no_image_or_two(tiny: Path, tmp_path: Path) -> None:
    plain = rows.sample("plain", [rows.user("Two plus two?"), rows.assistant("4")], [])
    both = [rows.user(rows.PLACE, rows.PLACE, "Same?"), rows.assistant("No")]
    two = rows.sample("two", both, [rows.picture("red"), rows.picture("blue")])
    data = write(tmp_path / "d", ask("one", "Colour?", "red"), plain, two)
    report = evaluate("vqa", data=data, model=str(tiny), max_answer_tokens=4, out=tmp_path / "out", quiet=True)
    assert report["coverage"]["complete"] and report["coverage"]["expected"] == 3
    assert report["clusters"] == 2, "the first image is shared"


def test_the_conversation_reaches_the_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All turns before the answer, in their order, with the suffix after the last one's text."""
    from vlmeval.models.local import Local
    from vlmtrain.questions import Questions

    seen: list[Any] = []
    plain = Questions.prompts

    def recorded(self: Questions, turns: Any, pictures: Any) -> Any:
        seen.append(turns)
        return plain(self, turns, pictures)

    monkeypatch.setattr(Questions, "prompts", recorded)
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
