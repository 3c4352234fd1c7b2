"""Every way a server can fail, over real sockets: what is tried again, what is an item's fault, what ends a run."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import loopback
import pytest
from loopback import Loopback, answers, api, item, one, questions, said

from vlmdata.errors import ConfigError
from vlmeval.models import server
from vlmeval.models.usage import usage
from vlmeval.task import Response

SECRET = "sk-very-secret-1234"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with Loopback(lambda body, number: (status, {"error": "later"}) if number in (1, 2) else said("No")) as there:
        (found,) = answers(api(there, retries=2), [item()])
    assert found.text == "No" and found.detail["attempts"] == 3 and found.error is None
    assert usage([found])["repeated"] == 2


@pytest.mark.parametrize("trouble", [loopback.slam, loopback.cut, b"<html>busy", b"", (200, {"error": {"code": 502}})])
def test_so_are_broken_replies(trouble: Any) -> None:
    with Loopback(lambda body, number: trouble if number == 1 else said("No")) as there:
        (found,) = answers(api(there, retries=1), [item()])
    assert found.text == "No" and len(there.asked) == 3


@pytest.mark.parametrize("status", [400, 413, 415, 422, 418])
def test_what_is_refused_is_not_tried_again_and_the_run_goes_on(status: int) -> None:
    refusal = (status, {"error": {"message": "no\n such <b>picture</b> " + "x" * 500}})
    with Loopback(lambda body, number: refusal if "question 1" in str(body) else said()) as there:
        found = answers(api(there, retries=3), questions(3))
    assert [one.text for one in found] == ["Yes", None, "Yes"] and len(there.asked) == 4
    assert found[1].error is not None and found[1].error.startswith(f"HTTP {status}: no such <b>picture</b> xxx")
    assert len(found[1].error) <= 210 and found[1].error.endswith("...")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "of OpenAI"}}, "of OpenAI"),
        ({"error": "a text"}, "a text"),
        ({"detail": "of FastAPI"}, "of FastAPI"),
        ({"detail": [{"loc": ["body", "model"], "msg": "Field required"}]}, "body.model: Field required"),
        ({"object": "error", "message": "of old vLLM", "code": 400}, "of old vLLM"),
        (b"<html><head><title>413 Too\nLarge</title></head><body>...", "413 Too Large"),
        (b"plain\x00 \xff text", "plain\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER} text"),
        (b"", "nothing said"),
        ({"error": {"message": None}}, '{"error": {"message": null}}'),
    ],
)
def test_what_a_refusal_says(body: Any, message: str) -> None:
    assert one((400, body)).error == f"HTTP 400: {message}"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}),
            "refuses the key in OPENAI_API_KEY: HTTP 401",
        ),
        ((403, b"forbidden"), "refuses the key in OPENAI_API_KEY: HTTP 403: forbidden"),
        ((404, {"error": {"message": "The model `m` does not exist."}}), "with model 'm': HTTP 404: The model `m`"),
        ((405, b"POST is not allowed"), "405"),
        ((302, b"", {"Location": "https://elsewhere/v1"}), "HTTP 302: https://elsewhere/v1"),
        ((402, {"error": "pay"}), "HTTP 402: pay"),
        ((429, {"error": {"code": "insufficient_quota", "message": "quota exceeded"}}), "HTTP 429: quota exceeded"),
    ],
)
def test_what_no_question_will_survive_ends_the_run(answer: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with Loopback(lambda body, number: said() if number < 3 else answer) as there:
        kept: list[Response] = []
        with pytest.raises(ConfigError) as caught:
            for batch in api(there, concurrency=1).answer(questions(9)):
                kept += batch
    line = str(caught.value)
    assert message in line and "\n" not in line and SECRET not in line and "--resume" in line
    assert [one.text for one in kept] == ["Yes", "Yes"] and len(there.asked) == 4


def test_a_wrong_name_ends_it_before_anything_is_asked() -> None:
    gone = (404, {"error": {"message": "no such model"}})
    with Loopback(lambda body, number: gone, {"data": [{"id": "this"}, {"id": "that"}]}) as there:
        with pytest.raises(ConfigError, match="HTTP 404: no such model; it lists that, this"):
            api(there, model="other").load()
    pinned = (400, {"detail": "Server is pinned to 'x'; requested 'm'."})
    with Loopback(lambda body, number: pinned) as there, pytest.raises(ConfigError, match="pinned to 'x'"):
        api(there).load()


def test_a_missing_key_ends_it_before_anything_is_asked() -> None:
    refusal = (401, {"error": "who are you"})
    with Loopback(lambda body, number: refusal, refusal) as there:
        for model in ("m", None):
            with pytest.raises(ConfigError, match="wants a key, and OPENAI_API_KEY is not set: HTTP 401: who are you"):
                api(there, model=model).load()
    assert len(there.asked) == 1


def test_a_key_that_may_ask_and_not_list_will_do() -> None:
    with Loopback(lambda body, number: said(), (403, {"error": "Missing scopes: api.model.read"})) as there:
        assert answers(api(there), [item()])[0].text == "Yes"


def test_packed_replies_are_unpacked_and_broken_ones_told(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = (200, gzip.compress(json.dumps(said("No")).encode()), {"Content-Encoding": "gzip"})
    assert one(packed).text == "No"
    broken = one((200, b"no gzip", {"Content-Encoding": "gzip"}))
    assert broken.error is not None and broken.error.startswith("the reply cannot be unpacked: ")
    monkeypatch.setattr(server, "_MOST_BYTES", 1 << 20)
    assert one(b" " * (3 << 20)).error == "the reply is longer than 1 MiB (2 attempts)"
    assert one((204, b"")).error == "the reply is empty (2 attempts)"


def test_a_key_is_not_shown_where_a_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for trouble in ((400, b"x" * 190 + SECRET.encode()), b"<html>" + b"x" * 180 + SECRET.encode(), SECRET.encode()):
        with Loopback(lambda body, number, trouble=trouble: said() if number == 0 else trouble) as there:
            (found,) = answers(api(there, retries=0), [item()])
        assert found.error is not None and "sk-" not in found.error
    # What the model says is not touched, even where it is the key of a server that wants none.
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    with Loopback(lambda body, number: said("It is EMPTY.")) as there:
        assert answers(api(there), [item()])[0].text == "It is EMPTY."


def test_a_question_with_half_a_surrogate_pair_can_be_asked() -> None:
    with Loopback(lambda body, number: said()) as there:
        (found,) = answers(api(there), [item(1, "Is this \ud83d odd?")])
    assert found.text == "Yes" and there.asked[1]["messages"][0]["content"] == "Is this \ud83d odd?"


def test_nobody_is_there() -> None:
    with Loopback(lambda body, number: said()) as there:
        pass
    with pytest.raises(ConfigError, match=r"no server answers at \S+/v1: no connection: ConnectError.*running"):
        api(there).load()


def test_a_server_that_loads_its_model_is_waited_for() -> None:
    lists = iter([(503, {"error": "Loading model"}), (503, b""), {"data": [{"id": "late"}]}])
    with Loopback(lambda body, number: said(), lambda: next(lists)) as there:
        model = api(there, model=None)
        model.load()
    assert model.name == "late"


def test_it_is_no_api() -> None:
    with Loopback(lambda body, number: {"hello": "world"}, b"<html>") as there:
        with pytest.raises(ConfigError, match="is no OpenAI-compatible server: the reply has no choices"):
            api(there).load()


@pytest.mark.parametrize("wait", [loopback.hang, loopback.drip])
def test_a_server_that_hangs_is_cut_off(wait: Any) -> None:
    with Loopback(lambda body, number: wait if "question 1" in str(body) else said()) as there:
        found = answers(api(there, retries=1, timeout=0.4), questions(3))
    assert [one.text for one in found] == ["Yes", None, "Yes"]
    assert found[1].error == "no reply within 0.4 s (2 attempts)"


def test_a_server_that_dies_ends_the_run_and_keeps_its_answers() -> None:
    there = Loopback(lambda body, number: said() if number <= 20 else loopback.slam)
    kept: list[Response] = []
    with pytest.raises(ConfigError, match=r"is gone: \d+ questions in a row.*ConnectError.*--resume"):
        for batch in api(there, retries=1, concurrency=2).answer(questions(60)):
            kept += batch
            if sum(one.error is None for one in kept) >= 10 and there:
                there.close()
    told = [one for one in kept if one.error is None]
    assert 10 <= len(told) <= 20
    assert len(kept) - len(told) <= 8 + 2


def test_failures_in_a_row_are_no_end_while_the_server_is_there() -> None:
    with Loopback(lambda body, number: (504, b"slow") if 1 <= number <= 20 else said()) as there:
        found = answers(api(there, retries=0, concurrency=2), questions(30))
    assert sum(one.error is not None for one in found) == 20 and len(found) == 30


def test_failures_among_answers_are_not_in_a_row() -> None:
    lists = iter([{"data": [{"id": "m"}]}])
    respond = {True: (504, b"slow"), False: said()}
    with Loopback(lambda body, number: respond[number % 2 == 1], lambda: next(lists, (504, b"slow"))) as there:
        found = answers(api(there, retries=0, concurrency=1), questions(40))
    assert sum(one.error is not None for one in found) == 20


def test_a_connection_that_the_server_let_go_of_is_no_failure() -> None:
    with Loopback(lambda body, number: loopback.slam if number in (1, 3) else said()) as there:
        found = answers(api(there, retries=0, concurrency=1), questions(3))
    assert [one.text for one in found] == ["Yes"] * 3 and len(there.asked) == 6
    assert not any("attempts" in one.detail for one in found)
    with Loopback(lambda body, number: said() if number == 0 else loopback.slam) as there:
        (one,) = answers(api(there, retries=1), [item()])
    assert one.error is not None and one.error.endswith("(2 attempts)") and len(there.asked) == 1 + 2 * 2


def test_a_server_that_refuses_everything_is_not_asked_everything() -> None:
    with Loopback(lambda body, number: said() if number == 0 else (400, {"error": "too long"})) as there:
        with pytest.raises(
            ConfigError, match="answers nothing: the first 32 questions failed, the last: HTTP 400: too long"
        ):
            answers(api(there, concurrency=4), questions(500))
        assert len(there.asked) < 50
        there.asked.clear()
        # One was answered in an earlier run, so the server answers, and what is left is the items' own fault.
        left = answers(api(there, concurrency=4), questions(60), {0})
    assert len(left) == 59 and {one.error for one in left} == {"HTTP 400: too long"}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are asked for; none is made."""
    seen: list[float] = []
    really = asyncio.sleep

    async def sleep(seconds: float) -> None:
        seen.append(seconds)
        await really(0)

    monkeypatch.setattr(server.asyncio, "sleep", sleep)
    return seen


