"""What a server is asked, many questions at once, and what is recorded; over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from loopback import LIMITS, Loopback, answers, api, item, questions, said
from PIL import Image

from vlmdata.errors import ConfigError
from vlmeval.models import flight, server
from vlmeval.models.api import Api
from vlmeval.models.usage import usage
from vlmeval.task import Response

SECRET = "sk-very-secret-1234"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (40, 30), (200, 30, 40)).save(made / "red.jpg")
    Image.new("RGB", (40, 30), (30, 40, 200)).save(made / "blue.png")
    return made


def test_a_question_about_a_picture_as_it_is_sent(folder: Path) -> None:
    with Loopback(lambda body, number: said(" Yes.\n")) as there:
        model = api(there, images=folder, prompt_suffix="Yes or no?")
        both = item(1, images=("red.jpg", "blue.png"))
        found = answers(model, [both, item(2, "Describe it.", ("red.jpg",), kind="text")])
    assert [one.text for one in found] == ["Yes.", "Yes."]
    asked, described = sorted(there.asked[1:], key=lambda body: body["max_tokens"])
    assert (asked["model"], asked["temperature"], asked["seed"]) == ("m", 0, 0)
    assert (asked["max_tokens"], described["max_tokens"]) == (16, 256)
    assert "logprobs" not in asked
    (turn,) = asked["messages"]
    first, second, text = turn["content"]
    assert turn["role"] == "user" and text == {"type": "text", "text": "Is it red?\nYes or no?"}
    for part, name, kind in ((first, "red.jpg", "jpeg"), (second, "blue.png", "png")):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(data) == (folder / name).read_bytes()


def test_a_conversation_keeps_its_turns_and_the_place_of_its_pictures(folder: Path) -> None:
    def turn(role: str, *parts: str) -> dict[str, Any]:
        shown = (
            {"type": "image", "text": None} if part == "<image>" else {"type": "text", "text": part} for part in parts
        )
        return {"role": role, "content": list(shown)}

    turns = (
        turn("system", "Be ", "brief."),
        turn("user", "Look: ", "<image>", "and ", "tell."),
        turn("assistant", "Red."),
        turn("user", "And ", "this?", "<image>"),
    )
    with Loopback(lambda body, number: said("Blue.")) as there:
        model = api(there, images=folder, prompt_suffix="One word.")
        answers(model, [item(1, "", ("red.jpg", "blue.png"), turns=turns)])
    system, first, reply, last = there.asked[1]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part.get("text") for part in first["content"]] == ["Look: ", None, "and tell."]
    assert reply == {"role": "assistant", "content": "Red."}
    assert [part.get("text") for part in last["content"]] == ["And this?", None, "\nOne word."]
    assert "image/jpeg" in first["content"][1]["image_url"]["url"]
    assert "image/png" in last["content"][1]["image_url"]["url"]


def test_the_probe_shows_a_picture_only_where_pictures_will_be_shown(folder: Path) -> None:
    for images, parts in ((folder, list), (None, str)):
        with Loopback(lambda body, number: said()) as there:
            api(there, images=images).load()
        (probe,) = there.asked
        assert type(probe["messages"][0]["content"]) is parts


def test_questions_on_one_image_follow_each_other(folder: Path) -> None:
    items = [item(number, f"q{number}", ("red.jpg" if number % 2 else "blue.png",)) for number in range(6)]
    with Loopback(lambda body, number: said()) as there:
        answers(api(there, images=folder, concurrency=1), items)
    order = [body["messages"][0]["content"][1]["text"] for body in there.asked[1:]]
    assert order == ["q0", "q2", "q4", "q1", "q3", "q5"]


def test_what_is_done_is_not_asked(folder: Path) -> None:
    with Loopback(lambda body, number: said()) as there:
        model = api(there)
        assert [one.id for one in answers(model, questions(5), {0, 3})] == [1, 2, 4]
        assert answers(model, questions(2), {0, 1}) == []
    assert len(there.asked) == 4


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/models"])
def test_the_address_is_taken_with_and_without_v1(tail: str) -> None:
    with Loopback(lambda body, number: said()) as there:
        model = Api(f"http://127.0.0.1:{there.port}{tail}", None, images=None, max_new_tokens=LIMITS)
        model.load()
        assert model.environment()["endpoint"] == there.url
        assert {path for _, path, _ in there.seen} >= {"/v1/chat/completions"}


@pytest.mark.parametrize(
    "address", ["", "localhost:8000", "ftp://x/v1", "http://", "http://[::1", "http://x:99999", 5 * "h"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--endpoint.*http://localhost:8000/v1"):
        Api(address, "m", images=None, max_new_tokens=LIMITS)


@pytest.mark.parametrize(
    ("models", "given", "name"),
    [
        ({"data": [{"id": "only"}]}, None, "only"),
        ([{"id": "only"}], None, "only"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, "b", "b"),
        ({"data": []}, "local/path", "local/path"),
        ((500, b"Internal Server Error"), "x", "x"),
        ((500, b"Internal Server Error", {"Connection": "close"}), "x", "x"),
        ((404, b"no list"), "x", "x"),
        (b"<html>nonsense", "x", "x"),
        ({"data": [7, {"id": None}, {"id": "only"}]}, None, "only"),
    ],
)
def test_the_models_name(models: Any, given: str | None, name: str) -> None:
    with Loopback(lambda body, number: said(), models) as there:
        model = api(there, model=given)
        model.load()
    assert model.name == name and there.asked[0]["model"] == name
    assert model.describe()["model"] == name


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"data": []}, "lists no model: give --model"),
        ({"data": [{"id": "b"}, {"id": "a"}]}, "lists 2 models: give one with --model: a, b"),
        ((404, b""), "lists no model"),
    ],
)
def test_no_model_can_be_chosen(models: Any, message: str) -> None:
    with Loopback(lambda body, number: said(), models) as there, pytest.raises(ConfigError, match=message):
        api(there, model=None).load()
    assert not there.asked


def test_what_the_record_says() -> None:
    known = {"id": "m", "owned_by": "vllm", "root": "org/base", "created": 5}
    reply = said() | {"model": "m-2025", "system_fingerprint": "fp_1"}
    with Loopback(lambda body, number: reply, {"data": [known]}) as there:
        before = api(there).describe()
        model = api(there, max_image_side=512, answers="generate")
        model.load()
        after, around = model.describe(), model.environment()
    assert before.items() <= {**after, "max_image_side": None}.items()
    assert after["kind"] == "api" and after["decoding"] == "greedy" and after["max_image_side"] == 512
    assert (after["reported_model"], after["root"], after["owned_by"]) == ("m-2025", "org/base", "vllm")
    assert "created" not in after and "endpoint" not in after
    assert around["system_fingerprints"] == ["fp_1"] and around["server"] == "loopback/1"
    assert around["versions"].keys() == {"httpx"}
    json.dumps([after, around], allow_nan=False)


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(lambda body, number: said()) as there:
        api(there).load()
        assert all("Authorization" not in headers for _, _, headers in there.seen)
    monkeypatch.setenv("OTHER_KEY", f" {SECRET}\n")
    with Loopback(lambda body, number: said() if number == 0 else (400, f"key {SECRET} is odd".encode())) as there:
        model = api(there, key_env="OTHER_KEY")
        (found,) = answers(model, [item()])
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for _, _, headers in there.seen)
    assert found.error == "HTTP 400: key *** is odd"
    assert SECRET not in json.dumps([model.describe(), model.environment()])


def test_name_password_and_query_of_an_address_are_used_and_never_shown() -> None:
    with Loopback(lambda body, number: said() if number == 0 else (400, b"pa55 is odd")) as there:
        address = there.url.replace("http://", "http://name:pa55@") + "?api-version=7&sig=abc"
        model = Api(address, "m", images=None, max_new_tokens=LIMITS)
        (found,) = answers(model, [item()])
        shown = json.dumps([model.describe(), model.environment(), found.error])
        assert Api(address, None, images=None, max_new_tokens=LIMITS).name == there.url
    assert all(path.endswith("?api-version=7&sig=abc") for _, path, _ in there.seen)
    assert all(headers["Authorization"].startswith("Basic ") for _, _, headers in there.seen)
    assert found.error == "HTTP 400: *** is odd" and "sig" not in shown and "pa55" not in shown


@pytest.mark.parametrize("key", ["two\nlines", "ümlaut", "with space"])
def test_what_is_no_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        Api("http://localhost:1/v1", "m", images=None, max_new_tokens=LIMITS)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": "guess"}, "--answers.*both, generate, logits"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"max_image_side": 0}, "max_image_side"),
        ({"max_new_tokens": {"answer": 0, "text": 9}}, "at least 1 new token"),
    ],
)
def test_numbers_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Api("http://localhost:1/v1", "m", **{"images": None, "max_new_tokens": LIMITS, **options})


def test_as_many_at_a_time_as_wanted_and_no_more() -> None:
    gate = threading.Barrier(4, timeout=5)
    with Loopback(lambda body, number: said() if number == 0 else (gate.wait(), said())[1]) as there:
        assert len(answers(api(there, concurrency=4), questions(40))) == 40
    assert there.most == 4


def test_no_more_is_asked_than_somebody_takes() -> None:
    with Loopback(lambda body, number: said()) as there:
        coming = api(there, concurrency=2).answer(questions(200))
        next(coming)
        for _ in range(100):
            threading.Event().wait(0.005)
        assert len(there.asked) <= 1 + 2 * 4 + 2
        coming.close()


def test_it_works_where_an_event_loop_runs_already() -> None:
    async def notebook(there: Loopback) -> list[Response]:
        return answers(api(there), questions(5))

    with Loopback(lambda body, number: said()) as there:
        assert len(asyncio.run(notebook(there))) == 5


INTERRUPTED = """
import signal, sys
from vlmeval.models.api import Api
from vlmeval.task import Item

