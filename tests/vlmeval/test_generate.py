"""``vlmeval generate``: captions, questions, chats and JSON, from a real small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmdata.errors import ConfigError
from vlmeval.cli import main
from vlmeval.generate import Sampling, chat
from vlmeval.metrics.json_answer import cut_json
from vlmeval.models.local import Local

TINY = "vlmtrain:tiny"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generate") / "red.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


@pytest.fixture(scope="module")
def tiny() -> Local:
    return Local(TINY, None, images=None, batch_size=1, max_new_tokens={"text": 8})


def test_earlier_turns_are_context(tiny: Local, picture: Path) -> None:
    asked = ["Describe the picture.", "Is there a circle?"]
    first, second = chat(tiny, [picture], asked, Sampling(max_new_tokens=8))
    assert first.text and second.text and first.tokens <= 8
    seen: list[str] = []
    from vlmtrain import collate

    plain = collate.render_prompt
    try:
        collate.render_prompt = lambda processor, turns: seen.append(plain(processor, turns)) or seen[-1]
        again = list(chat(tiny, [picture], asked, Sampling(max_new_tokens=8)))
    finally:
        collate.render_prompt = plain
    assert [reply.text for reply in again] == [first.text, second.text], "greedy is the same every time"
    assert first.text in seen[1] and asked[0] in seen[1] and seen[1].count("<image>") == 1


def test_a_caption_needs_no_prompt_and_a_question_no_picture(tiny: Local, picture: Path) -> None:
    (caption,) = chat(tiny, [picture], [], Sampling(max_new_tokens=4))
    (answer,) = chat(tiny, [], ["Is there a circle?"], Sampling(max_new_tokens=4))
    assert caption.text and answer.text
    with pytest.raises(ConfigError, match="nothing to answer"):
        next(chat(tiny, [], [" "], Sampling()))


def test_draws_follow_the_seed_and_pieces_add_up(tiny: Local, picture: Path) -> None:
    wild = Sampling(max_new_tokens=24, temperature=3.0, min_p=0.001, seed=5)
    pieces: list[str] = []
    (first,) = chat(tiny, [picture], ["Describe the picture."], wild, stream=pieces.append)
    (second,) = chat(tiny, [picture], ["Describe the picture."], wild)
    assert first.text == second.text == "".join(pieces).strip()
    others = {
        next(chat(tiny, [picture], ["Describe the picture."], Sampling(24, 3.0, 1.0, 0, 0.001, seed))).text
        for seed in range(4)
    }
    assert len(others) > 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens is at least 1, got 0"),
        ({"temperature": -1.0}, "--temperature is -1, expected from 0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"top_p": 0.0, "temperature": 1.0}, "--top-p is 0, expected from 0.001 to 1"),
        ({"min_p": 0.1}, "give a --temperature above 0"),
    ],
)
def test_numbers_that_cannot_be(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**values)


def test_command_prints_answers_on_stdout_and_figures_beside(picture: Path) -> None:
    arguments = ["generate", "--model", TINY, "--image", str(picture), "--max-new-tokens", "3"]
    result = CliRunner().invoke(main, [*arguments, "--prompt", "Is there a circle?", "--prompt", "And a square?"])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 2 and result.stderr.count("tokens in") == 2
    wanted = CliRunner().invoke(main, [*arguments, "--json"])
    assert wanted.exit_code == 1 and "no JSON object in an answer" in wanted.stderr
    missing = CliRunner().invoke(main, ["generate", "--model", TINY, "--image", "no.png"])
    assert missing.exit_code == 2 and "no image no.png" in missing.output
    typed = CliRunner().invoke(main, [*arguments, "--chat"], input="Is there a circle?\n\n")
    assert typed.exit_code == 0 and len(typed.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Sure:\n```json\n{"a": {"b": 1}}\n```', {"a": {"b": 1}}),
        ('{"a": 1} and {"b": 2}', None),
        ("no braces", None),
        ("} {", None),
        ("{nope}", None),
        (None, None),
        ("[1]", None),
        ("{" * 100_000 + "}" * 100_000, None),
    ],
)
def test_json_is_cut_by_its_outermost_braces(text: str | None, found: object) -> None:
    assert cut_json(text) == found


OBJECTS = st.dictionaries(st.text(), st.integers() | st.text() | st.none())


@given(OBJECTS, st.text(alphabet=st.characters(exclude_characters="{}")))
def test_any_object_comes_back_whatever_stands_around(value: dict[str, object], around: str) -> None:
    assert cut_json(around + json.dumps(value) + around) == value