def test_retry_after_is_obeyed_within_reason(slept: list[float]) -> None:
    wishes = {1: "7", 2: "Wed, 21 Oct 2015 07:28:00 GMT", 3: "1e9", 4: "soon", 5: "nan"}
    with Loopback(lambda body, n: (429, {}, {"Retry-After": wishes[n]}) if n in wishes else said()) as there:
        (found,) = answers(api(there, retries=9), [item()])
    assert found.text == "Yes" and found.detail["attempts"] == 6
    pauses = [seconds for seconds in slept if seconds > 0]
    assert 7 in pauses and server.LONGEST_WISH in pauses
    assert max(pauses) == server.LONGEST_WISH


def test_who_is_told_to_wait_asks_nothing_else_meanwhile(slept: list[float]) -> None:
    with Loopback(lambda body, n: (503, {}, {"Retry-After": "70"}) if n == 1 else said()) as there:
        assert [one.text for one in answers(api(there, concurrency=1), questions(3))] == ["Yes"] * 3
    # The question itself, its new attempt, and the two questions after it.
    assert len([seconds for seconds in slept if 60 < seconds <= 70]) == 4


def test_pauses_grow_and_end(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PAUSE", 1.0)
    with Loopback(lambda body, n: said() if n == 0 else (500, {})) as there:
        (found,) = answers(api(there, retries=8), [item()])
    pauses = [seconds for seconds in slept if seconds > 0]
    assert found.error == "HTTP 500: {} (9 attempts)" and len(pauses) == 8
    for pause, most in zip(pauses, (1, 2, 4, 8, 16, 32, 60, 60), strict=True):
        assert most / 2 <= pause <= most