items = [Item(number, f"question {number}", (), None, ("all",)) for number in range(200)]
model = Api(sys.argv[1], "m", images=None, max_new_tokens={"answer": 4, "text": 4}, concurrency=4)
kept = []
try:
    for batch in model.answer(items):
        kept += [one.id for one in batch]
        if len(kept) >= 12:
            print("ready", flush=True)
except KeyboardInterrupt:
    print("kept", *kept, flush=True)
"""


def test_an_interruption_ends_it_and_loses_no_answer() -> None:
    ended = threading.Event()

    def hang(handler: Any) -> None:
        ended.wait(60)
        handler.close_connection = True

    with Loopback(lambda body, number: said() if number <= 12 else hang) as there:
        run = subprocess.Popen([sys.executable, "-c", INTERRUPTED, there.url], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
        run.send_signal(2)
        out, _ = run.communicate(timeout=50)  # the requests in flight are not answered before
        ended.set()
    assert run.returncode == 0
    kept = sorted(int(word) for word in out.split()[out.split().index("kept") + 1 :])
    # The first twelve that came were answered; which these are, the four that ask at once decide.
    assert len(kept) == len(set(kept)) == 12 and set(kept) <= set(range(16))


def test_what_came_with_an_interruption_is_given_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(self: Any, batch: list[Response]) -> bool:
        batch.append(Response(7, "Yes"))
        raise KeyboardInterrupt

    monkeypatch.setattr(flight._Flight, "gather", gather)
    with Loopback(lambda body, number: said()) as there:
        coming = api(there).answer(questions(3))
        assert [one.id for one in next(coming)] == [7]
        with pytest.raises(KeyboardInterrupt):
            next(coming)


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Loopback(lambda body, number: said()) as there:
        assert answers(api(there), questions(1))[0].text == "Yes"


def test_sums_of_what_it_took() -> None:
    counted = Response(1, "Yes", {"seconds": 0.5, "tokens": {"prompt": 10, "completion": 2}, "truncated": True})
    silent = Response(2, "No", {"seconds": 1.5, "attempts": 3, "refusal": True})
    assert usage([counted, silent, Response(3, "Yes"), Response(4, None, error="gone")]) == {
        "answers": 2,
        "counted": 1,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "mean_seconds": 1.0,
        "repeated": 2,
        "truncated": 1,
        "refusal": 1,
        "not_among_likeliest": 0,
    }
    assert usage([Response(3, "Yes")]) == {}
