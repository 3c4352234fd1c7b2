"""Where the assistant speaks, under templates of all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest

from vlmdata.errors import ConfigError, DataError
from vlmtrain.chat import add_special_tokens, end_token, has_image_mark, render, render_prompt
from vlmtrain.collate import Collator
from vlmtrain.model import load

TURNS = [rows.user("Hi."), rows.assistant("Hello you."), rows.user("Bye."), rows.assistant("So long.")]


@pytest.fixture
def processor(base: Path) -> Any:
    return load(str(base), device="cpu").processor


def answers(processor: Any, messages: list[Any]) -> list[str]:
    rendered = render(processor, messages)
    return [rendered.text[start:stop] for start, stop in rendered.answers]


# As published with llava-hf/llava-1.5-7b-hf: no end token anywhere, and a space after the prompt's colon.
ENDLESS = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>\n' }}{{ ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Answers are trimmed, a BOS is written, and turns end with different tokens.
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'][0]['text'] | trim }}"
    "{{ '</s>' if m['role'] == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# The generation prompt opens a thought that finished turns do not have.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'][0]['text'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_end_tokens_are_added_where_the_template_has_none(processor: Any) -> None:
    processor.chat_template = ENDLESS
    assert answers(processor, TURNS) == [" Hello you.<|im_end|>", " So long.<|im_end|>"]
    assert render(processor, TURNS).text == (
        "USER: Hi. ASSISTANT: Hello you.<|im_end|> USER: Bye. ASSISTANT: So long.<|im_end|> "
    )
    assert render_prompt(processor, TURNS[:3]) == "USER: Hi. ASSISTANT: Hello you.<|im_end|> USER: Bye. ASSISTANT:"
    assert end_token(processor) == "<|im_end|>"


def test_trimmed_answers_and_their_own_end_token(processor: Any) -> None:
    processor.chat_template = TRIMMED
    turns = [*TURNS[:3], rows.assistant("  So long. \n")]
    assert answers(processor, turns) == ["Hello you.</s>", "So long.</s>"]
    assert end_token(processor) == "</s>"
    assert not add_special_tokens(processor, render(processor, turns).text)


def test_a_generation_prompt_that_training_turns_do_not_have(processor: Any) -> None:
    processor.chat_template = THINKING
    assert answers(processor, TURNS) == ["Hello you.<|im_end|>", "So long.<|im_end|>"]
    echo = [rows.user("Hm. Say Hm."), rows.assistant("Hm."), rows.user("So long. Hm."), rows.assistant("So long.")]
    found = render(processor, echo)
    assert answers(processor, echo) == ["Hm.<|im_end|>", "So long.<|im_end|>"]
    assert [found.text[start - 10 : start] for start, _ in found.answers] == ["assistant\n"] * 2


def test_answers_that_repeat_what_stands_before(processor: Any) -> None:
    last = rows.assistant("user\nHi.<|im_start|>")
    turns = [rows.user("Hello you. Hi."), rows.assistant("Hi."), rows.user("Hi."), last]
    assert answers(processor, turns) == ["Hi.<|im_end|>", "user\nHi.<|im_start|><|im_end|>"]


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_answer_is_its_end_token_alone(processor: Any, blank: str) -> None:
    """Never a label on what stands before it: a generation prompt of its own leaves no words to look for."""
    for template in (processor.chat_template, THINKING):
        processor.chat_template = template
        for turns in ([*TURNS[:3], rows.assistant(blank)], [TURNS[0], rows.assistant(blank), *TURNS[2:]]):
            found = [words.strip() for words in answers(processor, turns)]
            said = [turn["content"][0]["text"].strip() for turn in turns if turn["role"] == "assistant"]
            assert found == [words + "<|im_end|>" for words in said]


def test_the_token_that_begins_the_next_turn_ends_none(processor: Any) -> None:
    processor.chat_template = (
        "{% for m in messages %}{{ bos_token if m['role'] == 'user' }}{{ m['role'] }}: "
        "{{ m['content'][0]['text'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert answers(processor, TURNS) == ["Hello you.<|im_end|>", "So long.<|im_end|>"]
    assert render(processor, TURNS).text.count("<s>") == 2


def test_an_answer_in_several_parts(processor: Any) -> None:
    parts = [rows.text("One,"), rows.text(" "), rows.text(" two.")]
    assert answers(processor, [rows.user("Hi."), {"role": "assistant", "content": parts}]) == ["One,  two.<|im_end|>"]


def test_an_assistant_that_speaks_first_or_twice(processor: Any) -> None:
    turns = [rows.assistant("First."), rows.assistant("Again."), rows.user("Hm."), rows.assistant("Last.")]
    assert answers(processor, turns) == ["First.<|im_end|>", "Again.<|im_end|>", "Last.<|im_end|>"]


def test_a_template_that_rewrites_answers_is_refused(processor: Any) -> None:
    processor.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] | upper }}{% endfor %}"
    with pytest.raises(DataError, match="rewrites the answer of turn 1: 'Hello you.' is not in its text"):
        render(processor, TURNS)
    processor.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(DataError, match="the chat template refuses the conversation: no system turns here"):
        render(processor, TURNS)
    processor.chat_template = None
    with pytest.raises(ConfigError, match="LlavaProcessor has no chat template"):
        render(processor, TURNS)


def test_image_marks_in_texts(processor: Any) -> None:
    assert has_image_mark(processor, [rows.user("an <image> here")])
    assert not has_image_mark(processor, [rows.user(rows.PLACE, "an image here")])


def test_labels_under_each_template(base: Path, processor: Any) -> None:
    family = load(str(base), device="cpu").family
    shown = [rows.user(rows.PLACE, "What?"), rows.assistant("Red.")]
    shown += [rows.user("And ", rows.PLACE), rows.assistant("Blue.")]
    images = [{"bytes": rows.picture("red")}, {"bytes": rows.picture("blue")}]
    for template, said in ((ENDLESS, " Red.<|im_end|> Blue.<|im_end|>"), (None, "Red.<|im_end|>Blue.<|im_end|>")):
        processor.chat_template = template or processor.chat_template
        if template is None:
            processor = load(str(base), device="cpu").processor
        batch = Collator(processor, family)([{"id": "a", "messages": shown, "images": images}])
        assert processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0]) == said
