from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from scripted import Scripted

from vlmdata.errors import ConfigError
from vlmeval import job, opening
from vlmeval import task as tasks
from vlmeval.cli import main
from vlmeval.opening import KEYS, Who
from vlmeval.run import evaluate
from vlmeval.task import Item

HEADINGS = ["What is asked:", "Who answers:", "How it runs:", "What is written:"]


def vlmeval(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scripted:
    monkeypatch.chdir(tmp_path)
    found = Scripted()
    monkeypatch.setattr(opening.Who, "open", lambda who, images: found)
    return found


def test_the_list_of_commands_tells_what_each_does_to_the_end() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert all(f"\n  {name} " in shown for name in (*tasks.names(), "compare", "generate", "noise", "score"))
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize("name", tasks.names())
def test_help_has_headings_and_only_what_has_an_effect(name: str) -> None:
    task = tasks.load(name)
    shown = vlmeval(name, "--help").output
    places = [shown.index(heading) for heading in HEADINGS]
    assert places == sorted(places)
    assert max(map(len, shown.splitlines())) <= 80
    assert ("--answers " in shown) == task.choices
    assert ("--images " in shown) == ("--on-missing " in shown) == task.images
    assert all(
        f" {key.flag or key_name} " in " ".join(shown.replace("(", " ").split()) for key_name, key in KEYS.items()
    )
    command = main.get_command(click.Context(main), name)
    assert command is not None
    data = next(option for option in command.params if option.name == "data")
    assert data.required == (task.fetch is None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sets": {"concurency": 4}}, "--set concurency: no such key; valid: concurrency, device_map, key_env"),
        ({"sets": {"concurrency": 4}}, "--set concurrency has an effect only with --endpoint"),
        ({"sets": {"device_map": "auto"}, "endpoint": "http://h"}, "device_map has an effect only for a model loaded"),
        ({"sets": {"concurrency": "0"}, "endpoint": "h"}, "--set concurrency=0: expected a whole number from 1"),
        ({"sets": {"retries": "-1"}, "endpoint": "h"}, "--set retries=-1: expected a whole number from 0"),
        ({"sets": {"timeout": "soon"}, "endpoint": "h"}, "--set timeout=soon: expected seconds"),
        ({"sets": {"timeout": "inf"}, "endpoint": "h"}, "--set timeout=inf: expected seconds"),
        ({"sets": {"max_image_side": "big"}, "endpoint": "h"}, "--set max_image_side=big: expected pixels"),
        ({"model": "m", "sets": {"verify_prefix": "-1"}}, "--verify-prefix -1: expected a whole number from 0"),
        ({"endpoint": "h", "batch_size": 4}, "--batch-size is for a model loaded here and has no effect with --endp"),
        ({"endpoint": "h", "adapter": "a"}, "--adapter is for a model loaded here and has no effect with --endpoint"),
        ({"endpoint": "h", "quantize": "4bit"}, "--quantize is for a model loaded here"),
        ({"endpoint": "h", "trust_remote_code": True}, "--trust-remote-code is for a model loaded here"),
        ({"model": "m", "merged": True}, "--merged merges an adapter into its base before asking: give --adapter"),
        ({"model": "m", "answers": "guess"}, "--answers is 'guess'; valid: both, generate, logits"),
    ],
)
def test_options_of_models_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Who(**options).check()
    assert said in str(caught.value)


