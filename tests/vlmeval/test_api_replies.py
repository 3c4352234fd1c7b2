"""What is in a server's reply: an answer, probabilities of its first token, or a reason why there is none."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import Loopback, answers, api, item, one, said

from vlmdata.errors import ConfigError
from vlmeval.models import completions, server
from vlmeval.models.completions import NoAnswer
from vlmeval.models.usage import usage


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"<html><title>Sign in</title>", "the reply is not JSON: Sign in (2 attempts)"),
        (b"  ", "the reply is empty (2 attempts)"),
        (b'{"choices": [', 'the reply is not JSON: {"choices": [ (2 attempts)'),
        (json.dumps(said()).encode("utf-16-le")[1:], "the reply is not JSON"),
        (b'{"choices": [{"message": {"content": "caf\xe9"}}]}', "the reply is not JSON"),
        (b"[" * 100_000, "the reply is JSON nested too deeply (2 attempts)"),
        (b"null", "the reply is no completion but null"),
        (b'"Yes"', 'the reply is no completion but "Yes"'),
        ({}, "the reply has no choices: it is an object with nothing in it"),
        ({"choices": []}, "the reply has no choices: it is an object with choices"),
        ({"choices": None, "id": 1}, "the reply has no choices: it is an object with choices, id"),
        ({"choices": [None]}, "the reply has no choices"),
        ({"choices": [{"text": "old completions"}]}, "the reply has no message but null"),
        (said(None), "the message has no text: content is null, finish_reason 'stop'"),
        (said(42), "the message has no text: content is 42"),
        (said({"a": 1}), "the message has no text: content is an object with a"),
        (said([]), "the message has no text: content is a list of 0"),
        (said([{"type": "image_url"}]), "the message has no text: content is a list of 1"),
        (said(None, finish_reason="content_filter"), "the server's content filter stopped the answer"),
        (said("It is", finish_reason="content_filter"), "the server's content filter stopped the answer"),
        (said(None, message={"tool_calls": [{}]}), "the model called a tool and gave no answer"),
        (said("", finish_reason="length", message={"reasoning_content": "hm"}), "went into reasoning"),
        (said(None, finish_reason="length", message={"reasoning": "hm"}), "went into reasoning"),
        (said(error={"message": "engine died"}), "the server broke off: engine died"),
        ({"error": {"message": "overloaded"}}, "HTTP 400: overloaded"),
        ({"error": {"message": "bad", "code": 422}, "choices": []}, "HTTP 422: bad"),
    ],
)
def test_a_reply_without_an_answer(reply: Any, message: str) -> None:
    found = one(reply)
    assert found.text is None and not found.detail
    assert found.error is not None and found.error.startswith(message.split(" (2")[0]) or message in found.error
    assert ("(2 attempts)" in found.error) is ("(2 attempts)" in message or "not JSON" in message)


@pytest.mark.parametrize(
    ("reply", "text", "detail"),
    [
        (said(" Yes. \n"), "Yes.", {}),
        (said(""), "", {}),
        (said("a" * 100_000), "a" * 100_000, {}),
        (said("It is a", finish_reason="length"), "It is a", {"truncated": True}),
        (said([{"type": "text", "text": "It is "}, {"type": "image_url"}, "red", 7]), "It is red", {}),
        (said([{"type": "refusal", "refusal": "I cannot."}]), "I cannot.", {"refusal": True}),
        (said(None, message={"refusal": "I will not."}), "I will not.", {"refusal": True}),
        (said("", message={"refusal": "I will not."}), "I will not.", {"refusal": True}),
        (said("Yes", message={"refusal": None, "reasoning_content": "hm"}), "Yes", {}),
        (said("half \ud83d of a pair"), "half ? of a pair", {}),
        (said("<script>alert(1)</script> \x1b[31m"), "<script>alert(1)</script> \x1b[31m", {}),
        (said() | {"usage": None}, "Yes", {"tokens": None}),
        (said() | {"usage": {"prompt_tokens": -1, "completion_tokens": "7"}}, "Yes", {"tokens": None}),
        (said() | {"error": None}, "Yes", {}),
    ],
)
def test_an_answer(reply: Any, text: str, detail: dict[str, Any]) -> None:
    found = one(reply)
    assert found.error is None and found.text == text
    wanted = {"tokens": {"prompt": 7, "completion": 2}, **detail}
    seconds = found.detail["seconds"]
    assert seconds >= 0
    assert found.detail == {name: value for name, value in wanted.items() if value} | {"seconds": seconds}
    json.dumps([found.text, found.detail], ensure_ascii=False, allow_nan=False).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["choices", "message", "content", "refusal", "finish_reason", "logprobs", "top_logprobs", "token", "logprob"]
NAMES += ["error", "usage", "prompt_tokens", "text", "detail", "msg", "loc", "code", "reasoning", "tool_calls", "model"]
LIKE_A_REPLY = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
)
COMPLETION = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"message": LIKE_A_REPLY, "logprobs": LIKE_A_REPLY}), min_size=1, max_size=2
        )
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON | LIKE_A_REPLY | COMPLETION, st.booleans())
def test_any_reply_is_an_answer_or_a_reason(reply: Any, silent: bool) -> None:
    body = json.dumps(reply).encode()
    try:
        found = completions.read(completions.parse(body), silent=silent)
    except NoAnswer as error:
        reason = str(error)
        assert reason and "\n" not in reason and len(reason) < 400
        reason.encode()
    else:
        assert found.text == found.text.strip()
        chances = completions.probabilities(found.first or (), ("Yes", "No", "yes"))
        assert all(0 <= chance <= 1 for chance in chances.values())
        json.dumps([found.text, chances, dict(found.tokens)], ensure_ascii=False, allow_nan=False).encode()
    message = completions.message_of(reply)
    assert len(message) <= 200 and "\n" not in message
    message.encode()


AT_HAND = server.Server("http://localhost/v1", key_env="", concurrency=1, retries=0, timeout=1.0)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=40) | (JSON | LIKE_A_REPLY).map(lambda reply: json.dumps(reply).encode()), st.integers(200, 599)
)
def test_any_body_of_any_status_is_a_reply_or_a_failure(body: bytes, status: int) -> None:
    try:
        AT_HAND._checked(httpx.Response(status), body)
    except (server.Unanswered, server._Again) as error:
        assert str(error).isprintable() and 0 < len(str(error)) < 300
    else:
        assert status < 300


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_a_reason(body: bytes) -> None:
    try:
        completions.parse(body)
    except NoAnswer as error:
        assert str(error).isprintable() and len(str(error)) < 300


def likely(*pairs: tuple[str, float], taken: str = "Yes") -> dict[str, Any]:
    top = [{"token": token, "logprob": math.log(chance), "bytes": None} for token, chance in pairs]
    content = [{"token": taken, "logprob": math.log(0.5), "top_logprobs": top}, {"token": "x", "top_logprobs": []}]
    return said(taken, finish_reason="length", logprobs={"content": content})


SPELLED = likely(("Yes", 0.3), (" no", 0.2), ("\u0120NO", 0.1), ("\u2581yes", 0.1), ("Yesterday", 0.2), taken=" Yes")


def test_logits_decide_items_with_choices() -> None:
    with Loopback(lambda body, number: SPELLED if "logprobs" in body else said("A text.")) as there:
        model = api(there, answers="logits")
        short, long = answers(model, [item(1, choices=("Yes", "No")), item(2, "Describe it.", kind="text")])
    asked = next(body for body in there.asked[1:] if "logprobs" in body)
    assert (asked["logprobs"], asked["top_logprobs"], asked["max_tokens"]) == (True, 20, 1)
    # " Yes" was taken with 0.5 and is not among the likeliest that the server lists: it counts all the same.
    assert short.text == "Yes" and short.detail["probabilities"] == pytest.approx({"Yes": 0.9, "No": 0.3})
    assert "truncated" not in short.detail and "not_among_likeliest" not in short.detail
    assert long.text == "A text." and "probabilities" not in long.detail
    assert model.describe()["top_logprobs"] == 20 and model.describe()["answers"] == "logits"


def test_both_keeps_the_text_and_tells_the_probabilities() -> None:
    reply = likely(("Yes", 0.2), ("No", 0.7), taken="Yes")
    reply["choices"][0]["message"]["content"] = "Yes, it is"
    with Loopback(lambda body, number: reply) as there:
        (found,) = answers(api(there, answers="both"), [item(choices=("Yes", "No"))])
    assert there.asked[1]["max_tokens"] == 16
    assert found.text == "Yes, it is" and found.detail["truncated"] is True
    assert found.detail["probabilities"] == pytest.approx({"Yes": 0.2, "No": 0.7})


@pytest.mark.parametrize(
    ("tokens", "words", "found"),
    [
        (["Yes", "yes", " YES", "\nYes", "\u0120yes", "\u2581Yes"], ("Yes", "No"), [6, 0]),
        (["Yesterday", "Not", "Y", "N", "", " ", "\u2581"], ("Yes", "No"), [0, 0]),
        (["No", "None", "Non"], ("No", "None"), [1, 2]),
        (["un", "una", "u", "unable"], ("answerable", "unanswerable"), [0, 2]),
        (["A", "a", "\u0120a", "B"], ("A", "a"), [1, 2]),
        (["left", "Le", "l", "li", "right"], ("left", "lift"), [2, 1]),
    ],
)
def test_spellings_of_a_word(tokens: list[str], words: tuple[str, ...], found: list[int]) -> None:
    first = [(token, math.log(0.01)) for token in tokens]
    chances = completions.probabilities(first, words)
    assert list(chances.values()) == pytest.approx([0.01 * count for count in found])


def test_words_that_are_not_among_the_likeliest() -> None:
    known, none = likely(("Yes", 0.9)), likely(("The", 0.6), ("A", 0.3), taken="The")
    with Loopback(lambda body, number: none if "question 1" in str(body) else known) as there:
        items = [item(number, f"question {number}", choices=("Yes", "No")) for number in range(2)]
        found = answers(api(there, answers="logits"), items)
    assert [one.text for one in found] == ["Yes", "The"]
    assert [one.detail["not_among_likeliest"] for one in found] == [["No"], ["Yes", "No"]]
    assert found[1].detail["probabilities"] == {"Yes": 0.0, "No": 0.0}
    assert usage(found)["not_among_likeliest"] == 2


def test_logits_need_no_text() -> None:
    reply = likely(("Yes", 0.2), ("No", 0.7), taken="No")
    reply["choices"][0]["message"]["content"] = None
    with Loopback(lambda body, number: reply) as there:
        (found,) = answers(api(there, answers="logits"), [item(choices=("Yes", "No"))])
    assert found.text == "No"


@pytest.mark.parametrize("mode", ["logits", "both"])
def test_a_server_without_logprobs_is_found_out_at_once(mode: str) -> None:
    with Loopback(lambda body, number: said()) as there, pytest.raises(ConfigError, match="gives no logprobs.*vLLM"):
        answers(api(there, answers=mode), [item(choices=("Yes", "No"))])
    assert len(there.asked) == 1
    refusal = (400, {"error": "logprobs is not supported"})
    with (
        Loopback(lambda body, number: refusal) as there,
        pytest.raises(ConfigError, match="with logprobs.*not supported"),
    ):
        api(there, answers=mode).load()


def test_a_reply_that_has_none_is_an_items_failure() -> None:
    with Loopback(lambda body, number: SPELLED if number == 0 else said("Yes")) as there:
        (found,) = answers(api(there, answers="both"), [item(choices=("Yes", "No"))])
    assert found.error == "the reply has no logprobs"


def test_ranking_whole_answers_is_refused_before_anything_is_asked() -> None:
    with Loopback(lambda body, number: said()) as there:
        with pytest.raises(ConfigError, match="item 2 ranks whole answers.*--model"):
            api(there).answer([item(1), item(2, kind="choice", choices=("a", "b"))])
    assert not there.seen


OPENAI = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
COLD = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
FORBIDDEN = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}


def test_parameters_are_learnt_from_refusals_once() -> None:
    def picky(body: dict[str, Any], number: int) -> Any:
        if "max_tokens" in body:
            return 400, {"error": {"message": OPENAI}}
        if "temperature" in body:
            return 400, {"error": {"message": COLD}}
        if "seed" in body:
            return 422, FORBIDDEN
        if body.get("top_logprobs", 0) > 5:
            return 400, {"error": "Requested sample logprobs of 20, which is greater than max allowed: 5"}
        return SPELLED

    with Loopback(picky) as there:
        model = api(there, answers="logits")
        found = answers(model, [item(number, choices=("Yes", "No")) for number in range(3)])
    assert [one.text for one in found] == ["Yes"] * 3 and len(there.asked) == 6 + 3
    assert there.asked[-1].keys() == {"model", "messages", "max_completion_tokens", "logprobs", "top_logprobs"}
    known = model.describe()
    assert known["decoding"] != "greedy" and known["seed"] is None and known["top_logprobs"] == 5


def test_a_refusal_that_is_about_something_else_is_not_learnt_from() -> None:
    too_long = (400, {"error": "max_tokens is too large: 16. This model's context is 4 tokens."})
    with Loopback(lambda body, number: too_long) as there, pytest.raises(ConfigError, match="context is 4 tokens"):
        api(there).load()
    assert len(there.asked) == 1
