from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.data_utils import prepare_multimodal_messages

from vlmdata.errors import ConfigError
from vlmdata.placeholders import llamafactory_fault, parse_rules, trl_fault

PART = st.sampled_from(
    [
        {"type": "text", "text": "Hi"},
        {"type": "text", "text": "a literal <image>"},
        {"type": "image"},
        {"type": "image", "text": None},
        {"type": "image", "image": None},
    ]
)
TURN = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool", "boss"]),
        "content": st.text(max_size=3) | st.lists(PART, max_size=3),
    }
)


@settings(max_examples=300)
@given(st.lists(TURN, max_size=4), st.integers(0, 4))
def test_the_rule_says_what_trl_does(messages: list[dict[str, Any]], images: int) -> None:
    fault = trl_fault(messages, images)
    try:
        prepare_multimodal_messages(messages, images=[object()] * images)
    except ValueError as error:
        assert fault is not None, error
    else:
        assert fault is None


@pytest.mark.parametrize(
    ("messages", "images", "right"),
    [
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}], 1, True),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], 1, False),
        ([{"role": "user", "content": "<image>Hi<image>"}], 2, True),
        ([{"role": "user", "content": "<image>Hi<image>"}], 1, False),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "an <image>"}]}], 1, False),
        ([{"role": "assistant", "content": None}], 0, True),
    ],
)
def test_marks_as_llamafactory_counts_them(messages: list[dict[str, Any]], images: int, right: bool) -> None:
    assert (llamafactory_fault(messages, images) is None) == right


def test_rules_by_name() -> None:
    assert parse_rules("trl, llamafactory") == ("trl", "llamafactory") and parse_rules("none") == ()
    with pytest.raises(ConfigError, match="no placeholder rule named 'x'; valid: llamafactory, trl, or none"):
        parse_rules("trl,x")
