from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import amber_world
import pytest
from click.testing import CliRunner, Result

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmeval import official
from vlmeval.cli import main
from vlmeval.task import load

CONTENT = {"data/one.json": b"[1, 2, 3]\n" * 1000, "data/query/two.json": b"{}\n"}
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Server:
    """A server of files, and what it was asked."""

    address: str
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=lambda: dict(CONTENT))
    cut_after: int | None = None
    ranges: bool = True


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            begun = self.headers.get("Range")
            path = self.path.removeprefix(f"/owner/repo/{REVISION}/")
            state.asked.append((path, begun))
            whole = state.files.get(path)
            if whole is None:
                self.send_error(404)
                return
            start = int(begun.removeprefix("bytes=").rstrip("-")) if begun and state.ranges else 0
            if start >= len(whole):
                self.send_error(416)
                return
            body = whole[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cut_after is not None and len(body) > state.cut_after:
                self.wfile.write(body[: state.cut_after])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.address = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield state
        http.shutdown()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Official files of a benchmark of our own."""
    files = [
        {"path": path, "to": path.removeprefix("data/"), "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        for path, raw in CONTENT.items()
    ]
    row = {"repository": "owner/repo", "revision": REVISION, "licence": "MIT", "images": "Images: in {folder}/images"}
    monkeypatch.setattr(official, "_shipped", lambda: {"amber": {**row, "files": files}})
    monkeypatch.setenv(official.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(official.MIRROR, raising=False)


def fetch(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["fetch", *map(str, arguments)])


def content(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path.removeprefix("data/")).read_bytes() for path in CONTENT}


def test_files_are_fetched_once_into_the_cache(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(official.MIRROR, server.address + "/")
    folder = official.fetch("amber")
    assert folder == tmp_path / "cache" / "amber-0123456" and content(folder) == CONTENT
    assert [path for path, _ in server.asked] == list(CONTENT)
    assert official.fetch("amber") == folder and len(server.asked) == 2
    # What is damaged is fetched again, and nothing else.
    (folder / "one.json").write_bytes(b"[]")
    official.fetch("amber")
    assert content(folder) == CONTENT and [path for path, _ in server.asked[2:]] == ["data/one.json"]
    assert not list(folder.rglob("*.part"))


def test_the_command_says_where_images_are_to_be_had(server: Server, tmp_path: Path) -> None:
    result = fetch("amber", "--out", tmp_path / "here", "--mirror", server.address)
    assert result.exit_code == 0, result.output
    first, second, third = result.stdout.splitlines()
    assert first == f"{tmp_path / 'here'}: 2 files, 0.0 MB, MIT"
    assert "https://github.com/owner/repo at 0123456, checksums right" in second
    assert third == f"Images: in {tmp_path / 'here'}/images"
    assert content(tmp_path / "here") == CONTENT


def test_a_torn_download_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut_after = 4000
    folder = official.fetch("amber", tmp_path / "here", server.address)
    assert content(folder) == CONTENT
    starts = [begun for path, begun in server.asked if path == "data/one.json"]
    assert starts == [None, "bytes=4000-", "bytes=8000-"]


def test_a_download_torn_too_often_goes_on_next_time(server: Server, tmp_path: Path) -> None:
    server.cut_after = 100
    with pytest.raises(MissingError, match="one.json cannot be had"):
        official.fetch("amber", tmp_path / "here", server.address)
    part = tmp_path / "here" / "one.json.part"
    assert 0 < part.stat().st_size < 1000 and not (tmp_path / "here" / "one.json").exists()
    server.cut_after = None
    size = part.stat().st_size
    server.asked.clear()
    assert content(official.fetch("amber", tmp_path / "here", server.address)) == CONTENT
    assert server.asked[0] == ("data/one.json", f"bytes={size}-")


def test_a_server_that_cannot_go_on_starts_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "one.json.part").write_bytes(b"[1, 2")
    assert content(official.fetch("amber", tmp_path, server.address)) == CONTENT


def test_a_wrong_beginning_is_thrown_away(server: Server, tmp_path: Path) -> None:
    """What lies there is of another file, or longer than this one."""
    for begun in (b"something else", CONTENT["data/one.json"] + b"more"):
        (tmp_path / "one.json").unlink(missing_ok=True)
        (tmp_path / "one.json.part").write_bytes(begun)
        assert content(official.fetch("amber", tmp_path, server.address)) == CONTENT


def test_a_whole_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one.json.part").write_bytes(CONTENT["data/one.json"])
    assert content(official.fetch("amber", tmp_path, server.address)) == CONTENT


def test_what_is_wrong_is_said_in_one_line(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["data/one.json"] = b"<html>sign in</html>"
    result = fetch("amber", "--out", tmp_path / "a", "--mirror", server.address)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "is not the official file: expected 10000 bytes with sha256" in result.stderr
    assert not list((tmp_path / "a").glob("one.json*"))
    del server.files["data/one.json"]
    result = fetch("amber", "--out", tmp_path / "b", "--mirror", server.address)
    assert result.exit_code == 2 and "cannot be had: the server answered 404; give --data" in result.stderr
    # Nothing listens at port 9 of this machine.
    result = fetch("amber", "--out", tmp_path / "c", "--mirror", "http://127.0.0.1:9")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "cannot be had" in result.stderr
    result = fetch("amber", "--mirror", "ftp://here")
    assert result.exit_code == 2 and "expected an address that starts with http://" in result.stderr
    result = fetch("mmbench")
    assert result.exit_code == 2 and "valid: amber" in result.stderr
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(official.CACHE, str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written"):
        official.fetch("amber", mirror=server.address)


def test_a_users_own_file_is_not_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text("mine")
    with pytest.raises(DataError, match="one.json is there and is not the official file"):
        official.fetch("amber", tmp_path, server.address)
    assert (tmp_path / "one.json").read_text() == "mine" and not server.asked


def test_two_at_once(server: Server, tmp_path: Path) -> None:
    """Ranks of one job: one fetches, the other waits."""
    folders: list[Path] = []

    def run() -> None:
        folders.append(official.fetch("amber", tmp_path / "here", server.address))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4 and content(tmp_path / "here") == CONTENT
    assert len(server.asked) == 2


def test_a_run_without_images_says_where_they_are_to_be_had(
    monkeypatch: pytest.MonkeyPatch, world: Path, tmp_path: Path
) -> None:
    monkeypatch.undo()
    shutil.copytree(world, tmp_path / "amber", ignore=shutil.ignore_patterns("images"))
    arguments = ["amber", "--model", "vlmtrain:tiny", "--data", tmp_path / "amber", "--out", tmp_path / "e"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "no image folder" in result.stderr and "AMBER#image-download" in result.stderr
    assert f"lay them in {tmp_path / 'amber'}/images, or give --images FOLDER" in result.stderr


def test_the_shipped_list_is_of_the_real_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in ("amber", "pope"):
        folder = amber_world.REAL.parent / name
        if not folder.is_dir():
            pytest.skip(f"the official files are not at {folder} (VLM_REAL_DATA names another place)")
        for file in official.source(name).files:
            raw = (folder / file.to).read_bytes()
            assert (hashlib.sha256(raw).hexdigest(), len(raw)) == (file.sha256, file.bytes)


def test_the_shipped_list_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert official.names() == ["amber", "pope"]
    for name in official.names():
        found = official.source(name)
        assert load(name).fetch is not None
        assert len(found.revision) == 40 and "{folder}" in found.images and found.files
        assert all(len(file.sha256) == 64 and file.bytes > 0 and file.path.endswith(file.to) for file in found.files)
    assert official.digests("vqa") == {}
    assert json.dumps(official.digests("pope")).count("coco_pope_") == 3
