"""``vlmeval generate`` with several models: one after the other, in columns, as JSON, and written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from click.testing import CliRunner, Result
from PIL import Image

from vlmdata.errors import ConfigError
from vlmeval import generate_command
from vlmeval.cli import main
from vlmeval.generate import Conversation, Reply, Sampling
from vlmeval.generate_record import write
from vlmeval.generate_view import Columns, Lines, harmless
from vlmeval.models.local import Local

FIRST, SECOND = "Describe the picture.", "What colour is it?"


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    import peft

    from vlmtrain.model import load, save

    folders = []
    for seed, name in enumerate(("sft", "dpo")):
        loaded = load(str(base), device="cpu")
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        folders.append(tmp_path_factory.mktemp("runs") / name)
        save(peft.get_peft_model(loaded.model, config), loaded.processor, folders[-1], "llava")
    return folders


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


def generated(base: Path, adapters: list[Path], picture: Path, *more: str | Path) -> Result:
    given = [part for folder in adapters for part in ("--adapter", folder)]
    arguments = ["generate", "--model", base, *given, "--image", picture, "--max-new-tokens", "6", "--device", "cpu"]
    return CliRunner().invoke(main, [*map(str, arguments), *map(str, more)])


def alone(base: Path, adapter: Path | None, picture: Path, *prompts: str) -> list[str]:
    local = Local(str(base), adapter, images=None, batch_size=1, max_new_tokens={"text": 6}, device="cpu")
    conversation = Conversation(local, [picture], Sampling(max_new_tokens=6))
    return [conversation.ask(prompt)[0].text for prompt in prompts]


def test_each_has_its_own_conversation(base: Path, adapters: list[Path], picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    result = generated(base, adapters, picture, "--with-base", "--prompt", FIRST, "--prompt", SECOND, "--out", out)
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert list(record["models"]) == ["base", "sft", "dpo"] and record["images"] == [str(picture)]
    assert [turn["prompt"] for turn in record["turns"]] == [FIRST, SECOND]
    for name, adapter in zip(record["models"], (None, *adapters), strict=True):
        texts = [turn["answers"][name][0]["text"] for turn in record["turns"]]
        assert texts == alone(base, adapter, picture, FIRST, SECOND)
        assert f"== {name}\n{texts[0]}\n" in result.stdout and result.stdout.count(f"== {name}\n") == 2
        assert record["models"][name]["adapter"] == (str(adapter) if adapter else None)
    assert result.stderr.count("tokens in") == 6 and "sft: " in result.stderr
    assert json.loads(out.read_text())["sampling"]["temperature"] == 0


def test_json_of_several_names_its_model(base: Path, adapters: list[Path], picture: Path) -> None:
    result = generated(base, adapters, picture, "--prompt", FIRST, "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["model"] for row in rows] == ["sft", "dpo"] and rows[0]["json"] is None
    assert [row["text"] for row in rows] == [alone(base, adapter, picture, FIRST)[0] for adapter in adapters]
    assert result.exit_code == 1 and "no JSON object in an answer" in result.stderr


def test_samples_are_drawn_anew_and_again(base: Path, adapters: list[Path], picture: Path) -> None:
    wild = ("--prompt", FIRST, "--sample", "3", "--temperature", "2", "--json", "--seed", "4")
    first, again = (generated(base, adapters[:1], picture, *wild) for _ in range(2))
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert [row["answer"] for row in rows] == [0, 1, 2] and len({row["text"] for row in rows}) > 1
    assert first.stdout == again.stdout
    listed = generated(base, adapters[:1], picture, *wild[:6])
    assert "== sft (3 of 3)" in listed.stdout


def test_a_penalty_changes_what_is_said(base: Path, picture: Path) -> None:
    plain, bent = (
        generated(base, [], picture, "--prompt", FIRST, *more).stdout for more in ((), ("--repetition-penalty", "9"))
    )
    assert plain == alone(base, None, picture, FIRST)[0] + "\n" != bent


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--with-base"], "--with-base puts the base beside its adapters: give --adapter"),
        (["--sample", "2"], "--sample 2 draws answers: give a --temperature above 0"),
        (["--sample", "0"], "--sample is at least 1, got 0"),
        (["--repetition-penalty", "0"], "--repetition-penalty is 0, expected from 0.1 to 10"),
        (["--out", "answers.txt"], "expected a file that ends in .md or .json"),
        (["--out", "nowhere/a.md"], "there is no folder nowhere"),
        (["--out", "old.md"], "old.md is there already: --overwrite replaces it"),
        (["--adapter", "x/gone"], "no adapter folder x/gone"),
    ],
)
def test_mistakes_end_in_one_line(
    base: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "old.md").write_text("mine")
    result = generated(base, [], picture, "--prompt", FIRST, *more)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1
    assert (tmp_path / "old.md").read_text() == "mine"


def test_columns_are_for_wide_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_command.sys.stdout, "isatty", lambda: True)
    for width, kind in ((99, Lines), (100, Columns)):
        monkeypatch.setenv("COLUMNS", str(width))
        assert isinstance(generate_command._view(["base", "sft"], 1, False), kind)


def test_columns_fill_side_by_side(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    view = Columns(["base", "[red]sft"], 1)
    with view.turn():
        for place, text in enumerate(("a red \x1b[31m square", "[bold]a circle")):
            stream = view.stream(place)
            stream(0, text[:5])
            stream(0, text[5:])
            view.show(place, [Reply(text, None, 3, 0.1)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("base" in line and "[red]sft" in line for line in lines)
    (row,) = [line for line in lines if "square" in line]
    assert "[bold]a circle" in row and "\x1b" not in row


def test_lines_are_streamed_under_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    view = Lines(["base", "sft"], 2, live=True)
    for place in range(2):
        stream = view.stream(place)
        for number in range(2):
            stream(number, f"answer {place}")
            stream(number, f"{number}\a")
        view.show(place, [Reply(f"answer {place}{number}", None, 1, 0.1) for number in range(2)])
    said = [
        f"== {name} ({number + 1} of 2)\nanswer {place}{number}?"
        for place, name in enumerate(("base", "sft"))
        for number in range(2)
    ]
    assert capsys.readouterr().out.replace("\N{REPLACEMENT CHARACTER}", "?") == "\n\n".join([*said, ""])
    assert harmless("a\x1b[2J\nb\x07") == "a\N{REPLACEMENT CHARACTER}[2J\nb\N{REPLACEMENT CHARACTER}"


def test_markdown_holds_answers_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "record.md"
    nasty = "a | b\n<script>alert(1)</script> *x* `y` [z](u)"
    models = [("base", {"model": "m"}), ("sft", {"model": "m", "adapter": "runs/sft"})]
    said = [("Read | it", [[Reply(nasty, None, 3, 0.5)], [Reply("fine", {"a": 1}, 2, 0.25)]])]
    write(out, models, ["a.png"], Sampling(temperature=0.5), said)
    text = out.read_text()
    (row,) = [line for line in text.splitlines() if "fine" in line]
    assert row.replace(r"\|", "").count("|") == 3, "two cells"
    assert "<script>" not in text and r"a \| b<br>&lt;script>" in row
    assert "| 3 tokens, 0.50 s | 2 tokens, 0.25 s |" in text and "temperature: 0.5" in text


def test_a_classifier_beside_its_own_kind_is_loaded_alone(tmp_path: Path, picture: Path) -> None:
    """Heads of their own cannot be switched off; each is loaded by itself and names its classes."""
    import peft

    from vlmtrain import family as families
    from vlmtrain.model import load, save

    base = tiny_models.make("vit", tmp_path / "vit")
    places = families.load("vit").target_regex(("vision",), ("attention",))
    folders = []
    for seed in range(2):
        loaded = load(str(base), device="cpu")
        torch.manual_seed(seed)
        config = peft.LoraConfig(target_modules=places, modules_to_save=["classifier"], init_lora_weights=False)
        folders.append(tmp_path / f"run{seed}")
        save(peft.get_peft_model(loaded.model, config), loaded.processor, folders[-1], "vit")
    result = generated(base, folders, picture)
    assert result.exit_code == 0, result.output
    assert result.stdout.count(" %") >= 4 and result.stderr.count("an image classifier has a head of its own") == 2


def test_sampling_names_what_has_no_effect() -> None:
    with pytest.raises(ConfigError, match="--top-p, --top-k and --min-p choose among draws"):
        Sampling(top_k=3)
    assert Sampling(repetition_penalty=1.2).keywords()["repetition_penalty"] == 1.2
    assert "repetition_penalty" not in Sampling().keywords()