def test_keys_reach_the_model_they_are_for(world: Path) -> None:
    given = {"concurrency": "3", "retries": "0", "timeout": "2.5", "key_env": "NOBODY_HAS", "max_image_side": "64"}
    api: Any = Who(model="m", endpoint="http://127.0.0.1:9", prompt_suffix="Yes or no?", sets=given).open(
        world / "images"
    )
    known = api.describe() | api.environment()
    assert (known["concurrency"], known["retries"], known["timeout"], known["max_image_side"]) == (3, 0, 2.5, 64)
    assert known["prompt_suffix"] == "Yes or no?" and known["max_new_tokens"] == {"answer": 16, "text": 256}
    local: Any = Who(model="vlmtrain:tiny", answers="both", batch_size=3, dtype="bfloat16").open(world / "images")
    assert (local.answers, local.batch_size, local.options["dtype"]) == ("both", 3, "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--responses", "r.json", "--batch-size", "4"], "--batch-size is for asking a model and has no effect with"),
        (["--responses", "r.json", "--answers", "logits"], "--answers is for asking a model"),
        (["--responses", "r.json", "--on-missing", "skip"], "--on-missing is for asking a model"),
        (["--responses", "r.json", "--set", "timeout=4"], "--set is for asking a model"),
        (["--responses", "r.json", "--verify-prefix", "3"], "--verify-prefix is for asking a model and has no effect"),
        (["--model", "m", "--out", "e", "--verify-prefix", "x"], "--verify-prefix x: expected a whole number from 0"),
        (
            ["--model", "m", "--out", "e", "--verify-prefix", "3", "--set", "verify-prefix=4"],
            "--verify-prefix 3 and --set verify_prefix=4 are the same option: give one of them",
        ),
        (["--responses", "r.json", "--endpoint", "http://h"], "both a responses file and a model are given"),
        (["--model", "m", "--out", "e", "--set", "timeout"], "--set 'timeout': expected KEY=VALUE"),
        (["--model", "m", "--out", "e", "--set", "a=1", "--set", "a=2"], "--set a is given twice: '1' and '2'"),
        (["--model", "m", "--out", "e", "--fail-under", "f1"], "limit 'f1' is not understood"),
        (["--model", "m", "--out", "e", "--fail-under", "bleu=1"], "amber has no metric 'bleu'; valid: "),
        (["--model", "m", "--out", "e", "--junit", "no/x.xml"], "--junit no/x.xml: there is no folder no"),
        (["--model", "m", "--out", "e", "--csv", "there.csv"], "--csv there.csv exists: give another, or replace it"),
    ],
)
def test_what_has_no_effect_is_refused_before_anything(
    world: Path, tmp_path: Path, model: Scripted, arguments: list[str], said: str
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    result = vlmeval("amber", "--data", world, *arguments)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not (tmp_path / "e").exists() and not model.loads and (tmp_path / "there.csv").read_text() == "mine"


def test_a_limit_that_is_not_kept_ends_with_status_1(world: Path, tmp_path: Path, model: Scripted) -> None:
    arguments = ["amber", "--data", world, "--model", "m", "--out", "e", "--junit", "x.xml", "--csv", "x.csv"]
    result = vlmeval(*arguments, "--fail-under", "existence.accuracy=0.9", "--fail-under", "f1=0.95")
    assert result.exit_code == 1 and result.stderr.count("vlmeval: limit not kept: discriminative.f1 is ") == 1
    assert "existence" not in result.stderr and (tmp_path / "e" / "report.html").is_file()
    assert 'failures="1"' in (tmp_path / "x.xml").read_text() and (tmp_path / "x.csv").is_file()
    assert vlmeval(*arguments, "--fail-over", "hal=100", "--resume").exit_code == 0 and model.loads == 1


def test_the_record_holds_all_that_is_needed(world: Path, tmp_path: Path, model: Scripted) -> None:
    import hashlib
    import platform

    address = "https://me:secret@host/v1"
    result = vlmeval("amber", "--data", world, "--model", address, "--out", "e", "--prompt-suffix", "Yes or no?")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "e" / "run.json").read_text())
    assert "secret" not in json.dumps(record) and "--model https://host/v1 --out e" in record["command"]
    assert record["task"] == "amber" and record["data"]["path"] == str(world)
    assert (
        record["data"]["files"]["annotations.json"]
        == hashlib.sha256((world / "annotations.json").read_bytes()).hexdigest()
    )
    picture = (world / "images" / "AMBER_1.png").read_bytes()
    assert record["images"]["files"]["AMBER_1.png"] == hashlib.sha256(picture).hexdigest()[:16]
    assert record["system"]["python"] == platform.python_version() and record["timed"]["answers"] == 44
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert "files" not in report["run"]["images"] and report["run"]["images"]["sha256"] == record["images"]["sha256"]
    del record["images"], report["run"]["images"]
    assert report["run"] == record


