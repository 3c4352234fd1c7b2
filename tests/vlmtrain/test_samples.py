"""Answers to held-out rows while a model trains: what they say, and that training does not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from killed import killed_before
from run_files import same

from vlmdata.errors import ConfigError
from vlmtrain import dpo, sft
from vlmtrain.watching.answers import prompts_of, undisturbed
from vlmtrain.watching.samples import read_samples

OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "lora_dropout": 0.2,
    "eval_fraction": 0.25,
    "eval_steps": 2,
    "progress": False,
}
SAMPLED = {"sample_steps": 3, "sample_rows": 2, "sample_tokens": 8}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(16))


@pytest.mark.parametrize("more", [{"sample_temperature": 1.5, "sample_min_p": 0.1}, {"gradient_checkpointing": True}])
def test_training_does_not_notice(more: dict[str, Any], base: Path, colours: Path, tmp_path: Path) -> None:
    """Dropout, data order and weights are those of a run without samples and without scores."""
    checkpointing = {key: value for key, value in more.items() if key == "gradient_checkpointing"}
    sft.train(colours, tmp_path / "plain", model=str(base), **OPTIONS, **checkpointing)
    asked = {**SAMPLED, "eval_metric": "anls", "eval_tokens": 4, **more}
    sft.train(colours, tmp_path / "asked", model=str(base), **OPTIONS, **asked)
    assert same(tmp_path / "plain", tmp_path / "asked")
    assert [row["step"] for row in read_samples(tmp_path / "asked")] == [0, 0, 3, 3, 4, 4]


def test_answers_are_those_vlmeval_gets(base: Path, colours: Path, tmp_path: Path) -> None:
    """Before from the base, after from the finished run; the rows are held out."""
    from vlmeval.models.local import Local
    from vlmeval.task import Item

    out = tmp_path / "run"
    result = sft.train(colours, out, model=str(base), **{**OPTIONS, **SAMPLED, "max_steps": 8})
    found = read_samples(out)
    assert result.metrics["rows"]["held_out"] == 4
    held = {row["id"] for row in found}
    assert len(held) == 2 and found[0]["prompt"] == "What colour is it?" and found[0]["reference"].startswith("It is ")
    turns = [rows.user(rows.PLACE, "What colour is it?")]
    from vlmdata.shards import open_shards

    digests = {row["id"]: row["image_sha256"] for row in open_shards(colours).rows(["id", "image_sha256"])}
    items = [Item(name, "", tuple(digests[name]), None, ("all",), "text", tuple(turns)) for name in sorted(held)]
    for adapter, step in ((None, 0), (out, 8)):
        local = Local(str(base), adapter, images=colours, batch_size=2, max_new_tokens={"text": 8, "answer": 8})
        wanted = {response.id: response.text for batch in local.answer(items) for response in batch}
        assert {row["id"]: row["answer"] for row in found if row["step"] == step} == wanted
    card = (out / "README.md").read_text()
    assert "| asked | right | before (step 0) | after (step 8) |" in card
    assert all(row["reference"] in card for row in found)


def test_a_resumed_run_samples_on(base: Path, colours: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, **SAMPLED, "model": str(base), "sample_steps": 1, "save_steps": 2}
    whole = sft.train(colours, tmp_path / "whole", **options)
    with killed_before(sft, 4):
        sft.train(colours, tmp_path / "run", **options)
    assert [row["step"] for row in read_samples(tmp_path / "run")] == [0, 0, 1, 1, 2, 2, 3, 3]
    resumed = sft.train(colours, tmp_path / "run", resume=True, **options)
    assert read_samples(resumed.out) == read_samples(whole.out)


def test_drawn_answers_depend_on_seed_and_step(base: Path, colours: Path, tmp_path: Path) -> None:
    hot = {**OPTIONS, **SAMPLED, "model": str(base), "sample_temperature": 3.0, "sample_steps": 4}
    first, again, other = (
        sft.train(colours, tmp_path / name, **{**hot, "seed": seed}) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert read_samples(first.out) == read_samples(again.out) != read_samples(other.out)


def test_of_preferences_the_chosen_answer_is_right(base: Path, tmp_path: Path) -> None:
    data = rows.write(tmp_path / "pairs", rows.pairs(12))
    options = {**OPTIONS, "lora_dropout": 0.0, "model": str(base)}
    plain = dpo.train(data, tmp_path / "plain", **options)
    asked = dpo.train(data, tmp_path / "asked", **options, **SAMPLED)
    assert same(plain.out, asked.out)
    found = read_samples(asked.out)
    assert all(row["prompt"] == "What colour is it?" and "circle" not in row["reference"] for row in found)


def test_an_answer_that_a_label_calls_bad_is_not_the_right_one(base: Path, tmp_path: Path) -> None:
    """KTO on rows with a label: the good ones are asked."""
    from vlmdata.shards import ShardWriter, shard_schema
    from vlmtrain import kto

    samples = rows.colours(12)
    data = rows.write(tmp_path / "data", samples)
    with ShardWriter(data / "data-00000-of-00001.parquet", shard_schema("messages")) as writer:
        for number, sample in enumerate(samples):
            meta = json.dumps({"good": number % 2 == 0})
            writer.write({**sample, "source": "t", "licence": "", "provenance": None, "meta": meta})
    options = {**OPTIONS, "lora_dropout": 0.0, "model": str(base), "label_by": "good", "max_steps": 2}
    out = kto.train(data, tmp_path / "run", **options, **SAMPLED, eval_metric="exact", keep_best=True).out
    assert {int(row["id"][4:]) % 2 for row in read_samples(out)} == {0}


def test_what_a_row_asks() -> None:
    from datasets import Dataset

    turns = [rows.user(rows.PLACE, "A?"), rows.assistant("a"), rows.user(rows.PLACE, "B?"), rows.assistant("b")]
    late = [rows.user("C?"), rows.assistant("c"), rows.user(rows.PLACE, "D?")]
    pictures = [{"bytes": rows.picture(colour), "path": None} for colour in ("red", "blue")]
    table = Dataset.from_list(
        [
            {"id": "two", "messages": turns, "images": pictures},
            {"id": "late", "messages": late, "images": pictures[:1]},
            {"id": "none", "messages": late[:1], "images": []},
        ]
    )
    two, early, none = prompts_of(table, [0, 1, 2])
    assert none is None and two is not None and early is not None
    assert (two.text, two.reference, len(two.turns), len(two.pictures())) == ("B?", "b", 3, 2)
    assert (early.text, early.reference, len(early.turns), early.pictures()) == ("C?", "c", 1, [])


def test_modes_and_random_numbers_are_as_before() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    model.train()
    model[1].eval()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="x"), undisturbed(model, seed=3):
        assert not any(module.training for module in model.modules())
        torch.rand(3)
        raise ValueError("x")
    assert [module.training for module in model.modules()] == [True, True, False, False]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_printed(base: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft.train(colours, tmp_path / "run", model=str(base), **{**OPTIONS, **SAMPLED, "progress": True})
    said = capsys.readouterr().err.splitlines()
    assert said.count("row 1  asked  What colour is it?") == 1
    steps = [line.rpartition("[step ")[2] for line in said if line.startswith("row 2  said")]
    assert steps == ["0]", "3]", "4]"]
    assert max(map(len, said)) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_steps": 2}, "sample_steps needs rows that are not trained on: give --eval-data or"),
        ({"sample_rows": 2}, "sample_rows does nothing without sample_steps"),
        ({"sample_steps": 2, "sample_min_p": 0.1, "eval_fraction": 0.2}, "sample_min_p does nothing without"),
    ],
)
def test_combinations_that_cannot_be(options: dict[str, Any], message: str, colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sft.train(colours, tmp_path / "run", model="no/where", progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_a_picture_that_cannot_be_read_is_left_out(base: Path, colours: Path, tmp_path: Path) -> None:
    held = rows.write(tmp_path / "held", [_broken(), *rows.colours(2)[1:]])
    options = {**OPTIONS, "eval_fraction": 0.0, "eval_data": [held], "model": str(base), "eval_steps": 4}
    out = sft.train(colours, tmp_path / "run", **options, **SAMPLED, eval_metric="exact").out
    assert {row["id"] for row in read_samples(out)} == {"row-1"}
    last = json.loads((out / "metrics.json").read_text())["eval"]
    assert last["eval_exact"] in (0, 100)


def _broken() -> dict[str, Any]:
    row = rows.colours(1)[0]
    row["images"][0]["bytes"] = row["images"][0]["bytes"][:60]
    return row
