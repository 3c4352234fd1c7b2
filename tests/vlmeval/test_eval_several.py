from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scripted import Scripted

from vlmdata.errors import ConfigError, OutputExistsError
from vlmeval import opening
from vlmeval.cli import main
from vlmeval.several import evaluate_several
from vlmeval.task import Response


def vlmeval(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Scripted]]:
    """Base and two adapters: one is right more often than the other."""

    def says(share: int) -> Any:
        return lambda item: Response(
            item.id, "a dog" if item.kind == "text" else ("No", "Yes")[int(item.id) % share == 0]
        )

    found = [("base", Scripted(says(2), adapter=None)), ("one", Scripted(says(3), adapter="one")),
             ("two", Scripted(says(7), adapter="two"))]  # fmt: skip

    def several(who: opening.Who, adapters: Any, images: Path, *, with_base: bool) -> list[tuple[str, Scripted]]:
        assert with_base and images.is_dir()
        return found[: 1 + len(adapters)]

    monkeypatch.setattr(opening.Who, "several", several)
    return found


def test_every_adapter_has_a_whole_folder_and_all_are_compared(
    world: Path, tmp_path: Path, models: list[tuple[str, Scripted]]
) -> None:
    out = tmp_path / "x"
    result = vlmeval("amber", "--data", world, "--adapter", "r/one", "--adapter", "r/two", "--out", out)
    assert result.exit_code == 0, result.output
    for name, model in models:
        record = json.loads((out / name / "run.json").read_text())
        report = json.loads((out / name / "report.json").read_text())
        assert report["coverage"]["complete"] and record["answers"] == model.describe()
        assert sum(map(len, model.asked)) == 44
    assert (out / "compare.html").is_file()
    assert "base → one" in result.output.replace("\n", " ") and "one → two" in result.output.replace("\n", " ")
    assert vlmeval("compare", out / "base", out / "two").exit_code == 0, "each is a folder like any other"
    (out / "two" / "report.json").unlink()
    (out / "two" / "responses.jsonl").write_text("")
    result = vlmeval("amber", "--data", world, "--adapter", "r/one", "--adapter", "r/two", "--out", out)
    assert result.exit_code == 2 and "--resume" in result.stderr
    result = vlmeval("amber", "--data", world, "--adapter", "r/one", "--adapter", "r/two", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert [model.loads for _, model in models] == [1, 1, 2], "what is finished is not loaded again"


def test_one_adapter_beside_its_base(world: Path, tmp_path: Path, models: list[tuple[str, Scripted]]) -> None:
    out = tmp_path / "x"
    arguments = ["amber", "--data", world, "--adapter", "r/one", "--with-base", "--out", out]
    result = vlmeval(*arguments, "--fail-under", "recall=0.9")
    assert sorted(path.name for path in out.iterdir()) == ["base", "compare.html", "one"]
    assert result.exit_code == 1 and result.stderr.count("limit not kept: one: ") == 1, "limits are for the adapters"
    assert vlmeval(*arguments, "--fail-under", "recall=0.1", "--overwrite").exit_code == 0


def test_nothing_begins_where_a_folder_is_taken(
    world: Path, tmp_path: Path, models: list[tuple[str, Scripted]]
) -> None:
    out = tmp_path / "x"
    (out / "two").mkdir(parents=True)
    (out / "two" / "report.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="two already holds an evaluation"):
        evaluate_several("amber", data=world, adapters=["r/one", "r/two"], out=out)
    assert not (out / "base").exists() and not any(model.asked for _, model in models)
    (out / "run.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="x itself holds an evaluation"):
        evaluate_several("amber", data=world, adapters=["r/one"], out=out, overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--with-base"], "no adapter is given"),
        (["--with-base", "--adapter", "a", "--responses", "r.json"], "a responses file is scored alone"),
        (["--adapter", "a", "--adapter", "b", "--endpoint", "http://h"], "--adapter is for a model loaded here"),
        (["--adapter", "a", "--adapter", "b"], "--out is missing"),
        (
            ["--adapter", "a", "--adapter", "b", "--out", "x", "--csv", "x.csv"],
            "--csv x.csv is a file of one evaluation",
        ),
        (["--adapter", "a", "--adapter", "a", "--out", "x"], "a"),
        (["--adapter", "nowhere/a", "--adapter", "nowhere/b", "--out", "x"], "nowhere"),
    ],
)
def test_what_does_not_go_together(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = vlmeval("amber", "--data", world, *arguments)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not (tmp_path / "x").exists()


def test_adapters_of_a_real_base(world: Path, tiny: Path, tmp_path: Path) -> None:
    """One load of the base; the same answers as asked alone."""
    import torch
    from peft import LoraConfig, get_peft_model

    from vlmeval.run import evaluate
    from vlmtrain.model import load

    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(load(str(tiny), trainable=True).model, config).save_pretrained(str(tmp_path / name))
    asked: dict[str, Any] = {"data": world, "part": "relation", "max_answer_tokens": 5, "quiet": True}
    reports = evaluate_several(
        "amber", model=str(tiny), adapters=[tmp_path / "one", tmp_path / "two"], out=tmp_path / "x", **asked
    )
    assert list(reports) == ["base", "one", "two"]
    texts = {name: (tmp_path / "x" / name / "responses.jsonl").read_text() for name in reports}
    assert len(set(texts.values())) == 3
    for name in ("base", "two"):
        adapter = None if name == "base" else tmp_path / name
        evaluate("amber", model=str(tiny), adapter=adapter, out=tmp_path / f"alone-{name}", **asked)
        assert (tmp_path / f"alone-{name}" / "responses.jsonl").read_text() == texts[name]
    with pytest.raises(ConfigError, match="another set-up: adapter_sha256 was"):
        evaluate("amber", model=str(tiny), adapter=tmp_path / "one", out=tmp_path / "x" / "two", resume=True, **asked)
