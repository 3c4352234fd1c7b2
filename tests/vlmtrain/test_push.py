"""Pushing to the hub, against a server on this machine that answers as the hub does."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import colour_rows as rows
import huggingface_hub
import pytest
import yaml
from click.testing import CliRunner

from vlmdata.errors import ConfigError, MissingError
from vlmtrain import dpo
from vlmtrain.cli import main
from vlmtrain.hub import check_access, push
from vlmtrain.merge import merge
from vlmtrain.sft import train

WHO = {
    "type": "user",
    "name": "ada",
    "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "library", "roleInOrg": "read"}],
    "auth": {"accessToken": {"role": "write"}},
}


class Hub(BaseHTTPRequestHandler):
    """whoami, create, preupload, LFS and commit; what arrives is kept."""

    who: dict[str, Any] | None = WHO
    files: dict[str, bytes] = {}
    objects: dict[str, bytes] = {}
    created: list[dict[str, Any]] = []
    refuse: str = ""
    asked: list[str] = []

    def do_GET(self) -> None:
        self.seen()
        if self.path.startswith("/api/whoami-v2"):
            self.answer(200, Hub.who) if Hub.who else self.answer(401, {"error": "Invalid credentials"})
        elif Hub.created:
            self.answer(200, {"id": "x/y", "sha": "0" * 40, "siblings": [], "tags": []})
        else:
            self.answer(404, {"error": "Repository not found"})

    def do_POST(self) -> None:
        body = self.seen()
        if Hub.refuse and Hub.refuse in self.path:
            self.answer(403, {"error": "no room left in this name space"})
        elif self.path == "/api/repos/create":
            Hub.created.append(json.loads(body))
            name = f"{json.loads(body).get('organization') or 'ada'}/{json.loads(body)['name']}"
            self.answer(200, {"url": self.address(name), "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = ["lfs" if f.endswith(".safetensors") else "regular" for f in files]
            answers = [
                {"path": f, "uploadMode": m, "shouldIgnore": False, "oid": None}
                for f, m in zip(files, modes, strict=True)
            ]
            self.answer(200, {"files": answers})
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            found = [{**o, "actions": {"upload": {"href": self.address(f"store/{o['oid']}")}}} for o in wanted]
            self.answer(200, {"transfer": "basic", "objects": found})
        elif "/commit/" in self.path:
            self.commit(body)
        else:
            self.answer(404, {})

    def do_PUT(self) -> None:
        Hub.objects[self.path.rpartition("/")[2]] = self.seen()
        self.answer(200, {})

    def commit(self, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                Hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "lfsFile":
                Hub.files[entry["value"]["path"]] = Hub.objects[entry["value"]["oid"]]
        self.answer(200, {"commitUrl": self.address("ada/x/commit/1"), "commitOid": "1" * 40, "pullRequestUrl": None})

    def seen(self) -> bytes:
        Hub.asked.append(self.path.split("?")[0])
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        read = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                read += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return read

    def address(self, path: str) -> str:
        return f"http://{self.headers['Host']}/{path}"

    def answer(self, status: int, body: Any) -> None:
        sent = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Hub.who, Hub.files, Hub.objects, Hub.created, Hub.refuse, Hub.asked = WHO, {}, {}, [], "", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in (("ENDPOINT", address), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up_for_this_test")
    yield address
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "colours", rows.colours(8))


@pytest.fixture(scope="module")
def run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(data, out, model=str(base), max_steps=2, save_steps=1, progress=False).out


def test_a_run_is_pushed_when_it_is_done(hub: str, base: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    options = {"model": str(base), "max_steps": 2, "save_steps": 1, "eval_fraction": 0.3, "push_to_hub": "lab/plates"}
    run = train(data, tmp_path / "run", hub_private=True, **options).out
    assert Hub.created == [{"name": "plates", "organization": "lab", **Hub.created[0]}]
    assert Hub.created[0].get("private") is True or Hub.created[0].get("visibility") == "private"
    here = {
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_file() and path.relative_to(run).parts[0] != "checkpoints"
    }
    assert list((run / "checkpoints").glob("checkpoint-*")), "which stay here"
    assert Hub.files.keys() == here
    for name, content in Hub.files.items():
        assert content == (run / name).read_bytes()
    card = Hub.files["README.md"].decode()
    for said in ("supervised fine-tuning", "colours (8 rows of test)", "Data licence", "eval loss", "vlmtrain.json"):
        assert said in card
    assert f"pushed to {hub}/lab/plates" in capsys.readouterr().err
    # Once a day, at any moment, huggingface_hub also fetches a list that has nothing to do with the run.
    asked = [path for path in Hub.asked if path != "/api/agent-harnesses"]
    assert asked[0] == "/api/whoami-v2"


def test_a_preference_run_by_its_flag(hub: str, base: Path, tmp_path: Path) -> None:
    pairs = rows.write(tmp_path / "pairs", rows.pairs(4))
    words = ["dpo", "--data", str(pairs), "--model", str(base), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    done = CliRunner().invoke(main, [*words, "--push-to-hub", "ada/dpo"])
    assert done.exit_code == 0, done.output
    assert "adapter_model.safetensors" in Hub.files and "private" not in str(Hub.created[0].get("visibility"))


def test_a_merged_model_and_a_finished_run(hub: str, base: Path, run: Path, tmp_path: Path) -> None:
    merge(run, tmp_path / "merged", model=str(base), push_to_hub="ada/merged")
    assert {"model.safetensors", "config.json", "chat_template.jinja", "README.md"} <= Hub.files.keys()
    Hub.files = {}
    done = CliRunner().invoke(main, ["push", str(run), "ada/later"])
    assert done.exit_code == 0 and done.output.strip() == f"{hub}/ada/later"
    assert "adapter_model.safetensors" in Hub.files and not any("checkpoint" in name for name in Hub.files)


READ = {**WHO, "auth": {"accessToken": {"role": "read"}}}


@pytest.mark.parametrize(
    ("repo", "who", "message"),
    [
        ("plates", WHO, "push_to_hub is 'plates', expected ORG/NAME"),
        ("a/b/c", WHO, "push_to_hub is 'a/b/c', expected ORG/NAME"),
        ("lab/x", None, "push_to_hub lab/x: the hub refuses this token: log in with `hf auth login`, or set HF_TOKEN"),
        ("lab/x", READ, "push_to_hub lab/x: this token may only read: log in"),
        ("library/x", WHO, "push_to_hub library/x: ada may write to ada, lab, not to another's name"),
    ],
)
def test_a_push_that_cannot_work_is_said_before_training(
    repo: str, who: Any, message: str, hub: str, tmp_path: Path
) -> None:
    """Before data or model are looked for."""
    Hub.who = who
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(tmp_path / "nothing", tmp_path / "run", model="no/such-model", push_to_hub=repo, progress=False)
    assert not (tmp_path / "run").exists() and not Hub.created


def test_no_token_and_no_hub(hub: str, base: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="push_to_hub ada/x: there is no token: log in with `hf auth login`"):
        check_access("ada/x")
    monkeypatch.setenv("HF_TOKEN", "hf_made_up_for_this_test")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingError, match="push_to_hub ada/x: the hub cannot be reached: "):
        check_access("ada/x")
    with pytest.raises(MissingError, match="the hub cannot be reached"):
        merge(run, tmp_path / "merged", model=str(base), push_to_hub="ada/x")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("moment", ["/api/repos/create", "/commit/"])
def test_a_push_that_is_refused_at_the_end_keeps_the_run(
    moment: str, hub: str, base: Path, data: Path, tmp_path: Path
) -> None:
    Hub.refuse = moment
    words = ["sft", "--data", str(data), "--model", str(base), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    done = CliRunner().invoke(main, [*words, "--push-to-hub", "ada/x"])
    assert done.exit_code == 2
    last = done.output.strip().splitlines()[-1]
    assert "push to ada/x was refused: " in last and f"vlmtrain push {tmp_path / 'run'} ada/x tries again" in last
    assert (tmp_path / "run" / "vlmtrain.json").is_file()
    Hub.refuse = ""
    assert push(tmp_path / "run", "ada/x") == f"{hub}/ada/x" and "vlmtrain.json" in Hub.files


def test_only_what_is_finished_is_pushed(hub: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="cannot be pushed: no adapter and no model in it"):
        push(tmp_path, "ada/x")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(MissingError, match="cannot be pushed: the run was never finished: use --resume"):
        push(tmp_path, "ada/x")
    assert not Hub.created


def test_pushing_needs_nothing_to_be_resumed(hub: str, base: Path, tmp_path: Path) -> None:
    """Where a run is pushed to does not change its weights, so it may change on the way."""
    pairs = rows.write(tmp_path / "pairs", rows.pairs(4))
    options = {"model": str(base), "max_steps": 1, "progress": False}
    dpo.train(pairs, tmp_path / "run", **options)
    assert dpo.train(pairs, tmp_path / "run", resume=True, push_to_hub="ada/x", **options).metrics["steps"] == 1


def test_the_folder_is_looked_at_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from vlmtrain.cli import main

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = CliRunner().invoke(main, ["push", str(tmp_path / "nosuch"), "org/name"])
    assert result.exit_code == 2 and "cannot be pushed: no adapter and no model in it" in result.output