def test_questions_are_told_apart_by_all_that_is_asked() -> None:
    plain = Item(1, "Is it?", ("a.png",), "no", ("g",), choices=("Yes", "No"))
    others = [
        Item(2, "Is it?", ("a.png",), "no", ("g",), choices=("Yes", "No")),
        Item(1, "Is it so?", ("a.png",), "no", ("g",), choices=("Yes", "No")),
        Item(1, "Is it?", ("b.png",), "no", ("g",), choices=("Yes", "No")),
        Item(1, "Is it?", ("a.png",), "no", ("g",), choices=("Ja", "Nein")),
        Item(1, "Is it?", ("a.png",), "no", ("g",), "text", choices=("Yes", "No")),
        Item(1, "Is it?", ("a.png",), "no", ("g",), turns=({"role": "user", "content": []},), choices=("Yes", "No")),
    ]
    assert len({job.questions_sha256([item]) for item in [plain, *others]}) == 7
    same = Item(1, "Is it?", ("a.png",), "yes", ("h",), choices=("Yes", "No"), facets={"object": "dog"})
    assert job.questions_sha256([plain]) == job.questions_sha256([same]), "the truth is not asked"


def test_a_larger_limit_holds_the_smaller(world: Path, model: Scripted) -> None:
    items = [Item(number, "?", (), "no", ("g",)) for number in range(200)]
    chosen = [{item.id for item in job.limited(items, limit)} for limit in (1, 20, 50, 200)]
    assert [len(ids) for ids in chosen] == [1, 20, 50, 200] and chosen[0] < chosen[1] < chosen[2] < chosen[3]
    evaluate("amber", data=world, model="m", out="e", quiet=True, limit=10)
    report = evaluate("amber", data=world, model="m", out="e", quiet=True, limit=25, resume=True)
    assert report["headline"] == "PARTIAL 25/44" and sum(map(len, model.asked)) == 25
    assert report["run"]["limit"] == 25 and report["run"]["timed"]["answers"] == 25


class _Served(BaseHTTPRequestHandler):
    """Says No to everything, as an OpenAI-compatible server does."""

    asked: list[Any] = []  # noqa: RUF012  # of the one server of these tests

    def do_GET(self) -> None:  # noqa: N802
        self._send({"object": "list", "data": [{"id": "served", "object": "model"}]})

    def do_POST(self) -> None:  # noqa: N802
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        message = {"role": "assistant", "content": "No"}
        self._send({"model": "served", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def _send(self, value: dict[str, Any]) -> None:
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Served)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_is_asked(world: Path, tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["amber", "--data", world, "--endpoint", endpoint, "--model", "served", "--out", "e", "--part", "relation"]
    result = vlmeval(*asked, "--set", "concurrency=2", "--prompt-suffix", "Yes or no?")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    answers = report["protocol"]["answers"]
    assert (answers["kind"], answers["model"], answers["concurrency"]) == ("api", "served", 2)
    assert report["rates"]["relation"]["yes_rate"]["value"] == 0
    assert len((tmp_path / "e" / "responses.jsonl").read_text().splitlines()) == 8
    sent = json.dumps(_Served.asked[-1])
    assert "Yes or no?" in sent and "data:image/png;base64," in sent
    count = len(_Served.asked)
    assert vlmeval(*asked, "--resume", "--prompt-suffix", "Yes or no?").exit_code == 0
    assert len(_Served.asked) == count, "what is finished is not asked again"
    result = vlmeval(*asked, "--resume", "--prompt-suffix", "Really?")
    assert result.exit_code == 2 and "prompt_suffix was 'Yes or no?', is 'Really?'" in result.stderr
