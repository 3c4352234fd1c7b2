"""The hub path against a server on this machine that answers as the hub does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rawfiles import CAULDRON, cauldron_rows, encoded, write_parquet

from vlmdata.convert import convert
from vlmdata.hub import is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    root: Path
    served = 0
    files: set[str] = set()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/missing/" in path:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif re.fullmatch(r"/api/datasets/[^/]+/[^/]+(/revision/[^/]+)?", path):
            self.answer(200, json.dumps({"id": "HuggingFaceM4/the_cauldron", "sha": COMMIT, "tags": []}).encode())
        elif "/tree/" in path:
            files = [file for file in self.root.rglob("*") if file.is_file()]
            self.answer(200, json.dumps([self.entry(file) for file in sorted(files)]).encode())
        elif "/paths-info/" in path:
            self.answer(200, b"[]")
        else:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            Hub.files |= {name} - {""}
            self.send_range((self.root / name).read_bytes())

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        files = [file for file in self.root.rglob("*") if file.is_file() and file.name in asked]
        self.answer(200, json.dumps([self.entry(file) for file in files]).encode())

    def entry(self, file: Path) -> dict[str, object]:
        name = file.relative_to(self.root).as_posix()
        return {"type": "file", "oid": "0" * 40, "size": file.stat().st_size, "path": name}

    def send_range(self, data: bytes) -> None:
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        Hub.served += 0 if self.command == "HEAD" else len(part)
        self.answer(206 if asked else 200, part, {"ETag": '"x"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    rows = cauldron_rows(70)
    for row in rows[20:]:
        row["images"] = [{"bytes": encoded(kind="PNG", size=(900, 900)) + os.urandom(900_000), "path": None}]
    Hub.root, Hub.served, Hub.files = tmp_path / "hub", 0, set()
    write_parquet(Hub.root / "geomverse" / "train-00000-of-00001-0123456789ab.parquet", rows, CAULDRON, group=20)
    (Hub.root / "README.md").write_text("card")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def command(endpoint: str, *words: object) -> subprocess.CompletedProcess[str]:
    cache = str(Hub.root.parent / "cache")
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": cache}
    code = "from vlmdata.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "convert", *map(str, words)], capture_output=True, text=True, env=environment
    )


def test_the_hub_dataset_is_streamed_at_a_pinned_commit(hub: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(hub, "the_cauldron", "--config", "geomverse", "--limit", 10, "--out", out)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["revision"] == COMMIT and manifest["rows"]["read"] == 10
    assert manifest["inputs"][0]["name"] == "geomverse/train-00000-of-00001-0123456789ab.parquet"
    size = next(Hub.root.glob("geomverse/*")).stat().st_size
    assert Hub.served < size // 2, "only the row groups that are needed are fetched"
    local = convert("the_cauldron", Hub.root, tmp_path / "local", config="geomverse", limit=10)
    shard = manifest["shards"][0]
    assert shard["rows"] == local.manifest.shards[0].rows


def test_only_the_files_of_the_rows_asked_for_are_touched(hub: str, tmp_path: Path) -> None:
    (Hub.root / "geomverse" / "train-00000-of-00001-0123456789ab.parquet").unlink()
    for config in ("ai2d", "geomverse"):
        for number in range(4):
            name = f"train-{number:05d}-of-00004-{number:012x}.parquet"
            write_parquet(Hub.root / config / name, cauldron_rows(6), CAULDRON)
    done = command(hub, "the_cauldron", "--config", "geomverse", "--limit", 8, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(Hub.files) == [f"geomverse/train-{n:05d}-of-00004-{n:012x}.parquet" for n in range(2)]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [file["name"] for file in manifest["inputs"]] == sorted(Hub.files)
    whole = command(hub, "the_cauldron", "--config", "geomverse", "--out", tmp_path / "whole")
    assert whole.returncode == 0 and len(Hub.files) == 4
    assert json.loads((tmp_path / "whole" / "manifest.json").read_text())["rows"]["read"] == 24


def test_what_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    wrong = command(hub, "the_cauldron", "--config", "ai2d", "--out", tmp_path / "out")
    assert wrong.returncode == 2 and "valid: geomverse" in wrong.stderr
    none = command(hub, "rlaif_v", "missing/dataset", "--out", tmp_path / "out")
    assert none.returncode == 2 and "no file, folder or hub dataset missing/dataset" in none.stderr
    assert none.stderr.count("\n") == 1


def test_a_hub_that_is_not_there_is_one_line(hub: str, tmp_path: Path) -> None:
    gone = command("http://127.0.0.1:9", "football", "--out", tmp_path / "out")
    assert gone.returncode == 2 and "could not be reached" in gone.stderr and gone.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "yes"), [("owner/name", True), ("a/b/c", False), ("./x", False), ("file.json", False), ("../x", False)]
)
def test_hub_ids(text: str, yes: bool) -> None:
    assert is_hub_id(text) is yes
