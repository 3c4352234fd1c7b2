from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import amber_world
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmeval.cli import main
from vlmeval.models.local import batches
from vlmeval.run import evaluate
from vlmeval.task import Item

SHORT = {"max_new_tokens": 10, "max_answer_tokens": 5, "quiet": True}


def asked(world: Path, model: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return evaluate("amber", data=world, model=str(model), out=out, **{**SHORT, **settings})


def responses(out: Path) -> dict[int, str]:
    rows = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows), "asked twice"
    return {row["id"]: row["response"] for row in rows}


def amber(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["amber", *map(str, arguments)])


@pytest.fixture(scope="module")
def whole(world: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evals") / "whole"
    asked(world, tiny, out, batch_size=7)
    return out


def test_a_model_is_asked_everything_and_scored(world: Path, tiny: Path, whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert report["coverage"]["complete"] and report["headline"] == ""
    assert sorted(path.name for path in whole.iterdir()) == [
        "report.html", "report.json", "report.md", "responses.jsonl", "run.json", "scores.jsonl",
    ]
    answers = report["protocol"]["answers"]
    assert (answers["family"], answers["decoding"], answers["loaded_dtype"]) == ("llava", "greedy", "float32")
    assert answers["max_new_tokens"] == {"answer": 5, "text": 10}
    assert report["protocol"]["read_answers"] == "word"
    scores = [json.loads(line) for line in (whole / "scores.jsonl").read_text().splitlines()]
    assert {row["id"]: row["response"] for row in scores} == responses(whole)
    assert len(set(responses(whole).values())) > 1, "the tiny model must not say the same to everything"


def test_answers_do_not_depend_on_the_batch(world: Path, tiny: Path, whole: Path, tmp_path: Path) -> None:
    asked(world, tiny, tmp_path / "one", batch_size=1)
    asked(world, tiny, tmp_path / "all", batch_size=64)
    assert responses(tmp_path / "one") == responses(whole) == responses(tmp_path / "all")


def test_only_new_tokens_are_decoded(world: Path, tiny: Path, tmp_path: Path) -> None:
    asked(world, tiny, tmp_path / "e", max_new_tokens=1, max_answer_tokens=1)
    assert all(len(text) <= 12 and "Describe" not in text for text in responses(tmp_path / "e").values())


def test_a_killed_run_goes_on_where_it_was(world: Path, tiny: Path, whole: Path, tmp_path: Path) -> None:
    """The process dies of SIGKILL while it writes; the same command with --resume gives the same answers."""
    out, code = tmp_path / "killed", (
        "import os, signal, sys\n"
        "from vlmeval import log\n"
        "from vlmeval.cli import main\n"
        "append, written = log.Log.append, []\n"
        "def dying(self, rows):\n"
        "    append(self, rows)\n"
        "    written.extend(rows)\n"
        "    if len(written) > 20:\n"
        "        self._files[0].write(b'{\"id\": 44, \"respo'); self._files[0].flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "log.Log.append = dying\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["amber", "--data", world, "--model", tiny, "--out", out, "--batch-size", 7]
    arguments += ["--max-new-tokens", 10, "--max-answer-tokens", 5]
    run = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (out / "report.json").exists()
    before = (out / "responses.jsonl").read_bytes()
    assert b'"respo' == before[-6:], "the kill left a torn line"
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 2 and "go on with it with --resume" in result.stderr
    result = CliRunner().invoke(main, [*map(str, arguments), "--resume"])
    assert result.exit_code == 0, result.output
    assert set(before.splitlines()[:-1]) < set((out / "responses.jsonl").read_bytes().splitlines())
    assert (out / "responses.jsonl").read_bytes() == (whole / "responses.jsonl").read_bytes(), "in the items' order"
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (out, whole))
    # Answers of the run that was killed are not timed.
    assert ours.pop("speed")["answers"] < theirs.pop("speed")["answers"] == 44
    assert "--batch-size 7" in ours["run"].pop("command") and theirs["run"].pop("command") is None
    assert ours["run"].pop("timed") != theirs["run"].pop("timed")
    assert ours == theirs


def test_a_finished_run_is_not_asked_again(world: Path, tiny: Path, whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    before = os.stat(copy / "responses.jsonl")
    (copy / "report.json").unlink()
    asked(world, tiny, copy, batch_size=7, resume=True)
    assert os.stat(copy / "responses.jsonl").st_mtime_ns == before.st_mtime_ns
    assert (copy / "report.json").read_bytes() == (whole / "report.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_new_tokens": 11}, "max_new_tokens was"),
        ({"prompt_suffix": "Answer yes or no."}, "prompt_suffix was '', is 'Answer yes or no.'"),
        ({"dtype": "bfloat16"}, "dtype was 'auto', is 'bfloat16'"),
    ],
)
def test_a_changed_setup_is_refused(
    world: Path, tiny: Path, whole: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    with pytest.raises(ConfigError, match="another set-up") as caught:
        asked(world, tiny, copy, resume=True, **change)
    assert said in str(caught.value)


def test_changed_questions_and_weights_are_refused(
    world: Path, tiny: Path, whole: Path, tmp_path: Path
) -> None:
    import tiny_models

    shutil.copytree(whole, tmp_path / "copy")
    shutil.copytree(world, tmp_path / "world")
    queries = json.loads((world / "query" / "query_all.json").read_text())
    queries[5]["query"] = "Is it another question?"
    (tmp_path / "world" / "query" / "query_all.json").write_text(json.dumps(queries))
    with pytest.raises(ConfigError, match=r"query_all.json was \w{12}, is \w{12}"):
        asked(tmp_path / "world", tiny, tmp_path / "copy", resume=True)
    (tmp_path / "copy" / "responses.jsonl").write_text("")
    other = tiny_models.make("llava", tmp_path / "llava", seed=1)
    # The record gets the other model's path: only the weights tell them apart.
    record = json.loads((tmp_path / "copy" / "run.json").read_text())
    record["answers"]["model"] = str(other)
    (tmp_path / "copy" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="base_hash was"):
        asked(world, other, tmp_path / "copy", resume=True)


def test_a_limit_is_partial_and_can_be_lifted(world: Path, tiny: Path, whole: Path, tmp_path: Path) -> None:
    report = asked(world, tiny, tmp_path / "e", limit=10)
    assert report["headline"] == "PARTIAL 10/44" and not report["coverage"]["complete"]
    scores = (tmp_path / "e" / "scores.jsonl").read_text().splitlines()
    kinds = {tuple(row["groups"]) for row in map(json.loads, scores)}
    assert len(kinds) > 3, "a limit takes something of everything"
    report = asked(world, tiny, tmp_path / "e", resume=True)
    assert report["coverage"]["complete"]
    assert responses(tmp_path / "e") == responses(whole)


def test_a_part_asks_its_items_only(world: Path, tiny: Path, whole: Path, tmp_path: Path) -> None:
    report = asked(world, tiny, tmp_path / "e", part="relation")
    assert report["coverage"]["expected"] == 8 == len(responses(tmp_path / "e"))
    assert responses(tmp_path / "e").items() <= responses(whole).items()


def test_output_is_kept(world: Path, tiny: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="already holds an evaluation"):
        asked(world, tiny, whole)
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "own.txt").write_text("mine")
    with pytest.raises(MissingError):
        asked(world, tmp_path / "nothing", copy, overwrite=True)
    assert (copy / "report.json").exists(), "a model that does not load must not cost the old results"
    asked(world, tiny, copy, overwrite=True, part="relation")
    assert len(responses(copy)) == 8 and (copy / "own.txt").read_text() == "mine"
    path = amber_world.respond(tmp_path / "r.json", {1: "a dog"})
    with pytest.raises(OutputExistsError):
        evaluate("amber", data=world, responses=path, out=copy)
    evaluate("amber", data=world, responses=path, out=copy, overwrite=True)
    assert responses(copy) == {1: "a dog"}
    assert json.loads((copy / "run.json").read_text())["answers"]["kind"] == "responses"
    with pytest.raises(ConfigError, match="holds a scored responses file, which no model can go on with"):
        asked(world, tiny, copy, resume=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "neither a responses file nor a model is given"),
        (["--model", "m", "--responses", "r.json"], "both a responses file and a model are given"),
        (["--model", "vlmtrain:tiny"], "--out is missing"),
        (["--responses", "r.json", "--resume"], "--resume goes on asking a model"),
        (["--responses", "r.json", "--limit", "3"], "--limit is for asking a model"),
        (["--responses", "r.json"], "no responses file r.json"),
        (["--model", "./nowhere", "--out", "e"], "nowhere"),
        (["--adapter", "nowhere", "--out", "e"], "no adapter folder nowhere"),
        (["--model", "vlmtrain:tiny", "--out", "e", "--limit", "0"], "--limit is at least 1"),
        (["--model", "vlmtrain:tiny", "--out", "e", "--batch-size", "0"], "--batch-size is at least 1"),
        (["--model", "vlmtrain:tiny", "--out", "e", "--max-new-tokens", "0"], "at least 1 new token"),
        (["--model", "vlmtrain:tiny", "--out", "e", "--images", "nowhere"], "no image folder nowhere"),
        (["--model", "vlmtrain:tiny", "--out", "e", "--resume", "--overwrite"], "give one of them"),
    ],
)
def test_mistakes_end_in_one_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = amber("--data", world, *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_images_are_checked_before_anything_is_loaded(world: Path, tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "amber"
    shutil.copytree(world, copy)
    (copy / "images" / "AMBER_2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="1 of 4 images in .* are no readable images: AMBER_2.png"):
        asked(copy, tiny, tmp_path / "e")
    (copy / "images" / "AMBER_3.png").unlink()
    with pytest.raises(MissingError, match="1 of 4 images are not in .*: AMBER_3.png"):
        asked(copy, tiny, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    shutil.rmtree(copy / "images")
    with pytest.raises(MissingError, match="give --images FOLDER"):
        asked(copy, tiny, tmp_path / "e")
    shutil.rmtree(copy / "query")
    with pytest.raises(DataError, match="no image and question for 44 items"):
        asked(copy, tiny, tmp_path / "e", images=world / "images")


def test_odd_pictures_are_shown(world: Path, tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "amber"
    shutil.copytree(world, copy)
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(copy / "images" / "AMBER_1.png")
    Image.new("L", (4, 90), 7).save(copy / "images" / "AMBER_2.png")
    Image.new("P", (40, 30)).save(copy / "images" / "AMBER_3.png", transparency=0)
    report = asked(copy, tiny, tmp_path / "e", part="relation")
    assert report["coverage"]["complete"]


def test_a_picture_cut_short_fails_its_items_alone_and_can_be_mended(world: Path, tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "amber"
    shutil.copytree(world, copy)
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    noise.save(copy / "images" / "AMBER_4.png")
    raw = (copy / "images" / "AMBER_4.png").read_bytes()
    (copy / "images" / "AMBER_4.png").write_bytes(raw[: len(raw) // 2])
    report = asked(copy, tiny, tmp_path / "e", batch_size=1)
    shown = sum(query["image"] == "AMBER_4.png" for query in amber_world.queries())
    assert report["headline"] == f"PARTIAL {44 - shown}/44 \N{MIDDLE DOT} {shown} FAILED"
    assert report["coverage"]["failed"] == report["coverage"]["missing"] == shown
    failures = [json.loads(line) for line in (tmp_path / "e" / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == shown and all("AMBER_4.png cannot be decoded" in row["error"] for row in failures)
    assert f"{shown} of 44 items could not be answered" in " ".join(report["notes"])
    before = responses(tmp_path / "e")
    (copy / "images" / "AMBER_4.png").write_bytes(raw)
    report = asked(copy, tiny, tmp_path / "e", batch_size=1, resume=True)
    assert report["coverage"]["complete"] and not (tmp_path / "e" / "failures.jsonl").exists()
    assert before.items() < responses(tmp_path / "e").items(), "only what failed is asked again"


def test_a_model_that_does_not_load_leaves_nothing_behind(world: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    result = amber("--data", world, "--model", tmp_path / "model", "--out", tmp_path / "e")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_a_foreign_responses_log_is_refused(world: Path, tiny: Path, whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "responses.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="line 1 is no answer"):
        asked(world, tiny, copy, resume=True, batch_size=7)
    (copy / "responses.jsonl").write_text('{"id": 1, "response": "a dog"}\n')
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "format": 1}))
    with pytest.raises(DataError, match="is of format 1, expected 2: it was made by another version"):
        asked(world, tiny, copy, resume=True)
    (copy / "run.json").unlink()
    with pytest.raises(DataError, match="no run.json"):
        asked(world, tiny, copy, resume=True)


def test_batches_keep_kinds_apart_and_images_together() -> None:
    items = [
        Item(index, "q" * (index % 7), (f"{index % 5}.png",), "no", ("g",), "text" if index < 9 else "answer")
        for index in range(300)
    ]
    cut = list(batches(items, 4))
    assert sorted(item.id for batch in cut for item in batch) == list(range(300))
    assert all(len({item.kind for item in batch}) == 1 for batch in cut)
    assert max(map(len, cut)) == 4
    assert sum(len({len(item.prompt) for item in batch}) for batch in cut) < 1.4 * len(cut)


def test_adapters(world: Path, tiny: Path, tmp_path: Path) -> None:
    """An adapter changes the answers, and is told apart from another by its weights."""
    import torch
    from peft import LoraConfig, get_peft_model

    from vlmtrain.model import load

    loaded = load(str(tiny), trainable=True)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(loaded.model, config).save_pretrained(str(tmp_path / "adapter"))
    report = asked(world, tiny, tmp_path / "e", adapter=tmp_path / "adapter", part="relation")
    digest = report["protocol"]["answers"]["adapter_sha256"]
    assert len(digest) == 64
    asked(world, tiny, tmp_path / "base", part="relation")
    assert responses(tmp_path / "e") != responses(tmp_path / "base")
    moved = (tmp_path / "adapter").rename(tmp_path / "moved")
    asked(world, tiny, tmp_path / "e", adapter=moved, part="relation", resume=True)
    config_file = moved / "adapter_config.json"
    config_file.write_text(config_file.read_text() + "\n")
    with pytest.raises(ConfigError, match=rf"adapter_sha256 was {digest[:12]}"):
        asked(world, tiny, tmp_path / "e", adapter=moved, part="relation", resume=True)
